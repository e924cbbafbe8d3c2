"""Kept patches take in dropped ones: recorded values of the official code, loops, and who sees whom."""

import pytest
import torch
from tokenizing import MERGER_BLOCK, attention, blocks, enlarge, features, tensors
from torch.nn import functional as F

from alignlab.errors import InputError
from alignlab.modules.tokenizer import Merger
from alignlab.modules.tokenizer.attention import Attention, visible_softmax, weighing
from alignlab.modules.tokenizer.merger import earlier

MASK = torch.tensor([[1, 0, 0, 1, 1, 0, 1, 0, 0], [0, 0, 0, 0, 0, 0, 0, 1, 0], [1] * 9]).double()
"""Some are kept, one, all."""


def merger(**settings):
    torch.manual_seed(0)
    made = Merger(16, **{"depth": 2, "num_heads": 2, "mlp_ratio": 2.0} | settings).double()
    enlarge(made)
    return made


@pytest.mark.parametrize("index", range(3))
def test_it_is_the_official_one_without_exact_masking(golden, index):
    case = golden("adapters_tokenizer/lavit_token_merger")["cases"][index]
    given, sizes = tensors(case["inputs"]), case["config"]
    x, mask = given["x"].requires_grad_(), given["decisions"].requires_grad_()
    expected = tensors(case["expected"])

    hidden = 1 - mask[:, None, None]
    for name, source, visibility in (("causal", x, earlier(mask)), ("cross", given["x_origin"], hidden)):
        part = Attention(sizes["dim"], sizes["num_heads"])
        part.load_state_dict(attention(tensors(case["weights"][name])))
        found = part(x, source, weighing(visibility, exact=False))
        wanted = expected[f"{name}_attention(x{', x_origin' if name == 'cross' else ''})"]
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)

    whole = Merger(sizes["dim"], depth=sizes["depth"], num_heads=sizes["num_heads"], mlp_ratio=sizes["mlp_ratio"],
                   exact_masking=False)  # fmt: skip
    whole.load_state_dict(blocks(tensors(case["weights"]["merger"]), MERGER_BLOCK))
    found = whole.dense(x, mask)
    torch.testing.assert_close(found, expected["token_merger(x)"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(whole(x, mask), found[mask.bool()])
    (found * given["cotangent"]).sum().backward()
    for name, gradient in tensors(case["expected_grads"]).items():
        torch.testing.assert_close((x if name == "x" else mask).grad, gradient, rtol=1e-4, atol=1e-5)


def test_the_official_softmax(golden):
    case = golden("adapters_tokenizer/lavit_token_merger")["cases"][3]
    given, expected = tensors(case["inputs"]), tensors(case["expected"])
    logits, mask = given["attn"], given["decisions"]
    nothing = torch.zeros_like(mask)
    for name, visibility in {
        "causal": earlier(mask),
        "cross": 1 - mask[:, None, None],
        "cross_when_nothing_dropped": nothing[:, None, None],
        "causal_when_nothing_kept": earlier(nothing),
    }.items():
        found = visible_softmax(logits, visibility, exact=False)
        torch.testing.assert_close(found, expected.pop(name), rtol=1e-4, atol=1e-6)
    assert not expected


def test_exact_masking_by_hand():
    # Two visible keys with weights 1 : 3; the hidden one, far above them, counts for nothing.
    logits = torch.tensor([0.0, 90.0, 3.0]).double()[None, None, None]
    logits[..., 2] = torch.tensor(3.0).log()
    visible = torch.tensor([1.0, 0.0, 1.0]).double()[None, None, None]
    assert visible_softmax(logits, visible, exact=True).flatten().tolist() == pytest.approx([0.25, 0.0, 0.75])
    leaked = visible_softmax(logits, visible, exact=False).flatten()
    assert leaked.tolist() == pytest.approx([1 / 3] * 3)
    none = torch.zeros_like(visible)
    assert visible_softmax(logits, none, exact=True).tolist() == none.tolist()


def loops(made, x, mask):
    """What the equations say, patch by patch and head by head, of kept patches alone."""
    rows = []
    for picture, keep in zip(x, mask.bool(), strict=True):
        source = list(made.source_norm(picture)[~keep])
        states = list(picture[keep])
        for block in made.blocks:
            normed = [block.kept_norm(each) for each in states]
            states = [
                state + read(block.kept, normed[place], normed[: place + 1]) for place, state in enumerate(states)
            ]
            if source:
                states = [state + read(block.dropped, block.dropped_norm(state), source) for state in states]
            states = [state + block.mlp(block.mlp_norm(state)) for state in states]
        rows += [made.norm(state) for state in states]
    return torch.stack(rows)


def read(part, x, source):
    width = len(x) // part.num_heads
    found = []
    for head in range(part.num_heads):
        own = slice(head * width, (head + 1) * width)
        query, keys = part.query(x)[own], [part.key(each)[own] for each in source]
        weights = torch.stack([query @ key / width**0.5 for key in keys]).softmax(0)
        found.append(sum(weight * part.value(each)[own] for weight, each in zip(weights, source, strict=True)))
    return part.out(torch.cat(found))


@pytest.mark.parametrize("mask", [MASK, MASK[2:], MASK[1:2], MASK[:1]])
def test_gathered_and_dense_and_loops_agree_in_values_and_gradients(mask):
    made, found = merger(), []
    cotangent = torch.randn(int(mask.sum()), 16).double()
    for way in (made, lambda x, mask: made.dense(x, mask)[mask.bool()], lambda x, mask: loops(made, x, mask)):
        made.zero_grad()
        x = features(len(mask)).requires_grad_()
        rows = way(x, mask)
        (rows * cotangent).sum().backward()
        gradients = {name: each.grad for name, each in made.named_parameters() if each.grad is not None}
        found.append([rows.detach(), x.grad, gradients])
    gathered, dense, looped = found
    for other in (dense, looped):
        torch.testing.assert_close(gathered[:2], other[:2], rtol=0, atol=1e-12)
        for name, gradient in gathered[2].items():
            expected = other[2].get(name, torch.zeros_like(gradient))  # loops: nothing is dropped anywhere
            torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-11)


def test_a_mask_that_needs_a_gradient_gives_the_same_rows():
    made, x = merger(), features()
    free = MASK.clone().requires_grad_()
    rows = made(x, free)
    torch.testing.assert_close(rows, made(x, MASK), rtol=0, atol=1e-12)
    rows.square().sum().backward()
    assert free.grad.isfinite().all() and (free.grad[0] != 0).all()


def test_a_row_sees_kept_ones_before_it_and_all_dropped_ones():
    made, x = merger(), features(1)
    keep = [0, 3, 4, 6]
    expected = made(x, MASK[:1])
    for place in range(9):
        changed = x.clone()
        changed[0, place, :8] += 1.0
        moved = ((made(changed, MASK[:1]) - expected).abs() > 1e-9).any(1).tolist()
        assert moved == ([each >= place for each in keep] if place in keep else [True] * 4)


def test_pictures_do_not_act_on_one_another():
    made, x = merger(), features()
    rows = made(x, MASK).split([4, 1, 9])
    for index in range(3):
        alone = made(x[index : index + 1], MASK[index : index + 1])
        torch.testing.assert_close(rows[index], alone, rtol=0, atol=1e-12)


def test_nothing_dropped_adds_nothing():
    made, x = merger(), features(2)
    expected = made(x, torch.ones(2, 9).double())
    for block in made.blocks:
        torch.nn.init.constant_(block.dropped.out.bias, 7.0)
        torch.nn.init.constant_(block.dropped.value.bias, 7.0)
    for way in (made(x, torch.ones(2, 9).double()), made.dense(x, torch.ones(2, 9).double()).flatten(0, 1)):
        torch.testing.assert_close(way, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("num_pictures", [0, 2])
def test_all_weights_have_a_gradient_where_nothing_is_dropped(num_pictures):
    # Else a process that keeps everything would have none where others do, and DDP would wait for it.
    made = merger()
    made(features(num_pictures), torch.ones(num_pictures, 9).double()).square().sum().backward()
    assert all(each.grad is not None for each in made.parameters())
    assert not any(each.grad.any() for name, each in made.named_parameters() if "source" in name or "dropped" in name)


def test_one_kept_patch_by_hand():
    # One block whose attentions pass values on: x + v(norm x) + mean of v(norm dropped), then the last norm.
    made = Merger(4, depth=1, num_heads=1, mlp_ratio=1.0).double()
    (block,) = made.blocks
    for part in (block.kept, block.dropped):
        for linear in (part.query, part.key, part.value, part.out):
            torch.nn.init.zeros_(linear.weight)
        torch.nn.init.eye_(part.value.weight)
        torch.nn.init.eye_(part.out.weight)
    torch.nn.init.zeros_(block.mlp[2].weight)
    x = features(1, dim=4, num_patches=3)
    normed = F.layer_norm(x[0], (4,))
    expected = F.layer_norm(x[0, 1] + normed[1] + (normed[0] + normed[2]) / 2, (4,))
    torch.testing.assert_close(made(x, torch.tensor([[0.0, 1.0, 0.0]]).double())[0], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_finite_where_hidden_keys_are_far_above(dtype):
    logits = torch.tensor([0.0, 3e4, 1.0, -3e4]).to(dtype).expand(1, 2, 4, 4).requires_grad_()
    mask = torch.tensor([[1.0, 0.0, 1.0, 1.0]], requires_grad=True)
    nothing = torch.zeros(1, 4, requires_grad=True)
    for leaf, visibility in (
        (mask, earlier(mask)), (mask, 1 - mask[:, None, None]), (nothing, nothing[:, None, None])
    ):  # fmt: skip
        weights = visible_softmax(logits, visibility, exact=True)
        assert weights.dtype == torch.float32
        gradients = torch.autograd.grad((weights * torch.randn_like(weights)).sum(), [logits, leaf])
        assert all(each.isfinite().all() and each.abs().max() < 100 for each in gradients)


def test_the_gradient_of_a_visibility_is_that_of_the_softmax():
    logits = torch.randn(1, 1, 3, 4).double().requires_grad_()
    visibility = torch.tensor([[[[1.0, 0.6, 0.9, 1.0]]]]).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda *given: visible_softmax(*given, exact=True), (logits, visibility))


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(InputError, match="num_heads that divides the width 16, got 3"):
        merger(num_heads=3)
    with pytest.raises(InputError, match="mlp_ratio 0.01 leaves nothing of the width 16"):
        merger(mlp_ratio=0.01)
