"""Which answers make a pair: the recorded filter of SeVa's scripts, what is equal, what is too short."""

from collections import Counter

import pytest

from alignlab.data import build_pairs
from alignlab.data.pairs import Pair, cleaned, seva_cleaned


def test_the_raw_filter_is_the_official_one(golden):
    (case,) = golden("preference/seva_pair_filter")["cases"]
    chosen, rejected = case["inputs"]["chosen_answers"], case["inputs"]["rejected_answers"]
    built = build_pairs(
        [item["answer"] for item in chosen], [item["answer"] for item in rejected],
        clean=seva_cleaned, drop_equal="raw",
    )  # fmt: skip
    kept = Counter((chosen[pair.index]["question"], pair.chosen, pair.rejected) for pair in built.kept)
    expected = case["expected"]["pairs_as_multiset"]
    assert kept == Counter((item["question"], item["chosen"], item["reject"]) for item in expected)
    assert built.dropped == {"equal": 3, "equal_after_cleaning": 0, "too_short": 0}


def test_what_is_equal_once_cleaned_is_dropped_by_default(golden):
    (case,) = golden("preference/seva_pair_filter")["cases"]
    answers = ([item["answer"] for item in case["inputs"][side]] for side in ("chosen_answers", "rejected_answers"))
    built = build_pairs(*answers, clean=seva_cleaned)
    assert all(pair.chosen != pair.rejected for pair in built.kept) and len(built.kept) == 9
    # A missing end mark, and words that the official cleaning has joined.
    assert built.dropped == {"equal": 3, "equal_after_cleaning": 2, "too_short": 0}


def test_cleaning_keeps_lines_and_words_apart():
    assert cleaned(" one\ntwo </s>\n") == "one\ntwo" and seva_cleaned("one\ntwo</s>") == "onetwo"
    built = build_pairs(["one\ntwo", "one two"], ["onetwo", "one\n two"])
    assert built.kept == (Pair(0, "one\ntwo", "onetwo"),) and built.dropped["equal_after_cleaning"] == 1


def test_a_side_that_is_too_short_drops_the_pair():
    chosen, rejected = ["yes", "", "a b c", "a b"], ["", "no", "a b", "c d e"]
    assert build_pairs(chosen, rejected).dropped["too_short"] == 2
    assert [pair.index for pair in build_pairs(chosen, rejected, min_tokens=0).kept] == [0, 1, 2, 3]
    built = build_pairs(chosen, rejected, min_tokens=3, length=len)  # in letters
    assert [pair.index for pair in built.kept] == [2, 3] and built.dropped["too_short"] == 2


def test_each_answer_needs_its_twin():
    with pytest.raises(ValueError):
        build_pairs(["a", "b"], ["c"])
