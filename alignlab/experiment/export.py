"""export: a run's backbone as a directory that plain transformers and peft load."""

import os
import shutil
import tempfile
from pathlib import Path

from alignlab.backbones import Backbone, DualEncoder, open_backbone
from alignlab.backbones.plain import settle_generation, write_plain
from alignlab.errors import InputError
from alignlab.experiment import record
from alignlab.experiment.card import CONFIG, MAX_NEW_TOKENS, Run, card
from alignlab.experiment.opening import check_there, is_run
from alignlab.experiment.run import load
from alignlab.modules.parted import Dtype


def export(source: Path, output: Path, *, dtype: Dtype | None = None) -> str | None:
    """Write a backbone, with its adapters merged where weights can hold them, and beside it where they cannot.

    With it go its processor, how it generates, and a model card, ``README.md``; of a run, its config, too. What is
    merged computes the same to the precision of the weights' type: in float32 all but the last digits, in bfloat16
    three digits.

    Args:
        source: A run directory, or a backbone's.
        output: A directory that is empty, or not there; it appears whole or not at all.
        dtype: Of the weights; None: as they are.

    Returns:
        Why the adapters are apart, in ``output/adapter``; None: there are plain weights alone.

    Raises:
        InputError: There is no such backbone, or something is in ``output``, or that lies in ``source``.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"{output} is there already, and no empty directory; nothing was written")
    if source.is_dir() and output.resolve().is_relative_to(source.resolve()):
        raise InputError(
            f"{output} lies in {source}, which would be exported into itself; choose a directory elsewhere"
        )
    check_there("export", str(source))
    backbone = _opened(source)
    run = Run.read(source) if is_run(source) else None
    where = output.absolute()
    with record.writing(where):
        where.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{where.name}.", suffix=".partial", dir=where.parent))
        try:
            reason = write_plain(backbone, partial, dtype=dtype, place=where)
            longest = MAX_NEW_TOKENS if run is None else run.max_new_tokens
            generation = settle_generation(partial, longest)
            (partial / "README.md").write_text(card(backbone, run, reason=reason, generation=generation))
            if run is not None:
                shutil.copyfile(source / "config.yaml", partial / CONFIG)
            record.let_others_read(partial)
            partial.chmod(0o755)  # as other directories, not as temporary ones
            os.replace(partial, where)  # over an empty directory, too
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return reason


def _opened(source: Path) -> Backbone | DualEncoder:
    """A run's backbone, a directory's, or a name's as ``backbone.path`` takes it."""
    return load(source) if source.is_dir() else open_backbone(str(source)).eval()
