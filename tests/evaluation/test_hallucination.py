"""CHAIR's and AMBER's counts against the authors' and on paper, and CHAIR of real descriptions."""

import re
from dataclasses import replace
from random import Random

import pytest
from listed import Listed

from alignlab.batch import Box, Example
from alignlab.data import LlavaPairs, Scenes
from alignlab.data.coco import PAIRS, UNLESS
from alignlab.data.mentions import Vocabulary, mentions
from alignlab.errors import InputError
from alignlab.evaluation import CHAIR
from alignlab.evaluation.amber import Counts, Judged, count_nouns, discriminative, generative
from alignlab.evaluation.chair import Told, chair, hallucinated, objects_there

PERSON = ("person", "man", "woman", "people", "baby", "adult", "passenger")
LINES = (
    *(PERSON, ("dog", "puppy"), ("chair", "seat"), ("couch", "sofa"), ("toilet",), ("elephant",), ("bear",)),
    *(("train",), ("wine glass",), ("hot dog",), ("traffic light", "street light"), ("knife",), ("skis", "ski")),
    *(("sports ball", "ball"), ("bus",), ("tie", "bow tie"), ("cup",), ("sheep",)),
)
COCO = Vocabulary({name: line[0] for line in LINES for name in line}, PAIRS, UNLESS)
"""Some of the lines of the authors' synonyms.txt, among them all that their recorded captions name."""


class TestCHAIR:
    def test_mentions_and_shares_are_those_of_the_authors_script(self, golden):
        (case,) = golden("preference/chair_metrics")["cases"]
        assert case["inputs"]["singularize"] == "identity"
        told = []
        for item, expected in zip(case["inputs"]["items"], case["expected"]["sentences"], strict=True):
            found = mentions(item["caption"], COCO, singular=str)
            assert [each.object for each in found] == expected["generated"]
            told.append(Told(expected["generated"], set(item["gt_objects"])))
            wrong = [each for each in found if each.object not in item["gt_objects"]]
            assert [[each.word, each.object] for each in wrong] == expected["hallucinated"]
            assert [each.place for each in wrong] == expected["idxs"]
            assert hallucinated(told[-1]) == [object for _, object in expected["hallucinated"]]
            alone = chair(told[-1:])
            assert (alone["sentence"], alone["instance"]) == (expected["CHAIRs"], expected["CHAIRi"])
        scores = chair(told)
        assert scores["sentence"] == case["expected"]["CHAIRs"]
        assert scores["instance"] == pytest.approx(case["expected"]["CHAIRi"], rel=1e-12)

    def test_shares_on_paper(self):
        # Mentions 3 + 0 + 1, of which 2 are wrong, in one of three; of 2 + 1 + 1 objects there, 1 + 0 + 1 are named.
        told = [Told(["a", "x", "x"], {"a", "b"}, 5), Told([], {"a"}, 1), Told(["a"], {"a"}, 3)]
        expected = {"sentence": 1 / 3, "instance": 1 / 2, "recall": 1 / 2, "mentions": 4 / 3, "length": 3}
        assert chair(told) == pytest.approx(expected)

    def test_where_nothing_is_mentioned_or_there_the_shares_are_0(self):
        assert chair([Told([], set())]) == dict.fromkeys(("sentence", "instance", "recall", "mentions", "length"), 0.0)


class TestMentions:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("Men, women and PEOPLE", ["person"] * 3),
            ("puppies, knives, buses and hot dogs", ["dog", "knife", "bus", "hot dog"]),
            ("wine glasses, cups, skis, a ski, sports balls", ["wine glass", "cup", "skis", "skis", "sports ball"]),
            ("sheep on a bus", ["sheep", "bus"]),
            ("the toilet and its seat", ["toilet"]),
            ("a seat", ["chair"]),
            ("a toilet seat, a seat", ["toilet"]),
            ("baby bears and adult bears with a baby", ["bear", "bear", "person"]),
            ("a hot dog dog", ["hot dog", "dog"]),
            ("train tracks", []),
            ("a bow tie", ["tie"]),
            ("glass, wine, dogmatic, hot", []),
            ("", []),
        ],
    )
    def test_words_are_read_in_the_singular_and_in_pairs(self, text, expected):
        assert [each.object for each in mentions(text, COCO)] == expected

    def test_an_unknown_word_stays_as_it_is(self):
        read = {"glass": "glass", "gas": "gas", "cars": "cars", "sports": "sports", "dogs": "dog"}
        assert {word: COCO.singular(word) for word in read} == read

    def test_a_name_is_its_object_before_it_is_a_text(self):
        assert COCO.objects("wine glass") == {"wine glass"} and COCO.objects("hot dog") == {"hot dog"}
        assert COCO.objects("small puppy") == {"dog"} and COCO.objects("cup of wine, bus") == {"cup", "bus"}
        assert Vocabulary({"dining table": "table"}).objects("dining table") == {"table"}


class TestLab:
    @pytest.mark.parametrize(
        "settings",
        [{}, {"vocabulary": "synonyms"}, {"language": "invented"}, {"language": "invented", "vocabulary": "synonyms"}],
        ids=str,
    )
    def test_what_is_there_is_what_the_scene_has_and_true_captions_invent_nothing(self, settings):
        data = Scenes(num_test=20, **settings)
        for example in data.examples("test"):
            there = {thing.shape for thing in example.truth["scene"].things}
            assert objects_there(example, data.objects) == there
            assert objects_there(replace(example, boxes=()), data.objects) == there
            assert objects_there(replace(example, captions=()), data.objects) == there
            said = [mention.object for mention in mentions(example.captions[0], data.objects)]
            assert len(said) == len(example.boxes) and set(said) == there

    def test_both_languages_of_the_training_captions_are_understood(self):
        data = Scenes(num_train=20, language="both")
        for example in data.examples("train"):
            first, *_, last = example.captions
            named = [sorted(each.object for each in mentions(text, data.objects)) for text in (first, last)]
            assert named[0] == named[1] == sorted(thing.shape for thing in example.truth["scene"].things)

    def test_own_descriptions_are_judged_by_what_is_there(self, backbone, scenes):
        judge = CHAIR(max_new_tokens=16)
        data, vocabulary = Listed(scenes), Scenes.objects
        sighted = judge(backbone, data)
        outputs = [item["output"] for item in sighted.items]
        named = [[each.object for each in mentions(output, vocabulary)] for output in outputs]
        assert any(named) and len(outputs) == len(scenes)  # else the test would be empty
        there = [{thing.shape for thing in example.truth["scene"].things} for example in scenes]
        invented = [[each for each in said if each not in true] for said, true in zip(named, there, strict=True)]
        assert sighted.scores["sentence"] == pytest.approx(sum(map(bool, invented)) / len(scenes))
        assert sighted.scores["instance"] == pytest.approx(sum(map(len, invented)) / sum(map(len, named)))
        assert sighted.scores["length"] == pytest.approx(sum(len(text.split()) for text in outputs) / len(scenes))
        assert [item["score"] for item in sighted.items] == [float(not each) for each in invented]

        spoken = [replace(e, captions=(text,), boxes=()) for e, text in zip(scenes, outputs, strict=True)]
        data.listed = [replace(e, boxes=(Box("cross", 0, 0, 1, 1),)) for e in spoken]
        agreeing = judge(backbone, data).scores
        assert agreeing["sentence"] == agreeing["instance"] == 0.0 and agreeing["mentions"] > 0
        data.listed = [replace(e, captions=("nothing",)) for e in spoken]
        opposed = judge(backbone, data).scores
        assert opposed["instance"] == 1.0 and opposed["recall"] == 0.0
        assert opposed["sentence"] == pytest.approx(sum(map(bool, named)) / len(scenes))

    def test_data_without_names_of_objects_are_refused_before_anything_is_asked(self, scenes):
        data = Listed(scenes)
        CHAIR().check(data)
        data.objects = Vocabulary()
        with pytest.raises(InputError, match="CHAIR finds objects by their names, but Listed.objects has none"):
            CHAIR().check(data)
        with pytest.raises(InputError, match="CHAIR requires captions, boxes, but LlavaPairs supplies"):
            CHAIR().check(LlavaPairs)
        CHAIR().check(Scenes)


def words(text: str) -> list[str]:
    """The nouns of the recorded responses, as their file says."""
    return re.findall(r"[a-z]+", text.lower())


class TestAMBER:
    def case(self, golden, name: str) -> tuple[dict, dict, list[tuple[dict, str]]]:
        (case,) = [each for each in golden("preference/amber_metrics")["cases"] if each["name"] == name]
        annotations = {each["id"]: each for each in case["inputs"]["annotations"]}
        answers = [(annotations[each["id"]], each["response"]) for each in case["inputs"]["responses"]]
        return case["inputs"], case["expected"], answers

    def test_descriptions_are_counted_as_by_the_authors_script(self, golden):
        inputs, expected, answers = self.case(golden, "generative")
        counts = [
            count_nouns(
                words(response),
                truth=annotation["truth"],
                lures=annotation["hallu"],
                association=inputs["association"],
                safe=set(inputs["safe_words"]),
            )
            for annotation, response in answers
        ]
        assert generative(counts) == {key.lower(): value for key, value in expected["Generative Task"].items()}

    def test_answers_are_counted_as_by_the_authors_script(self, golden):
        _, expected, answers = self.case(golden, "discriminative")
        found = discriminative([Judged(each["type"], each["truth"], answer) for each, answer in answers])
        parts = {"Descriminative Task": "", "Exsitence": "existence_"}  # their spelling
        wanted = {
            f"{parts.get(part, f'{part.lower()}_')}{name.lower()}": value
            for part, scores in expected.items()
            for name, value in scores.items()
        }
        assert found == wanted

    ASSOCIATION = {"dog": ["puppy", "pet"], "cat": ["kitten", "pet"], "sky": [], "ball": []}

    def count(self, text: str, **settings) -> Counts:
        settings = {"truth": ["dog", "cat"], "lures": ["ball"], "association": self.ASSOCIATION, **settings}
        return count_nouns(text.split(), **settings)

    def test_nouns_on_paper(self):
        # table is of no association; sky is safe always; pet means the first that it is associated with, the dog.
        assert self.count("table sky pet puppy ball", safe={"sky"}) == Counts(1, 4, 1, 2, 1, 1, 1)
        assert self.count("cat dog") == Counts(0, 2, 2, 2, 0, 1, 0)
        assert self.count("table") == Counts(0, 0, 0, 2, 0, 1, 0)

    def test_what_is_similar_counts_only_where_nothing_is_equal(self):
        def similar(noun: str, word: str) -> bool:
            return {noun, word} == {"sky", "kitten"} or noun == word

        assert self.count("sky") == Counts(1, 1, 0, 2, 0, 1, 1)
        assert self.count("sky", similar=similar) == Counts(0, 1, 1, 2, 0, 1, 0)
        # A safe noun is no lure, though it is similar to one; one that is similar to both is safe, and lures as well.
        assert self.count("kitten", lures=["sky"], similar=similar) == Counts(0, 1, 1, 2, 0, 1, 0)
        assert self.count("sky", lures=["sky"], similar=similar) == Counts(0, 1, 1, 2, 1, 1, 0)

    def test_nothing_at_all_scores_0(self):
        assert set(generative([]).values()) == {0.0} == set(discriminative([]).values())

    def test_attributes_are_three_sums_each_of_which_starts_from_a_thousandth(self):
        scores = discriminative([Judged("discriminative-attribute-state", "yes", "Yes")])
        assert scores["accuracy"] == scores["state_accuracy"] == 99.9 and scores["attribute_accuracy"] == 99.7

    def test_an_answer_that_is_not_exactly_yes_or_no_is_wrong(self):
        kind = "discriminative-hallucination"
        scores = discriminative([Judged(kind, "no", answer) for answer in ("No", "no", "No.", "")])
        # 1 of 4 right; 1 / 1.001 answers No were right; 1 of 4 found; F1 of these: 2 * 0.999 * 0.25 / (1.249 + 0.001).
        expected = {"accuracy": 25.0, "precision": 99.9, "recall": 25.0, "f1": 40.0}
        assert {name: scores[f"existence_{name}"] for name in expected} == expected
        assert scores["attribute_accuracy"] == scores["relation_f1"] == 0.0

    def test_a_part_alone_scores_as_the_whole_but_for_what_denominators_start_from(self):
        random = Random(0)
        judged = [
            Judged("relation", random.choice(("yes", "no")), random.choice(("Yes", "No", "?"))) for _ in range(50)
        ]
        scores = discriminative(judged)
        assert all(scores[f"relation_{name}"] == scores[name] for name in ("accuracy", "precision", "recall", "f1"))


def test_examples_without_boxes_or_captions_have_nothing_there():
    assert objects_there(Example("x"), COCO) == set()
