"""gather and total: what several processes compute together is what one computes alone."""

import pytest
import torch
from torch import distributed

from alignlab.certificate.children import preload, run_children
from alignlab.functional import gather, info_nce, sigmoid_contrastive, total


def test_alone_everything_is_as_it_was():
    rows = torch.randn(3, 2)
    joined, start = gather(rows)
    assert joined is rows and start == 0
    assert total(3.0) == 3


def _run(work, sizes, store, *arguments):
    """What a function gives in each of several processes, by rank."""
    preload()
    given = [(work, rank, sizes, store, arguments) for rank in range(len(sizes))]
    return [each["seen"] for each in run_children(_one, given)]


def _one(work, rank, sizes, store, arguments):
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=len(sizes))
    start = sum(sizes[:rank])
    seen = work(rank, slice(start, start + sizes[rank]), *arguments)
    distributed.destroy_process_group()
    return {"seen": seen}


def _weigh_rows(rank, rows, everything):
    own = everything[rows].clone().requires_grad_()
    joined, place = gather(own)
    # Each process's loss weighs the rows differently, so that a gradient that forgets a process is another one.
    ((rank + 1) * joined**2).sum().backward()
    return place, joined.tolist(), own.grad.tolist(), float(total(len(own)))


@pytest.mark.parametrize("sizes", [(2, 2), (3, 1), (1, 0, 2)])
def test_several_processes_hold_all_rows_and_sum_their_gradients(sizes, tmp_path):
    everything = torch.arange(sum(sizes) * 2, dtype=torch.float64).reshape(-1, 2) + 1
    factor = sum(range(1, len(sizes) + 1))
    for rank, (place, joined, gradient, count) in enumerate(_run(_weigh_rows, sizes, tmp_path / "store", everything)):
        start = sum(sizes[:rank])
        assert place == start and joined == everything.tolist() and count == sum(sizes)
        assert gradient == (2 * factor * everything[start : start + sizes[rank]]).tolist()


def _clip(rank, rows, images, texts, scale):
    images, texts = (each[rows].clone().requires_grad_() for each in (images, texts))
    scale = torch.tensor(scale, dtype=torch.float64, requires_grad=True)
    all_images, start = gather(images)
    all_texts, _ = gather(texts)
    own = torch.arange(start, start + len(images))
    mean = (
        info_nce(images, all_texts, scale=scale, labels=own) + info_nce(texts, all_images, scale=scale, labels=own)
    ) / 2
    (mean * len(images)).backward()
    return float(mean.detach()), images.grad.tolist(), texts.grad.tolist(), float(scale.grad)


@pytest.mark.parametrize("sizes", [(3, 3), (4, 2), (3, 3, 3), (1, 6, 2)])
def test_clip_in_several_processes_is_open_clip_s_on_the_whole_batch(sizes, golden, tmp_path):
    recorded = golden("contrastive/open_clip_ClipLoss_multirank")
    case = next(each for each in recorded["cases"] if each["name"] == f"W{len(sizes)}_local1_gathergrad1")
    images, texts = (
        torch.tensor(sum([rank[name] for rank in case["inputs_per_rank"]], []), dtype=torch.float64)
        for name in ("image_features", "text_features")
    )
    seen = _run(_clip, sizes, tmp_path / "store", images, texts, case["params"]["logit_scale"])
    whole, count = case["full_batch_reference"], sum(sizes)
    close = lambda value: pytest.approx(value, rel=1e-9, abs=1e-11)  # noqa: E731
    assert sum(mean * size for (mean, *_), size in zip(seen, sizes, strict=True)) / count == close(whole["loss"])
    for index, name in ((1, "image_features"), (2, "text_features")):
        rows = sum([each[index] for each in seen], [])
        assert [value / count for row in rows for value in row] == close(sum(whole["grads"][name], []))
    assert sum(each[3] for each in seen) / count == close(whole["grads"]["logit_scale"])


def _siglip(rank, rows, images, texts, scale, bias):
    images, texts = (each[rows].clone().requires_grad_() for each in (images, texts))
    scale, bias = (torch.tensor(each, dtype=torch.float64, requires_grad=True) for each in (scale, bias))
    joined, start = gather(texts)
    others = torch.cat([joined[:start], joined[start + len(texts) :]])
    mean = sigmoid_contrastive(images, texts, scale=scale, bias=bias)
    mean = mean + sigmoid_contrastive(images, others, scale=scale, bias=bias, negatives_only=True)
    (mean * len(images)).backward()
    return float(mean.detach()), images.grad.tolist(), texts.grad.tolist(), float(scale.grad), float(bias.grad)


@pytest.mark.parametrize("sizes", [(3, 3), (4, 2), (3, 3, 3), (1, 6, 2)])
def test_siglip_in_several_processes_is_open_clip_s_on_the_whole_batch(sizes, golden, tmp_path):
    recorded = golden("contrastive/open_clip_SigLipLoss_multirank")
    case = next(each for each in recorded["cases"] if each["name"] == f"W{len(sizes)}_bidir")
    images, texts = (
        torch.tensor(sum([rank[name] for rank in case["inputs_per_rank"]], []), dtype=torch.float64)
        for name in ("image_features", "text_features")
    )
    given = case["params"]
    seen = _run(_siglip, sizes, tmp_path / "store", images, texts, given["logit_scale"], given["logit_bias"])
    whole, count = case["full_batch_reference"], sum(sizes)
    close = lambda value: pytest.approx(value, rel=1e-9, abs=1e-11)  # noqa: E731
    if len(set(sizes)) == 1:  # the recorded processes had as many each
        assert [mean for mean, *_ in seen] == close([each["loss"] for each in case["expected_per_rank"]])
    assert sum(mean * size for (mean, *_), size in zip(seen, sizes, strict=True)) / count == close(whole["loss"])
    for index, name in ((1, "image_features"), (2, "text_features")):
        rows = sum([each[index] for each in seen], [])
        assert [value / count for row in rows for value in row] == close(sum(whole["grads"][name], []))
    for index, name in ((3, "logit_scale"), (4, "logit_bias")):
        assert sum(each[index] for each in seen) / count == close(whole["grads"][name])
