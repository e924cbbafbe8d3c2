"""gather and total: what several processes compute together is what one computes alone."""

import pytest
import torch
from torch import distributed

from alignlab.functional import gather, total


def test_alone_everything_is_as_it_was():
    rows = torch.randn(3, 2)
    joined, start = gather(rows)
    assert joined is rows and start == 0
    assert total(3.0) == 3


def _work(rank, sizes, store, queue):
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=len(sizes))
    start = sum(sizes[:rank])
    everything = torch.arange(sum(sizes) * 2, dtype=torch.float64).reshape(-1, 2) + 1
    own = everything[start : start + sizes[rank]].clone().requires_grad_()
    joined, place = gather(own)
    # Each process's loss weighs the rows differently, so that a gradient that forgets a process is another one.
    ((rank + 1) * joined**2).sum().backward()
    queue.put((rank, place, joined.tolist(), own.grad.tolist(), float(total(len(own)))))
    distributed.destroy_process_group()


@pytest.mark.parametrize("sizes", [(2, 2), (3, 1), (1, 0, 2)])
def test_several_processes_hold_all_rows_and_sum_their_gradients(sizes, tmp_path):
    context = torch.multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    workers = [
        context.Process(target=_work, args=(rank, sizes, tmp_path / "store", queue)) for rank in range(len(sizes))
    ]
    for worker in workers:
        worker.start()
    seen = dict((rank, rest) for rank, *rest in (queue.get() for _ in sizes))
    for worker in workers:
        worker.join()
    everything = torch.arange(sum(sizes) * 2, dtype=torch.float64).reshape(-1, 2) + 1
    factor = sum(range(1, len(sizes) + 1))
    for rank, (place, joined, gradient, count) in seen.items():
        start = sum(sizes[:rank])
        assert place == start and joined == everything.tolist() and count == sum(sizes)
        assert gradient == (2 * factor * everything[start : start + sizes[rank]]).tolist()
