"""What holds many records: their bytes, or their places in a file."""

import pickle
import tracemalloc

import pytest
from drawing_files import write_lines

from alignlab.data.records import Lines, Packed, checked, files_of, json_list
from alignlab.errors import InputError

ODD = [{"a": [1, 2.5, None]}, "ä\u2028\ud83d", [], 7, {"b": {"c": "\n"}}]


def test_packed_values_come_back_by_any_index():
    packed = Packed(ODD)
    assert list(packed) == ODD and packed[-1] == ODD[-1] and len(packed) == 5
    assert list(pickle.loads(pickle.dumps(packed))) == ODD
    with pytest.raises(IndexError):
        packed[5]


def test_packed_values_take_less_memory_than_python_s_objects():
    def records():
        return ({"id": f"{n}", "conversations": [{"from": "human", "value": "what ?"}] * 4} for n in range(2000))

    tracemalloc.start()
    packed = Packed(records())
    small = tracemalloc.get_traced_memory()[0]
    kept = [{**record, "conversations": [dict(turn) for turn in record["conversations"]]} for record in records()]
    large = tracemalloc.get_traced_memory()[0] - small
    tracemalloc.stop()
    assert len(packed) == len(kept) and small < large / 4


@pytest.mark.parametrize("text", ["[]", " [ 1 , {} ]\n", '[{"a": "]"},\n"x,"]', "[[1], [2]]"])
def test_a_list_is_read_one_by_one_as_whole(tmp_path, text):
    import json

    (tmp_path / "list.json").write_text(text)
    assert list(json_list(tmp_path / "list.json", "data.path", "")) == json.loads(text)


@pytest.mark.parametrize("text", ["[1, 2", "[1 2]", "[1,]", "[1, x]", "[1] 2", "[1}", ""])
def test_what_is_no_list_is_refused_wherever_it_breaks(tmp_path, text):
    (tmp_path / "list.json").write_text(text)
    with pytest.raises(InputError, match="line 1, column"):
        list(json_list(tmp_path / "list.json", "data.path", ""))


def test_lines_of_several_files_are_found_by_place_and_blank_ones_left_out(tmp_path):
    first = write_lines(tmp_path / "a.jsonl", ['{"n": 0}', "", '{"n": "ä"}'])
    second = tmp_path / "b.jsonl"
    second.write_bytes(b'\r\n{"n": 2}\r\n{"n": 3}')
    lines = Lines([first, second])
    assert [each["n"] for each in lines] == [0, "ä", 2, 3] and len(list(lines.texts())) == len(lines) == 4


def test_files_are_named_by_folder_or_pattern(tmp_path):
    files = [write_lines(tmp_path / "parts" / f"{n}.jsonl", ["{}"]) for n in range(3)]
    assert files_of(str(tmp_path / "parts"), "data.path", [".jsonl"]) == files
    assert files_of(str(tmp_path / "parts" / "[01].jsonl"), "data.path", [".jsonl"]) == files[:2]
    with pytest.raises(InputError, match=r"data.path: the folder .* has no .tar or .tgz file"):
        files_of(str(tmp_path / "parts"), "data.path", [".tar", ".tgz"])
    with pytest.raises(InputError, match=r"no file fits .*x\*"):
        files_of(str(tmp_path / "x*"), "data.path", [])
    with pytest.raises(InputError, match="did you mean '0.jsonl'"):
        files_of(str(tmp_path / "parts" / "0.json"), "data.path", [])


def test_all_faults_are_counted_and_the_first_ones_listed():
    def keep(number):
        if number % 2:
            raise InputError("it is odd")
        return number

    with pytest.raises(InputError, match="somewhere: 5 of 10 rows are malformed\n  row 1: it is odd\n.*\n.*\n  and 2"):
        list(checked(range(10), keep, "somewhere", "row"))
    with pytest.raises(InputError, match="holds no row"):
        list(checked([], keep, "somewhere", "row"))
