"""pairs: what ``alignlab pairs`` does: pairs of a backbone's answers, to its pictures and to corrupted ones."""

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import mean, median
from typing import Any, Literal

from jsonargparse import ArgumentParser
from torch.utils.data import Subset

from alignlab.backbones import Backbone, DualEncoder
from alignlab.batch import Example, Turn
from alignlab.data import AlignmentData, Corruption, DiffusionNoise, Split, build_pairs
from alignlab.data.base import check_listed, check_supplies
from alignlab.data.pairs import Pair, cleaned, seva_cleaned, trl_row, write_parquet
from alignlab.errors import InputError
from alignlab.experiment.answering import Answer, Asking, answer_split, answers_in, prompt_of, refuse_other, unfinished
from alignlab.experiment.checking import Checker, plain
from alignlab.experiment.config import ConfigError, instantiate, made
from alignlab.experiment.opening import SPLITS, OnProgress, backbone_named, data_in_words
from alignlab.experiment.pairaudit import NUM_SHOWN, TRUTHS, Audit, SplitAudit
from alignlab.experiment.reading import parse_override, put
from alignlab.experiment.record import locked, replacing, write_json
from alignlab.modules.fingerprints import weights_fingerprint
from alignlab.modules.parted import evaluating

FORMAT, VERSION = "alignlab preference pairs", 1

PROVENANCE, ANSWERS = "provenance.json", ".answers.jsonl"
"""What a finished folder has, written last, and what an unfinished one goes on from."""


@dataclass(frozen=True)
class PairSettings:
    """How preference pairs are built.

    Args:
        corruption: What is done to the pictures of the rejected answer.
        num_examples: The first so many of each split; None: all.
        max_new_tokens: Longest answer in tokens; a longer one is cut.
        batch_size: Prompts that are answered at a time; the pairs do not depend on it, but for rounding.
        drop_equal: Drop pairs that are equal as they were generated, as SeVa does, which cleans them in its own way; or
            with ``clean`` also what is equal once cleaned.
        min_tokens: Drop pairs of which a side is shorter.
        keep_cut: Keep pairs of which a side was cut at ``max_new_tokens``, as SeVa does, though training then takes the
            cut for the answer's end.
        seed: Of the corruption; each example's is drawn from this and its id.
    """

    corruption: Corruption = field(default_factory=DiffusionNoise)
    num_examples: int | None = None
    max_new_tokens: int = 64
    batch_size: int = 64
    drop_equal: Literal["clean", "raw"] = "clean"
    min_tokens: int = 1
    keep_cut: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        counts = {"num_examples": self.num_examples, "max_new_tokens": self.max_new_tokens}
        for name, count in (counts | {"batch_size": self.batch_size}).items():
            if count is not None and count < 1:
                raise InputError(f"pairs.{name} must be at least 1, got {count}")
        if self.min_tokens < 0:
            raise InputError(f"pairs.min_tokens must be at least 0, got {self.min_tokens}")


def settings_from(given: Mapping[str, Any] | None, folders: Sequence[str] = ()) -> PairSettings:
    """Settings of plain data, as a config has them, checked.

    Args:
        folders: Where a corruption of one's own is searched for.

    Raises:
        ConfigError: All problems at once.
    """
    checker = Checker(folders)
    checked = checker.arguments(PairSettings, given, ("pairs",))
    if checker.problems:
        raise ConfigError(checker.problems)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--pairs", type=PairSettings)
    return made(parser, {"pairs": checked}).pairs


def overridden(overrides: Sequence[str], folders: Sequence[str] = ()) -> PairSettings:
    """The default settings with overrides like ``pairs.corruption.step=800`` on top; see ``settings_from``."""
    given: dict[str, Any] = {"pairs": plain(PairSettings())}
    for text in overrides:
        key, value = parse_override(text)
        given = put(given, key, value, (), text)
    return settings_from(given["pairs"], folders)


def build(
    config: Mapping[str, Any],
    folder: Path,
    model: str,
    settings: PairSettings,
    *,
    on_progress: OnProgress = lambda what, done, total: None,
) -> Audit:
    """Write the pairs that a model makes of the train and val split of a resolved config's data; see ``make_pairs``."""
    experiment = instantiate({**config, "stages": {}})
    check_supplies("alignlab pairs", ("conversation",), experiment.data)
    check_listed("alignlab pairs", experiment.data)
    provenance = {"model": model, "data": data_in_words(config)}
    backbone = backbone_named(model, experiment)
    return make_pairs(backbone, experiment.data, settings, folder, provenance=provenance, on_progress=on_progress)


def make_pairs(
    backbone: Backbone | DualEncoder,
    data: AlignmentData,
    settings: PairSettings,
    folder: Path,
    *,
    provenance: Mapping[str, Any],
    on_progress: OnProgress = lambda what, done, total: None,
) -> Audit:
    """Write pairs of greedy answers: the chosen one to what the data ask, the rejected one to a corrupted picture.

    What is asked are the turns of a conversation before its last answer. ``train.parquet`` and ``val.parquet`` are in
    the format that ``trl`` reads for preferences with pictures, and ``provenance.json`` says what they were made of. It
    is written last: a folder without it is not finished, and the same call goes on from the answers there are. Where it
    is there, nothing is computed.

    Args:
        folder: Is made if need be.
        provenance: JSON data that say what backbone and data are; fingerprints and settings are added.

    Raises:
        InputError: The backbone generates no text, the data have no conversations, or the folder holds pairs of another
            provenance, or something else.
    """
    if not isinstance(backbone, Backbone):
        raise InputError(f"pairs need a backbone that generates text, but {backbone.path} is a dual encoder")
    check_supplies("pairs", ("conversation",), data)
    splits = {split: _first(data.examples(split), settings.num_examples) for split in SPLITS}
    known = _known(backbone, settings, splits, provenance)
    _refuse_else(folder)
    with locked(folder):
        if (folder / PROVENANCE).exists():
            there = json.loads((folder / PROVENANCE).read_text())
            refuse_other(folder, there, known, "finished, and ")
            return Audit({split: SplitAudit(**each) for split, each in there["audit"].items()})
        asking = Asking(backbone, settings.corruption, settings.seed, settings.max_new_tokens, settings.batch_size)
        with unfinished(folder / ANSWERS, known) as (before, file), evaluating(backbone):
            done = Counter(answer.split for answer in before)
            for split, examples in splits.items():
                answer_split(asking, split, examples, done[split], file, on_progress)
        answers = answers_in(folder / ANSWERS)
        names = _names(answers)
        audits = {}
        for split, examples in splits.items():
            if len(examples):
                own = [(names[place], answer) for place, answer in enumerate(answers) if answer.split == split]
                audits[split] = _write(folder, split, examples, own, backbone, data, settings)
        audit = Audit(audits)
        write_json(folder / PROVENANCE, known | {"audit": asdict(audit)["splits"]})
        (folder / ANSWERS).unlink()
    return audit


def _first(examples: Sequence[Example], count: int | None) -> Subset:
    return Subset(examples, range(len(examples) if count is None else min(count, len(examples))))


def _known(
    backbone: Backbone, settings: PairSettings, splits: Mapping[Split, Subset], provenance: Mapping[str, Any]
) -> dict[str, Any]:
    """What decides the pairs, as JSON gives it back."""
    try:
        deciding = {name: value for name, value in plain(settings).items() if name != "batch_size"}
    except TypeError:
        raise InputError(
            f"pairs.corruption: {type(settings.corruption).__name__} has to keep its arguments under their names, as a "
            "dataclass does, so that the pairs know what they were made of"
        ) from None
    known = {
        "format": FORMAT,
        "version": VERSION,
        "alignlab": version("alignlab"),
        **provenance,
        "model_fingerprint": weights_fingerprint(backbone),
        "tokenizer_fingerprint": backbone.encoder.tokenizer_fingerprint(),
        "image_fingerprint": backbone.encoder.image_fingerprint(),
        "max_length": backbone.encoder.max_length,
        "splits": {split: len(examples) for split, examples in splits.items()},
        "settings": deciding,
        "corruption_source": _own_source(type(settings.corruption)),
    }
    return json.loads(json.dumps(known))


def _own_source(kind: type) -> str | None:
    """Hash of the file of a class that is not alignlab's; None of one that is, which the version tells."""
    file = vars(sys.modules[kind.__module__]).get("__file__")
    if kind.__module__.partition(".")[0] == "alignlab" or file is None:
        return None
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16]


def _refuse_else(folder: Path) -> None:
    """Raise InputError if there is something that is no folder of pairs, finished or not."""
    if not folder.exists() or (folder.is_dir() and ((folder / PROVENANCE).exists() or (folder / ANSWERS).exists())):
        return
    if not folder.is_dir() or any(not entry.name.startswith(".") for entry in folder.iterdir()):
        raise InputError(f"{folder} is there already, and holds something else than pairs; choose another --output")


def _names(answers: Sequence[Answer]) -> list[str]:
    """A name for each answer, unique across the splits: the example's id, with its split and a number if need be."""
    times = Counter(answer.id for answer in answers)
    names = [answer.id if times[answer.id] == 1 else f"{answer.split}/{answer.id}" for answer in answers]
    seen: Counter[str] = Counter()
    for place, name in enumerate(names):
        seen[name] += 1
        names[place] = name if seen[name] == 1 else f"{name}#{seen[name]}"
    return names


def _write(
    folder: Path,
    split: Split,
    examples: Subset,
    answers: Sequence[tuple[str, Answer]],
    backbone: Backbone,
    data: AlignmentData,
    settings: PairSettings,
) -> SplitAudit:
    """Write the pairs of one split, if there are any."""
    asked = [(name, answer) for name, answer in answers if answer.chosen is not None]

    def length(text: str) -> int:
        return len(backbone.encoder.tokenizer(text, add_special_tokens=False).input_ids)

    built = build_pairs(
        [answer.chosen for _, answer in asked],
        [answer.rejected for _, answer in asked],
        clean=seva_cleaned if settings.drop_equal == "raw" else cleaned,
        drop_equal=settings.drop_equal,
        min_tokens=settings.min_tokens,
        length=length,
    )
    kept = [pair for pair in built.kept if settings.keep_cut or not _is_cut(asked[pair.index][1])]
    truths: list[str | None] = []
    samples = []
    spread = set(range(0, len(kept), max(-(-len(kept) // NUM_SHOWN), 1)))

    def rows() -> Iterator[dict[str, Any]]:
        for place, pair in enumerate(kept):
            name, answer = asked[pair.index]
            example = examples[answer.index]
            if example.id != answer.id:
                raise InputError(f"the data have changed: example {answer.index} of {split} is no longer {answer.id!r}")
            truths.append(_truth(data, example, pair))
            if place in spread:
                said = {"chosen": pair.chosen, "rejected": pair.rejected, "quality": truths[-1]}
                samples.append({"id": name, "prompt": _text(prompt_of(example)), **said})
            yield trl_row(name, prompt_of(example), pair, truths[-1])

    if kept:
        with replacing(folder / f"{split}.parquet") as file:
            write_parquet(file, rows())
    judged = [truth for truth in truths if truth is not None]
    return SplitAudit(
        asked=len(answers),
        kept=len(kept),
        dropped=built.dropped | {"cut": len(built.kept) - len(kept), "no_picture": len(answers) - len(asked)},
        lengths={
            side: _spread(
                [length(getattr(pair, side)) for pair in kept],
                [getattr(asked[pair.index][1], f"{side}_cut") for pair in kept],
            )
            for side in ("chosen", "rejected")
            if kept
        },
        truth={truth: judged.count(truth) / len(judged) for truth in TRUTHS if judged},
        samples=samples,
    )


def _truth(data: AlignmentData, example: Example, pair: Pair) -> str | None:
    """Whether the chosen answer is in truth better than the rejected one, where the data know."""
    chosen, rejected = data.quality(example, pair.chosen), data.quality(example, pair.rejected)
    if chosen is None or rejected is None:
        return None
    return "equal" if chosen == rejected else "better" if chosen > rejected else "worse"


def _is_cut(answer: Answer) -> bool:
    return answer.chosen_cut or answer.rejected_cut


def _spread(lengths: Sequence[int], cut: Sequence[bool]) -> dict[str, float]:
    return {"mean": mean(lengths), "median": median(lengths), "cut": mean(map(float, cut))}


def _text(prompt: Sequence[Turn]) -> str:
    said = (" ".join(part if isinstance(part, str) else "[picture]" for part in turn.content) for turn in prompt)
    return "\n".join(said)
