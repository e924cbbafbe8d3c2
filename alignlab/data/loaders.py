"""loaders: torch's loader over examples, resumed inside an epoch, and what it loads from: a sequence or a stream."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from torch.utils.data import DataLoader, Dataset

from alignlab.batch import Batch, Example
from alignlab.data.readable import Readable

Encode = Callable[[list[Example]], Batch]


@dataclass(frozen=True)
class Chosen:
    """The examples of a batch.

    Args:
        skipped: Ids of those that others stand in for.
    """

    examples: list[Example]
    skipped: tuple[str, ...] = ()


class Indexed(Dataset):
    """Readable examples as torch's loader wants them, a batch at a time."""

    def __init__(self, examples: Readable) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitems__(self, indices: list[int]) -> Chosen:
        taken, found = set(indices), []
        for index in indices:
            found.append(self.examples.find(index, taken))
            taken.add(found[-1].place)
        return Chosen([each.example for each in found], tuple(id for each in found for id in each.skipped))


class Encoding:
    """Makes a batch of what was chosen; runs where the loader does.

    Args:
        encode: From examples to a batch.
    """

    def __init__(self, encode: Encode) -> None:
        self.encode = encode

    def __call__(self, chosen: Chosen) -> Batch:
        batch = self.encode(chosen.examples)
        return replace(batch, skipped=chosen.skipped) if chosen.skipped else batch


class ResumableLoader(DataLoader):
    """A loader that Lightning can checkpoint inside an epoch: its state is the number of batches handed out."""

    handed_out = 0

    def __iter__(self) -> Iterator[Batch]:
        self.handed_out = self.batch_sampler.start
        for batch in super().__iter__():
            self.handed_out += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"handed_out": self.handed_out % len(self)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.batch_sampler.start = state["handed_out"]
