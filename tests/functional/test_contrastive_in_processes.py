"""Contrastive losses of several processes together, against what official code gave for the whole batch."""

import pytest
import torch
from test_processes import _run as run
from torch.utils.checkpoint import checkpoint

from alignlab.functional import gather, hard_negative_info_nce, info_nce, normalize


def whole(case, *names):
    """Each input of all ranks, joined."""
    return [torch.tensor(sum([rank[name] for rank in case["inputs_per_rank"]], []), dtype=torch.float64)
            for name in names]  # fmt: skip


def check(seen, case, names):
    """The processes' losses, weighted by their queries, and gradients are those of the official full batch."""
    reference = case["full_batch_reference"]
    counts = [len(rank[names[0]]) for rank in case["inputs_per_rank"]]
    mean = sum(count * loss for count, (loss, *_) in zip(counts, seen, strict=True)) / sum(counts)
    assert mean == pytest.approx(reference["loss"], rel=1e-9)
    for place, name in enumerate(names, start=1):
        found = torch.tensor(sum([gradients[place] for gradients in seen], []), dtype=torch.float64) / sum(counts)
        expected = torch.tensor(reference["grads"][name], dtype=torch.float64)
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10, msg=name)


def own_rows(case, names, rank):
    tensors = whole(case, *names)
    counts = [{name: len(each[name]) for name in names} for each in case["inputs_per_rank"]]
    starts = {name: sum(each[name] for each in counts[:rank]) for name in names}
    return [
        tensor[starts[name] : starts[name] + counts[rank][name]].clone().requires_grad_()
        for name, tensor in zip(names, tensors, strict=True)
    ]


def llm2clip(rank, rows, case, names):
    inputs = own_rows(case, names, rank)
    queries, positives, *negatives = (normalize(each) for each in inputs)
    candidates, start = gather(positives)
    for each in negatives:
        candidates = torch.cat([candidates, gather(each)[0]])
    own = torch.arange(start, start + len(queries))
    loss = info_nce(queries, candidates, scale=case["params"]["scale"], labels=own)
    (loss * len(queries)).backward()
    return float(loss.detach()), *[each.grad.tolist() for each in inputs]


@pytest.mark.parametrize("name", ["W2_sizes3-3_neg", "W2_sizes2-4_neg", "W2_sizes2-4_noneg"])
def test_explicit_negatives_of_all_processes_serve_all_queries(name, golden, tmp_path):
    case = next(each for each in golden("contrastive/llm2clip_cc_multirank")["cases"] if each["name"] == name)
    names = tuple(case["inputs_per_rank"][0])
    sizes = [len(rank["q_reps"]) for rank in case["inputs_per_rank"]]
    check(run(llm2clip, sizes, tmp_path / "store", case, names), case, names)


def vlm2vec(rank, rows, case, names):
    x, y = own_rows(case, names, rank)
    targets, start = gather(y)
    each = len(y) // len(x)  # targets of a query, its own one first
    own = start + each * torch.arange(len(x))
    loss = info_nce(x, targets, scale=1 / case["params"]["temperature"], labels=own)
    (loss * len(x)).backward()
    return float(loss.detach()), x.grad.tolist(), y.grad.tolist()


@pytest.mark.parametrize("name", ["W2_targets1", "W2_targets2"])
def test_several_targets_a_query(name, golden, tmp_path):
    case = next(each for each in golden("contrastive/vlm2vec_multirank")["cases"] if each["name"] == name)
    sizes = [len(rank["x"]) for rank in case["inputs_per_rank"]]
    check(run(vlm2vec, sizes, tmp_path / "store", case, ("x", "y")), case, ("x", "y"))


def test_gradients_through_chunks_are_those_of_grad_cache(golden):
    """Chunks that are recomputed in the backward pass, as ``Contrastive.embed`` does, on the encoder of the record."""
    cases = [each for each in golden("contrastive/vlm2vec_GradCache")["cases"] if each["name"].startswith("chunk_")]
    assert len(cases) == 4
    for case in cases:
        x, y, w = (torch.tensor(case["inputs"][name], dtype=torch.float64) for name in ("queries", "targets", "W"))
        w.requires_grad_()
        encode = lambda rows, w=w: normalize(torch.tanh(rows @ w))  # noqa: E731
        size = case["params"]["chunk_sizes"][0]
        q, t = (torch.cat([checkpoint(encode, c, use_reentrant=False) for c in side.split(size)]) for side in (x, y))
        loss = info_nce(q, t, scale=1 / case["params"]["temperature"])
        loss.backward()
        assert loss.item() == pytest.approx(case["expected"]["loss"], rel=1e-9)
        expected = torch.tensor(case["expected"]["grads"]["W"], dtype=torch.float64)
        torch.testing.assert_close(w.grad, expected, rtol=1e-9, atol=1e-11)


def unime(rank, rows, case, names):
    x, y = own_rows(case, names, rank)
    targets, start = gather(y)
    settings = case["params"]
    loss = hard_negative_info_nce(
        x, targets, scale=1 / settings["temperature"], num_hard=settings["topk"], margin=settings["threshold_value"],
        labels=torch.arange(start, start + len(x)),
    )  # fmt: skip
    (loss * len(x)).backward()
    return float(loss.detach()), x.grad.tolist(), y.grad.tolist()


@pytest.mark.parametrize("name", ["W2_k2_beta0.1", "W2_k3_beta2.5"])
def test_hard_negatives_come_from_all_processes_and_train(name, golden, tmp_path):
    """The official class gives no gradient at all here; the reference is its loss on the whole batch."""
    case = next(each for each in golden("contrastive/unime_stage2_multirank")["cases"] if each["name"] == name)
    assert not case["expected_per_rank"][0]["official"]["loss_requires_grad"]
    check(run(unime, [4, 4], tmp_path / "store", case, ("x", "y")), case, ("x", "y"))
