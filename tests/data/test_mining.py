"""Hard negatives: what is near and not right, found in blocks, read by training, and of no other data."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from drawing_files import encoded

from alignlab import InputError
from alignlab.backbones import Backbone
from alignlab.batch import Example, PictureBytes
from alignlab.data import Scenes
from alignlab.data.mined import Mined
from alignlab.data.mining import Filter, audit, embed_examples, mine
from alignlab.data.teachers import BackboneTeacher
from alignlab.experiment.config import resolve
from alignlab.experiment.mine import Settings, mine_data, show
from alignlab.experiment.preflight import preflight
from alignlab.functional import hard_negatives, normalize

SIZES = {"num_train": 40, "num_val": 8, "num_test": 1, "num_compositional": 1, "batch_size": 8}

# Four queries on the circle, and the cosines with the targets at 0, 60, 90 and 180 degrees:
#   query 0 (0 degrees):  1.000  0.500  0.000 -1.000
#   query 1 (30 degrees): 0.866  0.866  0.500 -0.866
#   query 2 (60 degrees): 0.500  1.000  0.866 -0.500
#   query 3 (90 degrees): 0.000  0.866  1.000  0.000
QUERIES = torch.tensor([[1.0, 0.0], [0.75**0.5, 0.5], [0.5, 0.75**0.5], [0.0, 1.0]])
TARGETS = torch.tensor([[1.0, 0.0], [0.5, 0.75**0.5], [0.0, 1.0], [-1.0, 0.0]])
OWN = torch.arange(4)


def found(**settings):
    return mine(QUERIES, TARGETS, OWN, **{"same": {}, "num_negatives": 2, **settings})


def test_the_nearest_of_the_others_come_first():
    result = found()
    assert result.index.tolist() == [[1, 2], [0, 2], [1, 0], [2, 1]]
    torch.testing.assert_close(result.score[2], torch.tensor([1.0, 0.5]))
    torch.testing.assert_close(result.positive, torch.tensor([1.0, 0.75**0.5, 0.75**0.5, 0.0]))
    assert result.dropped["filter"].tolist() == [0, 0, 0, 0]


def test_a_margin_drops_what_is_much_nearer_than_the_positive():
    result = found(filter=Filter(margin=0.1))
    # Query 2: 1.000 > 0.866 + 0.1; query 3: 0.866 and 1.000 > 0.000 + 0.1. Query 1's 0.866 is as near as its positive.
    assert result.index[2].tolist() == [0, 3] and result.index[3].tolist() == [0, -1]
    assert result.score[3].tolist() == [0.0, -torch.inf]
    assert result.dropped["filter"].tolist() == [0, 0, 1, 2]


def test_a_ratio_drops_what_is_near_the_positive():
    result = found(filter=Filter(ratio=0.5))
    assert result.index.tolist() == [[1, 2], [3, -1], [3, -1], [0, -1]]
    assert result.dropped["filter"].tolist() == [0, 2, 2, 2]  # above 0.5, 0.433, 0.433 and 0


def test_what_shares_a_number_is_right_and_the_nearest_may_be_left_out():
    result = found(same={"group": torch.tensor([7, 3, 7, 3])})
    assert result.index.tolist() == [[1, 3], [0, 2], [1, 3], [2, 0]]  # 0 and 2, and 1 and 3, right for each other
    assert result.dropped["group"].tolist() == [1, 1, 1, 1]
    assert found(skip=1, num_negatives=1).index.tolist() == [[2], [2], [0], [1]]


def test_a_target_of_two_queries_is_right_for_both_groups():
    # Queries 0 and 1 have one target; 1 and 3 are of one group, so that target is right for 3 as well.
    own = torch.tensor([0, 0, 1, 2])
    result = mine(QUERIES, TARGETS, own, same={"group": torch.tensor([0, 1, 2, 1])}, num_negatives=3)
    assert set(result.index[3].tolist()) == {1, 3, -1} and set(result.index[0].tolist()) == {1, 2, 3}
    assert set(result.index[1].tolist()) == {1, 3, -1}


@pytest.mark.parametrize("filter", [Filter(), Filter(margin=0.05), Filter(ratio=0.9)])
def test_blocks_find_what_the_whole_does(filter):
    torch.manual_seed(0)
    queries, targets = normalize(torch.randn(50, 6)), normalize(torch.randn(31, 6))
    own = torch.cat([torch.arange(31), torch.randint(0, 31, (19,))])
    same = {"query": torch.randint(0, 40, (50,)), "group": torch.randint(0, 12, (50,))}
    settings = {"same": same, "num_negatives": 5, "skip": 2, "filter": filter}
    whole = mine(queries, targets, own, **settings, block=64)
    for block in (7, 31, 1):
        part = mine(queries, targets, own, **settings, block=block)
        assert part.index.tolist() == whole.index.tolist()
        torch.testing.assert_close(part.score, whole.score)
        assert {rule: counts.tolist() for rule, counts in part.dropped.items()} == {
            rule: counts.tolist() for rule, counts in whole.dropped.items()
        }
    slow = [_by_hand(row, queries, targets, own, same, filter)[2:7] for row in range(50)]
    assert [[index for index in row if index >= 0] for row in whole.index.tolist()] == slow


def _by_hand(row, queries, targets, own, same, filter):
    cosines = (targets @ queries[row]).tolist()
    right = {int(own[row])}
    for label in same.values():
        right |= {int(own[other]) for other in range(len(own)) if label[other] == label[row]}
    limit = filter.limit(torch.tensor([cosines[own[row]]])).item()
    kept = [place for place in range(len(targets)) if place not in right and cosines[place] <= limit]
    return sorted(kept, key=lambda place: -cosines[place])


def test_it_agrees_with_what_is_found_within_a_batch():
    torch.manual_seed(1)
    queries, targets = normalize(torch.randn(20, 4)), normalize(torch.randn(20, 4))
    expected, missing = hard_negatives(queries @ targets.T, num_hard=6, margin=0.1)
    result = mine(queries, targets, torch.arange(20), same={}, num_negatives=6, filter=Filter(margin=0.1), block=8)
    assert result.index.tolist() == expected.masked_fill(missing, -1).tolist()


def test_the_audit_counts_what_the_filter_finds():
    groups, filter = torch.tensor([0, 1, 1, 0]), Filter(margin=0.1)
    nearest, kept = found(num_negatives=2), found(num_negatives=2, filter=filter)
    seen = audit(nearest, kept, OWN, groups, filter)
    # Nearest: query 0 has 1 and 2, query 1 has 0 and 2, query 2 has 1 and 0, query 3 has 2 and 1. Right are 2 for
    # query 1, and 1 for query 2, which the filter drops, as it drops both of query 3.
    assert seen.false_before == pytest.approx(2 / 8)
    assert seen.precision == pytest.approx(1 / 3) and seen.recall == pytest.approx(1 / 2)
    # Kept: query 0 has 1 and 2, query 1 has 0 and 2, query 2 has 0 and 3, query 3 has 0.
    assert seen.false_after == pytest.approx(2 / 7)
    alone = audit(nearest, nearest, OWN, OWN, Filter())
    assert (alone.false_before, alone.precision, alone.recall) == (0.0, None, None)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Filter(margin=0.1, ratio=0.9), "by margin or by ratio"),
        (lambda: Filter(ratio=0.0), "ratio > 0"),
        (lambda: found(num_negatives=0), "num_negatives >= 1"),
        (lambda: found(skip=-1), "skip >= 0"),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


def config(**settings):
    data = {"class_path": "Scenes", "init_args": {**SIZES, "duplicates": 0.5, **settings}}
    return {"objective": "InfoNCE", "data": data, "trainer": {"accelerator": "cpu"}, "evaluators": []}


@pytest.fixture(scope="module")
def mined(tmp_path_factory, tiny_path):
    path = tmp_path_factory.mktemp("mined") / "negatives.jsonl"
    return path, mine_data(resolve(config()), path, str(tiny_path), Settings(num_negatives=3), batch_size=16)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_file_holds_provenance_and_a_line_a_query(mined, tiny_path):
    path, _ = mined
    first, *rest = lines(path)
    assert first["format"] == "alignlab mined negatives" and first["model"] == str(tiny_path)
    assert first["splits"] == {"train": 40, "val": 8} and first["settings"]["num_negatives"] == 3
    assert len(first["model_fingerprint"]) == len(first["data_fingerprint"]) == 16
    assert [line["id"] for line in rest] == [f"train-{n}" for n in range(40)] + [f"val-{n}" for n in range(8)]
    data = Scenes(**SIZES, duplicates=0.5)
    for line in rest:
        assert 0 < len(line["negatives"]) <= 3
        examples = data.examples(line["split"])
        own = next(example for example in examples if example.id == line["id"])
        texts = [examples[negative["index"]].target for negative in line["negatives"]]
        assert [examples[negative["index"]].id for negative in line["negatives"]] == [
            negative["id"] for negative in line["negatives"]
        ]
        assert len(set(texts)) == len(texts) and own.target not in texts
        groups = {example.group for example in examples if example.target in texts}
        assert own.group not in groups


def test_scores_are_the_backbones_cosines(mined, tiny_path):
    path, _ = mined
    line = lines(path)[1]
    backbone, examples = Backbone(str(tiny_path)).eval(), Scenes(**SIZES, duplicates=0.5).examples("train")
    targets = [examples[negative["index"]].target for negative in line["negatives"]]
    with torch.no_grad():
        query = normalize(backbone.embed(backbone.encoder.contents([examples[0].query])))
        found = normalize(backbone.embed(backbone.encoder.contents([examples[0].target, *targets])))
    expected = [line["positive"], *(negative["score"] for negative in line["negatives"])]
    assert (query @ found.T)[0].tolist() == pytest.approx(expected, abs=1e-4)


def test_training_gets_the_negatives(mined, tiny_path):
    path, backbone = mined[0], Backbone(str(tiny_path))
    data, plain = Scenes(**SIZES, duplicates=0.5, mined=str(path)), Scenes(**SIZES, duplicates=0.5)
    by_id = {line["id"]: line for line in lines(path)[1:]}
    for index in (0, 7, -1):
        example, bare = data.filled("train")[index], plain.examples("train")[index]
        added = [plain.examples("train")[n["index"]].target for n in by_id[example.id]["negatives"]]
        assert example.negatives == (*bare.negatives, *added) and added
    data.connect(partial(backbone.encoder.batch, sequences=("query", "target", "negatives")))
    batch = next(iter(data.train_dataloader()))
    own = {example.id: len(example.negatives) for example in plain.examples("train")}
    counts = [own[id] + len(by_id[id]["negatives"]) for id in batch.ids]
    assert batch.num_negatives.tolist() == counts and len(batch.negatives) == sum(counts)
    backbone.embed(batch.negatives).sum().backward()
    assert next(iter(data.val_dataloader())).num_negatives.min() > 0


def test_groups_may_be_kept_to_measure_the_filter(tmp_path, tiny_path):
    settings = Settings(num_negatives=39, keep_groups=True)
    result = mine_data(resolve(config()), tmp_path / "m", str(tiny_path), settings)["train"]
    assert "group" not in result.found.dropped
    # All targets are near ones here, and a run of 8 holds duplicates, told in other words.
    assert result.audit.false_before == result.audit.false_after > 0
    assert (result.audit.precision, result.audit.recall) == (None, 0.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": 1}, "was made of other examples: the one at 0 of the train split is 'train-0' here"),
        ({"num_train": 48}, "was made of 40 examples in the train split, which has 48 here; .*alignlab mine CONFIG"),
        ({"num_val": 9}, "was made of 8 examples in the val split"),
    ],
)
def test_a_file_of_other_data_is_refused_before_training(mined, tiny_path, settings, message):
    changed = config(**settings, mined=str(mined[0])) | {"backbone": {"path": str(tiny_path)}}
    with pytest.raises(InputError, match=message):
        preflight(resolve(changed))


def test_a_negative_that_is_another_now_is_refused(mined):
    data = Scenes(**SIZES, duplicates=0.5, mined=str(mined[0]))
    place = lines(mined[0])[1]["negatives"][0]["index"]

    class Changed:
        def __init__(self, examples):
            self.examples = examples

        def __len__(self):
            return len(self.examples)

        def __getitem__(self, index):
            return self.examples[index + 1 if index == place else index]

    with pytest.raises(InputError, match=f"the one at {place} of the train split is 'train-{place + 1}' here"):
        data.mined.of("train", 0, Changed(data.examples("train")))


def test_a_file_is_replaced_by_its_like_alone(mined, tmp_path, tiny_path):
    path, before = mined[0], mined[0].read_text()
    mine_data(resolve(config()), path, str(tiny_path), Settings(num_negatives=3), batch_size=16)
    assert path.read_text() == before
    for other, settings, what in (
        (config(), Settings(num_negatives=4), "settings"),
        (config(seed=1), Settings(num_negatives=3), "data"),
    ):
        with pytest.raises(InputError, match=f"is there already, and differs in {what}"):
            mine_data(resolve(other), path, str(tiny_path), settings)
    (tmp_path / "notes").write_text("[]\n")
    with pytest.raises(InputError, match="is there already, and is no such file"):
        mine_data(resolve(config()), tmp_path / "notes", str(tiny_path), Settings())
    assert path.read_text() == before and (tmp_path / "notes").read_text() == "[]\n"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: "{}\n", "no file that this alignlab's `alignlab mine` made"),
        (lambda text: text.rpartition("\n{")[0] + "\n", "damaged: lines of val are missing"),
        (lambda text: text[:-30], "is damaged"),
        (lambda text: text.replace('"index"', '"place"'), "is damaged"),
    ],
)
def test_a_damaged_file_is_named(mined, tmp_path, change, message):
    (tmp_path / "m").write_text(change(mined[0].read_text()))
    with pytest.raises(InputError, match=message):
        Mined(tmp_path / "m").of("train", 0, Scenes(**SIZES, duplicates=0.5).examples("train"))
    with pytest.raises(InputError, match="there is no file .*nowhere; `alignlab mine` makes one"):
        Mined(tmp_path / "nowhere").of("train", 0, [])


def test_a_query_that_comes_again_has_the_same_number(tiny_backbone):
    examples = Scenes(**SIZES).examples("train")[:3]
    twice = [*examples, examples[1]]
    embedded = embed_examples(BackboneTeacher(tiny_backbone, "tiny"), "train", twice, batch_size=3)
    assert embedded.same["query"].tolist() == [0, 1, 2, 1] and embedded.own.tolist() == [0, 1, 2, 1]
    assert len(embedded.targets) == 3 and embedded.first.tolist() == [0, 1, 2]


def test_what_is_printed_shows_queries_negatives_and_the_filters_worth(mined, capsys):
    show(mined[1])
    shown = " ".join(capsys.readouterr().out.split())
    for text in ("train-0: [picture]", "what was mined", "recall of the filter", "dropped for the same group"):
        assert text in shown


def test_a_picture_that_lies_in_several_rows_of_a_table_is_one_query(tiny_backbone):
    rows = [
        Example(str(n), query=(PictureBytes(encoded(n // 2), f"of row {n}"),), target=(f"said {n}",)) for n in range(4)
    ]
    found = embed_examples(BackboneTeacher(tiny_backbone, "tiny"), "train", rows, batch_size=4)
    assert found.same["query"].tolist() == [0, 0, 1, 1]
