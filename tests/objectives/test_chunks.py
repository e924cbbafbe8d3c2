"""Contrastive: batches in chunks, their pictures with them."""

from dataclasses import replace

import pytest
import torch

from alignlab import InputError
from alignlab.backbones.tiny import make_exact
from alignlab.objectives import InfoNCE


def test_a_chunk_size_below_one_is_refused(tiny_backbone):
    with pytest.raises(InputError, match="InfoNCE needs chunk_size >= 1"):
        InfoNCE(tiny_backbone, chunk_size=0)


def test_only_a_chunk_is_encoded_at_a_time_and_each_twice(tiny_backbone64, examples):
    objective = InfoNCE(tiny_backbone64, chunk_size=3)
    sizes = []
    tiny_backbone64.model.get_decoder().register_forward_pre_hook(
        lambda module, given, named: sizes.append(len(named["inputs_embeds"])), with_kwargs=True
    )
    batch = tiny_backbone64.encoder.batch(examples[:8], objective.requires)
    loss = objective.loss(batch).mean
    assert sizes == [3, 3, 2] * 2  # queries, targets
    loss.backward()
    assert sorted(sizes[6:]) == sorted([3, 3, 2] * 2)
    with torch.no_grad():
        objective.loss(batch)
    assert len(sizes) == 18  # nothing to recompute


def gradients_of(objective, batch, autocast=False):
    objective.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = objective.loss(batch).mean
    loss.backward()
    found = {name: p.grad.clone() for name, p in objective.named_parameters() if p.grad is not None}
    return loss.detach(), found


def relative(found, expected):
    """The largest deviation of a gradient, in shares of its own size, or of a millionth of all gradients'."""
    assert found.keys() == expected.keys()
    floor = 1e-6 * torch.stack([g.norm() for g in expected.values()]).norm()
    return max(float((found[n] - g).norm() / g.norm().clamp(min=floor)) for n, g in expected.items())


def test_chunks_and_gradient_checkpointing_go_together(tiny_backbone64, examples):
    make_exact(tiny_backbone64.model)
    objective = InfoNCE(tiny_backbone64).double()
    batch = tiny_backbone64.encoder.batch(examples[:7], objective.requires)
    loss, expected = gradients_of(objective, batch)
    objective.chunk_size = 3
    tiny_backbone64.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    tiny_backbone64.train()
    again, found = gradients_of(objective, batch)
    torch.testing.assert_close(again, loss, rtol=1e-12, atol=0)
    assert relative(found, expected) < 1e-10


def test_chunks_in_mixed_precision_are_as_near_to_the_whole_as_rounding_allows(tiny_backbone, examples):
    objective = InfoNCE(tiny_backbone, scale=5.0)
    batch = tiny_backbone.encoder.batch(examples[:7], objective.requires)
    _, exact = gradients_of(objective, batch)
    _, whole = gradients_of(objective, batch, autocast=True)
    objective.chunk_size = 3
    _, chunks = gradients_of(objective, batch, autocast=True)
    assert relative(chunks, whole) < 0.5 * relative(whole, exact) + 0.02
    assert all(gradient.dtype == torch.float32 for gradient in chunks.values())


@pytest.fixture
def contents(examples):
    """Seven of unlike lengths: without a picture, with one, with two; the longest neither first nor last."""
    first, second, third = (example.images[0] for example in examples[:3])
    return [
        ("a red circle",),
        (first, "a blue square"),
        ("a small red circle left of a large green triangle above a tiny yellow box",),
        (second, "a cross left of", third, "a small blue square right of the yellow disc"),
        ("no",),
        (third, "which of the two objects is large"),
        ("is there a small blue square",),
    ]


class TestLikeLengths:
    @pytest.fixture
    def exact(self, tiny_backbone64):
        make_exact(tiny_backbone64.model)
        return tiny_backbone64

    @pytest.mark.parametrize("side", ["left", "right"])
    @pytest.mark.parametrize("size", [1, 2, 3, 6])
    @pytest.mark.parametrize("kind", ["texts", "pictures", "both"])
    def test_chunks_give_the_embeddings_and_gradients_of_the_whole(self, exact, contents, kind, size, side):
        pictured = [any(not isinstance(part, str) for part in content) for content in contents]
        wanted = {"texts": {False}, "pictures": {True}, "both": {False, True}}[kind]
        exact.encoder.padding_side = side
        tokens = exact.encoder.contents([e for e, has in zip(contents, pictured, strict=True) if has in wanted])
        direction = torch.randn(len(tokens), 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        seen = []
        for chunk_size in (None, size):
            objective = InfoNCE(exact, chunk_size=chunk_size)
            embeddings = objective.embed(tokens)
            objective.zero_grad()
            (embeddings * direction).sum().backward()
            gradients = [p.grad.flatten() for p in objective.parameters() if p.grad is not None]
            seen.append((embeddings.detach(), torch.cat(gradients)))
        (whole, expected), (chunked, found) = seen
        assert (chunked - whole).abs().max() < 1e-12
        assert (found - expected).norm() < 1e-12 * expected.norm()

    @pytest.mark.parametrize("side", ["left", "right"])
    def test_a_chunk_is_as_wide_as_its_longest_sequence(self, tiny_backbone, contents, side):
        tiny_backbone.encoder.padding_side = side
        tokens = tiny_backbone.encoder.contents(contents)
        widths = []
        tiny_backbone.model.get_decoder().register_forward_pre_hook(
            lambda module, given, named: widths.append(named["inputs_embeds"].shape[1]), with_kwargs=True
        )
        with torch.no_grad():
            InfoNCE(tiny_backbone, chunk_size=3).embed(tokens)
        lengths = sorted(tokens.attention_mask.sum(1).tolist(), reverse=True)
        assert widths == [lengths[0], lengths[3], lengths[6]]
        assert tokens.input_ids.shape[1] == widths[0] > widths[1] > widths[2]


def test_a_batch_of_one_chunk_is_recomputed_too(tiny_backbone64, examples):
    """Or the activations of all its sides would be kept at once, more than those of a larger batch."""
    batch = tiny_backbone64.encoder.batch(examples[:4], InfoNCE.requires)
    passes = []
    tiny_backbone64.model.get_decoder().register_forward_pre_hook(lambda *given: passes.append(1))
    InfoNCE(tiny_backbone64, chunk_size=4).loss(batch).mean.backward()
    assert len(passes) == 4  # queries and targets, twice each


class TestSelect:
    def test_rows_and_pictures_stay_together(self, tiny_backbone, contents):
        tokens = tiny_backbone.encoder.contents(contents)
        assert tokens.num_images.tolist() == [0, 1, 0, 2, 0, 1, 0] and len(tokens.vision["pixel_values"]) == 4
        chosen = tokens.select(torch.tensor([5, 2, 3, 1]))
        assert torch.equal(chosen.vision["pixel_values"], tokens.vision["pixel_values"][[3, 1, 2, 0]])
        assert torch.equal(chosen.input_ids, tokens.input_ids[[5, 2, 3, 1]])
        assert torch.equal(chosen.image_mask, tokens.image_mask[[5, 2, 3, 1]])
        assert chosen.num_images.tolist() == [1, 0, 2, 1]

    def test_texts_alone_have_no_pictures_tensors(self, tiny_backbone, contents):
        tokens = tiny_backbone.encoder.contents(contents)
        alone = tiny_backbone.encoder.contents([contents[6], contents[0]])
        chosen = tokens.select(torch.tensor([6, 0]))
        assert chosen.vision == alone.vision == {}
        assert torch.equal(chosen.input_ids, alone.input_ids)

    @pytest.mark.parametrize("side", ["left", "right"])
    def test_shared_padding_goes_and_no_other(self, tiny_backbone, contents, side):
        tiny_backbone.encoder.padding_side = side
        tokens, alone = (tiny_backbone.encoder.contents(each) for each in (contents, [contents[1], contents[4]]))
        kinds = torch.arange(tokens.input_ids.numel()).reshape(tokens.input_ids.shape)
        tokens = replace(tokens, vision={**tokens.vision, "token_type_ids": kinds, "flag": True})
        chosen = tokens.select(torch.tensor([1, 4]))
        for name in ("input_ids", "attention_mask", "labels", "image_mask"):
            assert torch.equal(getattr(chosen, name), getattr(alone, name)), name
        width = alone.input_ids.shape[1]
        columns = slice(-width, None) if side == "left" else slice(width)
        assert torch.equal(chosen.vision["token_type_ids"], kinds[[1, 4], columns])
        assert chosen.vision["flag"] is True

    def test_pictures_in_patches_are_cut_by_their_grid(self, tiny_backbone, examples):
        tokens = tiny_backbone.encoder.batch(examples[:3], ("query",)).query
        grid = torch.tensor([[1, 2, 2], [1, 1, 3], [1, 2, 1]])
        tokens = replace(tokens, vision={"pixel_values": torch.arange(9)[:, None], "image_grid_thw": grid})
        chosen = tokens.select(torch.tensor([2, 0])).vision
        assert chosen["pixel_values"].flatten().tolist() == [7, 8, 0, 1, 2, 3]
        assert torch.equal(chosen["image_grid_thw"], grid[[2, 0]])

    def test_lists_are_cut_as_tensors_are(self, tiny_backbone, contents):
        tokens = tiny_backbone.encoder.contents(contents)
        tokens = replace(tokens, vision={"image_names": ["a", "b", "c", "d"]})
        assert tokens.select(torch.tensor([3, 1])).vision == {"image_names": ["b", "c", "a"]}

    def test_a_number_that_fits_by_chance_is_refused(self, tiny_backbone, examples):
        tokens = tiny_backbone.encoder.batch(examples[:3], ("query",)).query
        # As many pictures as samples, but not one each: a value for each sample would go with the wrong ones.
        uneven = replace(tokens, num_images=torch.tensor([0, 2, 1]))
        with pytest.raises(InputError, match="not known whose the 3 rows of its ages are"):
            replace(uneven, vision={"ages": torch.tensor([10, 20, 30])}).select(torch.tensor([0]))
        pictured = replace(uneven, vision={"pixel_values": torch.tensor([10, 20, 30])})
        chosen = [pictured.select(torch.tensor([row])).vision for row in range(3)]
        assert [{key: value.tolist() for key, value in vision.items()} for vision in chosen] == [
            {}, {"pixel_values": [10, 20]}, {"pixel_values": [30]}
        ]  # fmt: skip

    def test_rows_of_nobody_are_refused(self, tiny_backbone, examples):
        tokens = tiny_backbone.encoder.batch(examples[:3], ("query",)).query
        with pytest.raises(InputError, match="not known whose the 5 rows of its mystery are"):
            replace(tokens, vision={"mystery": torch.zeros(5)}).select(torch.tensor([0, 1]))
