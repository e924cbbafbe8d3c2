"""Contrastive: batches in chunks, their pictures with them."""

from dataclasses import replace

import pytest
import torch

from alignlab import InputError
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


class TestSplit:
    def test_rows_and_pictures_stay_together(self, tiny_backbone, examples):
        mixed = [replace(example, query=example.query if index % 3 else ("no picture",))
                 for index, example in enumerate(examples[:7])]  # fmt: skip
        tokens = tiny_backbone.encoder.batch(mixed, ("query",)).query
        assert tokens.num_images.tolist() == [0, 1, 1, 0, 1, 1, 0] and len(tokens.vision["pixel_values"]) == 4
        parts = tokens.split(3)
        assert [len(part) for part in parts] == [3, 3, 1]
        assert [len(part.vision["pixel_values"]) for part in parts] == [2, 2, 0]
        assert torch.equal(torch.cat([part.vision["pixel_values"] for part in parts]), tokens.vision["pixel_values"])
        assert torch.equal(torch.cat([part.input_ids for part in parts]), tokens.input_ids)

    def test_pictures_in_patches_are_cut_by_their_grid(self, tiny_backbone, examples):
        tokens = tiny_backbone.encoder.batch(examples[:3], ("query",)).query
        grid = torch.tensor([[1, 2, 2], [1, 1, 3], [1, 2, 1]])
        patches = torch.arange(9)[:, None]
        split = replace(tokens, vision={"pixel_values": patches, "image_grid_thw": grid}).split(2)
        assert [part.vision["pixel_values"].flatten().tolist() for part in split] == [[0, 1, 2, 3, 4, 5, 6], [7, 8]]
        assert [len(part.vision["image_grid_thw"]) for part in split] == [2, 1]

    def test_what_stands_beside_every_token_goes_with_its_row(self, tiny_backbone, examples):
        tokens = tiny_backbone.encoder.batch(examples[:3], ("query",)).query
        kinds = torch.arange(tokens.input_ids.numel()).reshape(tokens.input_ids.shape)
        parts = replace(tokens, vision={**tokens.vision, "token_type_ids": kinds, "flag": True}).split(2)
        assert torch.equal(parts[1].vision["token_type_ids"], kinds[2:]) and parts[1].vision["flag"] is True

    def test_a_number_that_fits_by_chance_is_refused(self, tiny_backbone, examples):
        tokens = tiny_backbone.encoder.batch(examples[:3], ("query",)).query
        # As many pictures as samples, but not one each: a value for each sample would go with the wrong ones.
        uneven = replace(tokens, num_images=torch.tensor([0, 2, 1]))
        with pytest.raises(InputError, match="not known whose the 3 rows of its ages are"):
            replace(uneven, vision={"ages": torch.tensor([10, 20, 30])}).split(1)
        parts = replace(uneven, vision={"pixel_values": torch.tensor([10, 20, 30])}).split(1)
        assert [part.vision["pixel_values"].tolist() for part in parts] == [[], [10, 20], [30]]

    def test_rows_of_nobody_are_refused(self, tiny_backbone, examples):
        tokens = tiny_backbone.encoder.batch(examples[:3], ("query",)).query
        with pytest.raises(InputError, match="not known whose the 5 rows of its mystery are"):
            replace(tokens, vision={"mystery": torch.zeros(5)}).split(2)
