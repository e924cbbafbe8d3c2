"""Data given as they are, for tests of evaluators."""

from collections.abc import Sequence
from dataclasses import fields

import torch

from alignlab.backbones import Backbone
from alignlab.batch import Example
from alignlab.data import AlignmentData, Scenes


class Listed(AlignmentData):
    """Some examples as every split, unless the training ones are others."""

    supplies = tuple(field.name for field in fields(Example))
    objects = Scenes.objects

    def __init__(self, examples: Sequence[Example], train: Sequence[Example] | None = None) -> None:
        super().__init__()
        self.listed, self.train_listed = examples, examples if train is None else train

    def examples(self, split):
        return self.train_listed if split == "train" else self.listed


class Colored(Listed):
    attributes = {"color": ("red", "blue"), "size": ("small",)}
    canonical = {"crimson": "red", "tiny": "small"}
    caption_prompt = "what color is the cross ?"


class Fixed(Backbone):
    """Points at a fixed place for each word; at the upper left corner for words without one."""

    at: dict[str, tuple[float, float]] = {}

    def points(self, tokens):
        places = {self.encoder.tokenizer.convert_tokens_to_ids(word): place for word, place in self.at.items()}
        return torch.tensor([[places.get(id, (0.0, 0.0)) for id in row] for row in tokens.input_ids.tolist()])
