"""Scenes: a procedural world of coloured shapes whose truth is known, with pictures, captions, negatives, questions."""

from alignlab.data.scenes.dataset import Scenes

__all__ = ["Scenes"]
