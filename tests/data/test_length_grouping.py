"""Batches of examples of about one length: what is padded falls, and nothing else changes."""

import pytest
import torch

from alignlab import InputError
from alignlab.batch import Batch, Example
from alignlab.data import AlignmentData, Scenes
from alignlab.data.lengths import PICTURE, estimated_length
from alignlab.data.order import ShuffledBatches

LENGTHS = (torch.rand(1000, generator=torch.Generator().manual_seed(0)) ** 3 * 1000).long().tolist()


class Texts(AlignmentData):
    """Captions of mixed lengths."""

    supplies = ("query", "target")

    def examples(self, split):
        return [Example(str(place), target=("x" * length,)) for place, length in enumerate(LENGTHS)]


def order(*, lengths=LENGTHS, batch_size=8, rank=0, processes=1, seed=0, epoch=0, start=0):
    batches = ShuffledBatches(1000, batch_size, seed=seed, rank=rank, processes=processes, lengths=lengths, who="Data")
    batches.set_epoch(epoch)
    batches.start = start
    return list(batches)


def padding(batches):
    """Share of a batch that is padding, over all batches."""
    lengths = [[LENGTHS[index] for index in batch] for batch in batches]
    return 1 - sum(map(sum, lengths)) / sum(len(each) * max(each) for each in lengths)


def test_what_is_padded_falls():
    assert padding(order(lengths=None)) > 0.5 and padding(order()) < 0.12


def test_every_example_comes_once_in_an_order_that_changes():
    flat = [index for batch in order() for index in batch]
    assert sorted(flat) == list(range(1000))
    assert order() == order() != order(epoch=1) and order() != order(seed=1)
    means = [sum(LENGTHS[index] for index in batch) for batch in order()]
    assert means != sorted(means)  # batches of all lengths come in any order


def test_processes_share_no_example_and_are_of_one_length_at_a_step():
    ranks = [order(batch_size=4, processes=2, rank=rank) for rank in (0, 1)]
    assert not {index for batch in ranks[0] for index in batch} & {index for batch in ranks[1] for index in batch}
    longest = [[max(LENGTHS[index] for index in batch) for batch in batches] for batches in ranks]
    assert sum(abs(one - other) for one, other in zip(*longest, strict=True)) / len(longest[0]) < 10
    assert sum(map(sum, longest)) == pytest.approx(2 * sum(longest[0]), rel=0.02)
    assert {frozenset(one + other) for one, other in zip(*ranks, strict=True)} == {frozenset(b) for b in order()}


def test_an_epoch_goes_on_where_it_stopped():
    assert order(start=7) == order()[7:]


def test_the_setting_reaches_the_loader():
    data = Texts(batch_size=8, group_by_length=True)
    data.connect(lambda examples: Batch(tuple(example.id for example in examples)))
    assert [[int(id) for id in batch.ids] for batch in data.train_dataloader()] == order()


def test_a_picture_counts_as_so_many_characters_and_the_conversation_goes_first():
    pictured = Example.answering("a", Scenes(num_train=1).examples("train")[0].images[0], "four", "five5")
    assert estimated_length(pictured) == PICTURE + 9
    assert estimated_length(Example("b", query=("ab",), target=("abc",))) == 5


def test_neighbours_that_stay_together_are_not_grouped_by_length():
    data = Scenes(num_train=64, duplicates=0.5, batch_size=8, group_by_length=True)
    data.connect(list)
    with pytest.raises(InputError, match="its neighbours stay together, which group_by_length would part"):
        data.train_dataloader()
