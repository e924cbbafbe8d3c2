"""The order of training data: a function of (seed, epoch), divided among processes, resumed inside an epoch."""

import pytest
import torch

from alignlab import InputError
from alignlab.data import Scenes
from alignlab.data.order import ShuffledBatches


def order(*, size=20, batch_size=3, seed=0, rank=0, processes=1, run=1, epoch=0, start=0):
    batches = ShuffledBatches(size, batch_size, seed=seed, rank=rank, processes=processes, run=run, who="Data")
    batches.set_epoch(epoch)
    batches.start = start
    return list(batches)


def test_an_epoch_visits_distinct_examples_and_drops_the_short_batch():
    batches = order()
    flat = [index for batch in batches for index in batch]
    assert [len(batch) for batch in batches] == [3] * 6 and len(set(flat)) == 18


def test_runs_stay_together_in_a_shuffled_order():
    flat = [index for batch in order(size=22, batch_size=2, run=4) for index in batch]
    assert sorted(flat) == list(range(22)) and flat != list(range(22))
    for index in range(22):
        if index % 4:
            assert flat.index(index) == flat.index(index - 1) + 1


def test_seed_and_epoch_change_the_order_and_nothing_else_does():
    assert order() == order() != order(seed=1)
    assert order() != order(epoch=1)
    torch.manual_seed(99)
    assert order() == order()


def test_processes_divide_the_epoch():
    whole, parts = order(batch_size=4), [order(batch_size=2, processes=2, rank=rank) for rank in (0, 1)]
    assert [first + second for first, second in zip(*parts, strict=True)] == whole


def test_an_epoch_goes_on_where_it_stopped():
    assert order(start=2) == order()[2:]


def test_too_few_examples_for_a_batch_are_refused():
    with pytest.raises(InputError, match="Data has 5 training examples.*batch of 8.*data.batch_size to at most 5"):
        order(size=5, batch_size=8)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_resumes_inside_an_epoch(workers):
    def loader():
        data = Scenes(num_train=40, batch_size=8, num_workers=workers)
        data.connect(_ids)
        return data.train_dataloader()

    whole = list(loader())
    first, again = loader(), loader()
    stopped = iter(first)
    assert [next(stopped), next(stopped)] == whole[:2]
    again.load_state_dict(first.state_dict())  # with workers, more than two have been prepared; two were handed out
    assert list(again) == whole[2:]
    assert list(again) == whole  # the next epoch starts at its beginning


def test_bad_sizes_are_refused():
    with pytest.raises(InputError, match="batch_size >= 1"):
        Scenes(batch_size=0)


def _ids(examples):
    return tuple(example.id for example in examples)
