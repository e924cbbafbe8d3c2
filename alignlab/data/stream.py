"""Stream: examples that are read in order from shards, where they are too many to be indexed."""

from abc import ABC, abstractmethod
from collections.abc import Iterator

from alignlab.batch import Example


class Stream(ABC):
    """Examples that are read in order from shards, where they are too many to be indexed."""

    num_shards: int
    """Each process, and in it each worker, reads shards of its own."""

    @abstractmethod
    def shard(self, index: int) -> Iterator[Example]:
        """Examples of one shard, in its order; decoded on access."""
