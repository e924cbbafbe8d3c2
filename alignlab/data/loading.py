"""Loading: the settings that all data modules take, each by its name."""

from typing import Literal, TypedDict

MAX_PIXELS = 89_478_485
"""Pillow's own limit, a quarter of a gibibyte of bytes in RGB."""


class Loading(TypedDict, total=False):
    """What a data module takes beside its own settings and hands on to ``AlignmentData``, which says what they are.

    def __init__(self, *, path: str, **loading: Unpack[Loading]) -> None:
        super().__init__(**loading)
    """

    batch_size: int
    num_workers: int
    unreadable: Literal["stop", "skip"]
    max_pixels: int
    group_by_length: bool
    shuffle_buffer: int
    embeddings: str | None
    mined: str | None
