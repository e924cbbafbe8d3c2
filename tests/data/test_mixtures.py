"""Mixtures of data sets: drawn by weight, each source in its own permutation, resumable, metrics by source."""

import json
from collections import Counter

import pytest

from alignlab import InputError
from alignlab.batch import Batch
from alignlab.data import DataMixture, Scenes
from alignlab.data.base import check_listed
from alignlab.data.order import MixedBatches, SourceBatches
from alignlab.experiment.config import ConfigError, resolve
from alignlab.experiment.run import run

SIZES = (12, 30)


def order(*, shares=(0.75, 0.25), batch_size=4, rank=0, processes=1, homogeneous=False, epochs=1, start=0, **changes):
    settings = {"runs": (1, 1), "seed": 0, "num_samples": 40} | changes
    batches = MixedBatches(
        SIZES, shares, batch_size=batch_size, rank=rank, processes=processes, homogeneous=homogeneous, **settings
    )
    found = []
    for epoch in range(epochs):
        batches.set_epoch(epoch)
        batches.start = start
        found += list(batches)
    return found


def lab(**settings):
    return Scenes(**{"num_train": 16, "num_val": 6, "num_test": 4} | settings)


def mixed(**settings):
    data = DataMixture(**{"sources": {"one": lab(), "two": lab(seed=1, num_val=5)}, "batch_size": 4} | settings)
    data.connect(lambda examples: Batch(tuple(e.id for e in examples), sources=tuple(e.source for e in examples)))
    return data


def test_weights_are_shares_of_what_is_drawn():
    drawn = Counter(index < SIZES[0] for batch in order(num_samples=4000) for index in batch)
    assert 2900 < drawn[True] < 3100  # 3000, with a standard deviation of 27


@pytest.mark.parametrize("homogeneous", [False, True])
def test_a_source_goes_through_all_its_examples_before_one_comes_again_also_across_epochs(homogeneous):
    flat = [index for batch in order(epochs=5, homogeneous=homogeneous) for index in batch]
    for first, size in ((0, 12), (12, 30)):
        own = [index for index in flat if first <= index < first + size]
        whole = size // 4 * 4 if homogeneous else size
        assert len(own) > whole
        for start in range(0, len(own), whole):
            part = own[start : start + whole]
            assert len(set(part)) == len(part)
        assert own[:whole] != own[whole : 2 * whole]


def test_a_homogeneous_step_is_of_one_source_in_all_processes():
    ranks = [order(batch_size=2, processes=2, rank=rank, homogeneous=True, num_samples=200) for rank in (0, 1)]
    sources = [{index < SIZES[0] for index in one + other} for one, other in zip(*ranks, strict=True)]
    assert all(len(each) == 1 for each in sources) and {True} in sources and {False} in sources


def test_without_it_most_batches_are_of_both_sources():
    assert sum(len({index < SIZES[0] for index in batch}) == 2 for batch in order(shares=(0.5, 0.5))) > 5


@pytest.mark.parametrize("homogeneous", [False, True])
def test_processes_divide_what_one_would_draw(homogeneous):
    whole = order(batch_size=4, homogeneous=homogeneous)
    ranks = [order(batch_size=2, processes=2, rank=rank, homogeneous=homogeneous) for rank in (0, 1)]
    assert [one + other for one, other in zip(*ranks, strict=True)] == whole
    assert not any(set(one) & set(other) for one, other in zip(*ranks, strict=True) if homogeneous)


def test_an_epoch_goes_on_where_it_stopped_and_the_seed_decides():
    assert order(start=3) == order()[3:]
    assert order() == order() != order(seed=1)


def test_a_source_of_no_weight_is_never_drawn():
    assert all(index >= SIZES[0] for batch in order(shares=(0.0, 1.0)) for index in batch)


def test_validation_batches_are_of_one_source_and_hold_everything():
    assert list(SourceBatches((5, 0, 3), 4)) == [[0, 1, 2, 3], [5, 6, 7], [4]] and len(SourceBatches((5, 3), 4)) == 3
    batches = list(mixed().val_dataloader())
    assert [len(set(batch.sources)) for batch in batches] == [1] * 4
    assert [len(batch) for batch in batches] == [4, 4, 2, 1]
    assert {batch.sources[0] for batch in batches[:2]} == {"one", "two"}  # with limit_val_batches = 2, say


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_of_a_mixture_resumes_inside_an_epoch(workers):
    def loader():
        return mixed(num_workers=workers, weights={"one": 3, "two": 1}).train_dataloader()

    whole, first, again = list(loader()), loader(), loader()
    stopped = iter(first)
    assert [next(stopped), next(stopped)] == whole[:2]
    again.load_state_dict(first.state_dict())
    assert list(again) == whole[2:]


def test_ids_and_groups_of_two_sources_are_never_the_same():
    data = DataMixture(sources={"one": lab(), "two": lab()})  # the same examples twice
    examples = list(data.examples("train"))
    assert len({example.id for example in examples}) == 32
    groups = [{example.group for example in examples if example.source == name} for name in ("one", "two")]
    assert all(groups) and not groups[0] & groups[1]
    assert {example.group for example in lab().examples("train")} != groups[0]


def test_a_mixture_supplies_what_all_sources_supply():
    data = DataMixture(sources={"one": lab(), "two": lab(searches=("question",))})
    assert "embedding" in lab().supplies and "embedding" not in data.supplies and "query" in data.supplies


def test_all_sources_are_judged_in_turn():
    assert [each.id for each in mixed().first("test", 3)] == ["one/test-0", "two/test-0", "one/test-1"]
    assert len(mixed().first("test", 100)) == 8


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sources": {}}, "needs at least one source"),
        ({"weights": {"one": 1}}, "weights name one, but its sources are one, two"),
        ({"weights": {"one": -1, "two": 1}}, "weights are at least 0"),
        ({"num_samples": 0}, "num_samples >= 1"),
        ({"sources": {"a/b": lab()}}, 'without "/"'),
        ({"sources": {"a": lab(group_by_length=True)}}, "source a groups by length"),
        ({"sources": {"a": DataMixture(sources={"b": lab()})}}, "source a is a mixture itself"),
    ],
)
def test_what_is_no_mixture_is_refused(settings, message):
    with pytest.raises(InputError, match=message):
        mixed(**settings)


def test_a_source_smaller_than_a_homogeneous_step_is_refused_unless_it_has_no_weight():
    with pytest.raises(InputError, match="source one has 16 training examples, but 20 of one source"):
        mixed(homogeneous=True, batch_size=20).train_dataloader()
    sources = {"one": lab(), "two": lab(num_train=20)}
    mixed(sources=sources, weights={"one": 0, "two": 1}, homogeneous=True, batch_size=20).train_dataloader()


def test_a_config_names_the_source_that_is_wrong():
    sources = {"chat": {"class_path": "LlavaJson", "init_args": {"pathh": "a"}}, "lab": "Scene"}
    with pytest.raises(ConfigError) as error:
        resolve({"objective": "MLE", "data": {"class_path": "DataMixture", "init_args": {"sources": sources}}})
    assert "data.init_args.sources.chat.init_args.pathh: LlavaJson has no argument" in str(error.value)
    assert "data.init_args.sources.lab: there is no data module 'Scene'; did you mean 'Scenes'" in str(error.value)


def test_a_run_gives_the_metrics_of_each_source_and_what_it_used_of_each(tiny_path, tmp_path):
    small = {"num_train": 16, "num_val": 6, "num_test": 4}
    one, two = ({"class_path": "Scenes", "init_args": {**small, "seed": seed}} for seed in (0, 1))
    mixture = {"sources": {"one": one, "two": two}, "weights": {"one": 3, "two": 1}, "homogeneous": True}
    config = resolve(
        {
            "objective": "MLE",
            "backbone": {"path": str(tiny_path)},
            "data": {"class_path": "DataMixture", "init_args": {**mixture, "batch_size": 4}},
            "trainer": {"max_steps": 6, "accelerator": "cpu", "val_check_interval": 3},
            "wandb": {"mode": "disabled"},
            "checkpoint_every": 2,
        }
    )

    def stop(progress):
        if progress.stage == "fit" and progress.step == 3:
            raise RuntimeError("as if the power failed")

    whole = run(config, tmp_path / "whole")
    assert sum(whole["sources"].values()) == whole["samples"] == 24 and set(whole["sources"]) == {"one", "two"}
    with pytest.raises(RuntimeError, match="power"):
        run(config, tmp_path / "again", on_progress=stop)
    again = run(config, tmp_path / "again")
    assert again["sources"] == whole["sources"]
    curves = [(tmp_path / each / "curve.jsonl").read_text() for each in ("whole", "again")]
    assert curves[0] == curves[1]
    last = next(line for line in map(json.loads, curves[0].splitlines()) if "val/loss" in line)
    assert min(last["val/one/loss"], last["val/two/loss"]) < last["val/loss"]
    assert last["val/loss"] < max(last["val/one/loss"], last["val/two/loss"])


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (lambda: DataMixture(sources={"one": Scenes(), "two": Scenes(seed=1)}), "do it for each of them"),
        (lambda: Scenes(unreadable="skip"), "set data.unreadable to stop"),
    ],
)
def test_files_of_all_examples_are_refused_where_not_all_can_be_gone_through(data, said):
    with pytest.raises(InputError, match=said):
        check_listed("alignlab embed", data())
