"""card: the model card of what is exported: what it is, on what and how it was trained, what it scores."""

import inspect
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import jinja2

from alignlab.backbones import Backbone, DualEncoder, Encoder
from alignlab.backbones.composed import ComposedTowers
from alignlab.data import Scenes
from alignlab.errors import InputError
from alignlab.experiment.catalogue import find, kind_called, own_sources
from alignlab.experiment.commands import file_sources
from alignlab.experiment.config import Experiment, dump
from alignlab.experiment.loading import how_to_ask, how_to_load
from alignlab.experiment.reading import read
from alignlab.experiment.run import reopened
from alignlab.experiment.stages import named_stages

CONFIG = "alignlab_config.yaml"
"""The run's config, in what is exported."""

MAX_NEW_TOKENS = 64
"""Of an answer, where no evaluator of a run says how long answers may be."""

PAPER = re.compile(r"[A-Z][\w-]+(?: et al\.| and [A-Z][\w-]+)? \d{4}, https?://[^\s,;)]+[^\s,;).]")


@dataclass(frozen=True)
class Run:
    """What a finished run knows of itself.

    Args:
        experiment: Its objects; None: what they read is not there any more.
    """

    config: Mapping[str, Any]
    metrics: Mapping[str, Any]
    versions: Mapping[str, Any]
    experiment: Experiment | None

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read a finished run's directory."""
        try:
            experiment = reopened(folder)[1]
        except InputError:
            experiment = None
        files = (json.loads((folder / name).read_text()) for name in ("metrics.json", "versions.json"))
        config = read(folder / "config.yaml")
        config["python_path"].remove(str(folder.resolve()))  # where the file lies, in which no classes are
        return cls(config, *files, experiment)

    @property
    def max_new_tokens(self) -> int:
        """The longest answers that its evaluators asked for."""
        asked = [each["init_args"].get("max_new_tokens") for each in self.config["evaluators"]]
        return max((number for number in asked if isinstance(number, int)), default=MAX_NEW_TOKENS)

    @property
    def objective(self) -> str:
        """Its name, without the module of a class of the user's."""
        return (
            "a command" if self.config["objective"] is None else self.config["objective"]["class_path"].split(".")[-1]
        )

    @property
    def on_lab(self) -> bool:
        """Whether some of the data it was trained or judged on are the lab's."""
        return any(
            each.get("class_path") == "Scenes" for each in _classes([self.config["data"], self.config["evaluators"]])
        )

    @property
    def whole(self) -> bool:
        """Whether its config can run: one that builds on an earlier stage cannot without it."""
        parts = [self.config[key] for key in ("backbone", "data", "evaluators")]
        return {name for _, name in named_stages(parts)} <= set(self.config["stages"])


def card(
    backbone: Backbone | DualEncoder, run: Run | None, *, reason: str | None = None, generation: str | None = None
) -> str:
    """A model card for the Hugging Face hub, in Markdown.

    Args:
        run: What it came from; None: a model's directory.
        reason: Why its adapters are apart; None: they are not.
        generation: How it generates, in words; None: it does not.
    """
    encoder = backbone.encoder if isinstance(backbone, Backbone) else None
    asks = encoder is not None and backbone.visual_tokenizer is None
    experiment = None if run is None else run.experiment
    question = "What is in the picture?" if experiment is None else experiment.data.caption_prompt
    title = Path(backbone.path).name if run is None else f"{run.objective} on {run.config['data']['class_path']}"
    return _template().render(
        front=_front(backbone, run),
        title=title,
        run=None if run is None else _told(run),
        load=how_to_load(backbone, reason).strip(),
        use=how_to_ask(encoder, question).strip() if asks else None,
        generation=generation,
        template=None if encoder is None else _chat_template(encoder),
    )


def _front(backbone: Backbone | DualEncoder, run: Run | None) -> str:
    """What the hub reads: YAML."""
    composed = isinstance(backbone, DualEncoder) and isinstance(backbone.model, ComposedTowers)
    front: dict[str, Any] = {"library_name": "alignlab" if composed else "transformers"}
    task = "zero-shot-image-classification" if isinstance(backbone, DualEncoder) else "image-text-to-text"
    front["pipeline_tag"] = "feature-extraction" if composed else task
    if run is not None and (bases := _hub_names(run.config["backbone"])):
        front["base_model"] = bases[0] if len(bases) == 1 else bases
    front["tags"] = ["alignlab"]
    if run is not None:
        front["tags"] += [run.objective.lower().replace(" ", "-")] + ["scenes-lab"] * run.on_lab
    return dump(front)


def _hub_names(settings: Mapping[str, Any]) -> list[str]:
    """The models of the hub that it began with; the hub takes no others, such as directories, for a base."""
    paths = [settings["path"], settings["text_tower"], *(settings["take"] or {}).values()]
    hub = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
    return [path for path in dict.fromkeys(paths) if path and hub.fullmatch(path) and not Path(path).exists()]


def _told(run: Run) -> dict[str, Any]:
    config, metrics = run.config, run.metrics
    return {
        "about": _about(run),
        "papers": _papers(run),
        "objective": _fenced(
            dump({name: config[name] for name in ("objective", "adapter", "command") if config.get(name)})
        ),
        "examples": _examples(run),
        "data": _fenced(dump({"data": config["data"]})),
        "training": _training(run),
        "judged": "Greedy answers where text is generated." + (f" {LAB}" if run.on_lab else ""),
        "scores": [(name, value, _evaluator(run, name)) for name, value in metrics["scores"].items()],
        "reproduce": _reproduce(run),
        "versions": [(name, it) for name, it in run.versions["packages"].items() if it is not None],
    }


LAB = (
    "The data are the scenes lab's, a small world of coloured shapes; what is measured on it are claims about the lab, "
    "not about photographs."
)


def _about(run: Run) -> str:
    start = {
        name: value
        for name, value in run.config["backbone"].items()
        if value and name in ("path", "fresh", "take", "text_tower")
    }
    began = ", ".join(
        f"{name} `{json.dumps(value) if not isinstance(value, str) else value}`" for name, value in start.items()
    )
    by = "another program's command" if run.config["objective"] is None else f"the objective {run.objective}"
    stages = f", after the stages {', '.join(run.config['stages'])}" if run.config["stages"] else ""
    return f"Trained by {by}{stages}, with alignlab. It began with {began}."


def _papers(run: Run) -> Iterator[str]:
    """A line for each objective: its name, what it does, and the papers that it is of."""
    for settings in _classes(run.config["objective"]):
        try:
            owner = find(kind_called("objective"), settings["class_path"], run.config["python_path"])[1]
        except InputError:
            continue  # something else with a class_path, or a class of the user's that is gone
        name = owner.__name__
        line = (inspect.getmodule(owner).__doc__ or "").strip().partition("\n")[0].removeprefix(f"{name}: ")
        papers = dict.fromkeys(PAPER.findall(" ".join((owner.__doc__ or "").split())))
        yield f"{name}: {line}" + (f" ({'; '.join(papers)})" if papers else "")


def _classes(node: Any) -> Iterator[Mapping[str, Any]]:
    """The classes that settings name, those in others' arguments included."""
    if isinstance(node, Mapping):
        if "class_path" in node:
            yield node
        node = list(node.values())
    if isinstance(node, list):
        for item in node:
            yield from _classes(item)


def _examples(run: Run) -> str:
    if run.experiment is None:
        return "What it was trained on was not there any more when this was written."
    try:
        if run.experiment.data.stream() is not None:
            return "The training examples were streamed, so they were not counted."
        number = len(run.experiment.data.examples("train"))
    except InputError:
        return "What it was trained on was not there any more when this was written."
    return f"{number:,} training examples."


def _training(run: Run) -> Iterator[tuple[str, str]]:
    config, metrics = run.config, run.metrics
    parameters, hardware = metrics["parameters"], run.versions.get("hardware")
    for name in ("steps", "samples", "tokens"):
        yield name, "not known" if metrics[name] is None else f"{metrics[name]:,}"
    yield "parameters", f"{parameters['total']:,}"
    yield "of which trained", "not known" if parameters["trained"] is None else f"{parameters['trained']:,}"
    if config["optimization"] is not None:
        given = ", ".join(
            f"{name} {value}" for name, value in config["optimization"].items() if value not in ({}, None)
        )
        yield "optimizer", f"AdamW: {given}"
        yield "gradient clipping", str(config["trainer"].get("gradient_clip_val") or "none")
        yield (
            "precision",
            f"weights {config['backbone']['dtype']}, trainer {config['trainer'].get('precision') or '32-true'}",
        )
    yield "seconds of training", f"{metrics['seconds']['fit']:.1f}"
    if metrics["peak_memory_mib"] is not None:
        yield "peak memory", f"{metrics['peak_memory_mib']:,.0f} MiB"
    if hardware is not None:
        yield (
            "hardware",
            ", ".join(hardware["gpus"]) or f"{hardware['cpus']} CPU cores, {run.versions['threads']} threads",
        )
    yield "platform", run.versions["platform"]
    yield "seed", str(config["seed"])


def _evaluator(run: Run, score: str) -> str:
    """Which evaluator gave a score, and on what."""
    for evaluator in run.experiment.evaluators if run.experiment is not None else ():
        if score.startswith(f"{evaluator.label}/"):
            data = evaluator.judged(run.experiment.data)
            where = "the scenes lab" if isinstance(data, Scenes) else type(data).__name__
            number = min(evaluator.num_examples, len(data.examples(evaluator.split)))
            return f"{type(evaluator).__name__}, {number} examples of {where}'s {evaluator.split} split"
    return score.partition("/")[0]


def _reproduce(run: Run) -> str:
    if not run.whole:
        return f"This is one stage of a run, whose own config makes it; `{CONFIG}` is the stage's."
    command = _fenced(
        f"alignlab fit --config {CONFIG} --output runs/again    # train and judge it again\n"
        f"alignlab evaluate . --config {CONFIG} --output runs/judged    # judge what is here",
        "bash",
    )
    own = [*own_sources(run.config), *file_sources(run.config)]
    git = run.versions["git"]["commit"]
    lines = [command, f"`{CONFIG}` is the whole config, resolved; its relative paths are those of where it ran."]
    lines += [f"It names modules or commands of its own, which are not in here: {', '.join(own)}."] if own else []
    lines += [f"The directory it ran in was at git commit {git}."] if git else []
    return "\n\n".join(lines)


def _chat_template(encoder: Encoder) -> dict[str, str]:
    text = encoder.processor.chat_template or encoder.tokenizer.chat_template
    text = text if isinstance(text, str) else json.dumps(text, indent=2)
    return {"fingerprint": encoder.tokenizer_fingerprint(), "text": _fenced(text, "jinja")}


def _fenced(text: str, language: str = "yaml") -> str:
    """A block of code, between fences that do not occur in it."""
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`{3,}", text)), 3)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _template() -> jinja2.Template:
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader, undefined=jinja2.StrictUndefined, trim_blocks=True, autoescape=False
    )
    environment.filters["cell"] = lambda value: " ".join(str(value).split()).replace("\\", "\\\\").replace("|", "\\|")
    return environment.get_template("card.md.j2")
