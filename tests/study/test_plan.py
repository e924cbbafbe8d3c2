"""Studies are expanded and checked whole before anything starts."""

import json

import pytest

from alignlab.errors import InputError
from alignlab.study import Study
from alignlab.study.results import Results

BASE = """
data: Scenes
backbone: {path: scenes-parts, fresh: [projector]}
optimization: {lr: 2e-3}
trainer: {max_steps: 4}
evaluators: [CaptionAccuracy]
"""


@pytest.fixture
def load(tmp_path):
    """Write a study beside a base, and load it."""
    (tmp_path / "base.yaml").write_text(BASE)

    def load(text: str, *overrides: str, base: str = "base: base.yaml\n") -> Study:
        (tmp_path / "mine.yaml").write_text(base + text)
        return Study.load(tmp_path / "mine.yaml", directory=tmp_path / "out", overrides=overrides)

    return load


TWO = "arms: {MLE: {objective: MLE}, InfoNCE: {objective: InfoNCE}}\n"


def faults(load, text: str, *overrides: str, **how: str) -> str:
    with pytest.raises(InputError) as caught:
        load(text, *overrides, **how)
    return str(caught.value)


def test_arms_times_starts_times_seeds(load):
    study = load(TWO + "seeds: [0, 1, 5]")
    assert [(cell.arm, cell.start, cell.seed) for cell in study.cells] == [
        (arm, "scenes-parts", seed) for arm in ("MLE", "InfoNCE") for seed in (0, 1, 5)
    ]
    assert len({cell.directory for cell in study.cells}) == 6
    assert all(cell.config["seed"] == cell.seed for cell in study.cells)


FOUR = """
arms:
  MLE: {objective: MLE}
  InfoNCE: {objective: InfoNCE, seeds: [1]}
  MLE, few: {objective: MLE, data: {class_path: Scenes, init_args: {num_train: 64}}, seeds: [0, 1]}
  InfoNCE, few:
    objective: InfoNCE
    data: {class_path: Scenes, init_args: {num_train: 64}}
    against: MLE, few
    seeds: [0]
seeds: [0, 1, 5]
"""


def test_an_arm_may_have_fewer_seeds_and_be_compared_with_another_than_the_baseline(load):
    study = load(FOUR)
    assert [(cell.arm, cell.seed) for cell in study.cells] == [
        *(("MLE", seed) for seed in (0, 1, 5)), ("InfoNCE", 1), ("MLE, few", 0), ("MLE, few", 1), ("InfoNCE, few", 0),
    ]  # fmt: skip
    assert study.against == {"InfoNCE, few": "MLE, few"}
    assert study.cells[4].differs == {"data.num_train": 64} and study.cells[6].differs == {"objective": "InfoNCE"}
    study.save("")
    assert json.loads((study.directory / "study.json").read_text())["against"] == study.against


def test_an_arm_may_name_all_seeds(load):
    assert len(load(FOUR.replace("MLE: {objective: MLE}", "MLE: {objective: MLE, seeds: [0, 1, 5]}")).cells) == 7


@pytest.mark.parametrize(("old", "new", "part"), [
    ("against: MLE, few", "against: MLE, fw", "few: against: no arm is called 'MLE, fw'; did you mean 'MLE, few'?"),
    ("against: MLE, few", "against: InfoNCE, few", "arm InfoNCE, few: against: it is itself"),
    ("MLE: {objective: MLE}", "MLE: {objective: MLE, against: InfoNCE}", "it is the baseline, which is compared with"),
    ("seeds: [1]", "seeds: [7]", "arm InfoNCE: seeds: 7 is not among the study's seeds, [0, 1, 5]"),
    ("seeds: [1]", "seeds: some", "arm InfoNCE: seeds: expected a list of whole numbers"),
    ("seeds: [0]", "seeds: [5]", "arm InfoNCE, few has seeds that MLE, few, which it is compared with, lacks"),
    ("MLE: {objective: MLE}", "MLE: {objective: MLE, seeds: [0]}", "arm InfoNCE has seeds that MLE, which it is"),
])  # fmt: skip
def test_arms_that_cannot_be_compared_are_named(load, old, new, part):
    assert FOUR.count(old) == 1
    assert part in faults(load, FOUR.replace(old, new))


def test_a_cell_knows_its_place_in_weights_and_biases(load):
    cell = load(TWO + "seeds: [3]\noverrides: {wandb: {tags: [mine]}}").cells[1]
    assert cell.config["wandb"]["group"] == "mine"
    assert cell.config["wandb"]["name"] == "InfoNCE-scenes-parts-seed3"
    assert list(cell.config["wandb"]["tags"]) == ["mine", "InfoNCE", "scenes-parts", "seed3"]


def test_what_differs_is_what_was_written(load):
    text = "arms: {MLE: {objective: MLE}, own: {objective: {class_path: InfoNCE, init_args: {scale: 50.0}}}}"
    study = load(text, "trainer.max_steps=7")
    assert study.cells[0].differs == {}
    assert study.cells[1].differs == {"objective": "InfoNCE", "objective.scale": 50.0}


def test_layers_base_then_overrides_then_arm_then_command_line(load):
    text = """
overrides: {trainer: {max_steps: 5}, optimization: {lr: 1e-4, weight_decay: 0.5}}
arms:
  first: {objective: MLE}
  second: {objective: MLE, optimization: {lr: 3e-4}}
"""
    first, second = load(text, "trainer.max_steps=9").cells
    assert (first.config["optimization"]["lr"], second.config["optimization"]["lr"]) == (1e-4, 3e-4)
    assert first.config["optimization"]["weight_decay"] == second.config["optimization"]["weight_decay"] == 0.5
    assert first.config["trainer"]["max_steps"] == second.config["trainer"]["max_steps"] == 9
    assert second.differs == {"optimization.lr": 3e-4}


def test_an_arm_may_name_a_file_whose_class_lies_beside_it(load, tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "my_study_objective.py").write_text(
        "from alignlab.objectives import MLE\n\n\nclass Mine(MLE):\n    '''Mine.'''\n"
    )
    (tmp_path / "own" / "own.yaml").write_text("base: ../base.yaml\nobjective: my_study_objective.Mine\n")
    study = load("overrides: {trainer: {max_steps: 6}}\narms: {MLE: {objective: MLE}, own: {base: own/own.yaml}}")
    assert study.cells[1].differs == {"objective": "Mine"}
    assert study.cells[1].config["trainer"]["max_steps"] == 6


def test_starts_are_named(load, tiny_path):
    study = load(f"{TWO}starts: [scenes-parts, {{name: tiny, path: {tiny_path}}}]")
    assert study.starts == ("scenes-parts", "tiny")
    assert [cell.config["backbone"]["path"] for cell in study.cells if cell.start == "tiny"] == [str(tiny_path)] * 2
    assert study.cells[1].differs == {}


def test_where_an_experiment_goes_on_from_a_stage_the_start_is_the_stage_s(load, tiny_path):
    stage = (
        "stages: {first: {objective: MLE, backbone: {path: scenes-parts}}}, backbone: {path: 'stage:first', fresh: []}"
    )
    study = load(f"{TWO}starts: [scenes-parts, {{name: tiny, path: {tiny_path}}}]\noverrides: {{{stage}}}")
    assert {cell.config["backbone"]["path"] for cell in study.cells} == {"stage:first"}
    begins = [(cell.start, cell.config["stages"]["first"]["backbone"]["path"]) for cell in study.cells]
    assert begins == [("scenes-parts", "scenes-parts"), ("tiny", str(tiny_path))] * 2
    assert [cell.differs for cell in study.cells] == [{}, {}, {"objective": "InfoNCE"}, {"objective": "InfoNCE"}]


def test_the_first_arm_is_the_baseline_unless_one_is_named(load):
    assert load(TWO).baseline == "MLE"
    assert load(TWO + "baseline: InfoNCE").baseline == "InfoNCE"


def test_the_same_content_under_two_names_is_computed_once(load):
    study = load("arms: {one: {objective: MLE}, other: {objective: {class_path: MLE}}}\nseeds: [0, 1]")
    assert len(study.cells) == 4
    assert len({cell.directory for cell in study.cells}) == 2
    assert "other is the same config as one" in study.notes[0]


def test_a_changed_cell_gets_another_directory(load):
    before, after = load(TWO), load(TWO, "optimization.lr=1e-4")
    assert not {cell.directory for cell in before.cells} & {cell.directory for cell in after.cells}
    assert {cell.directory for cell in load(TWO + "seeds: [0, 1]").cells} > {cell.directory for cell in before.cells}


def test_the_comment_at_the_head_describes_the_study(load):
    head = "# Does it help,\n# or not?\n#\n#   alignlab study run mine.yaml\nbase: base.yaml\n"
    assert load(TWO, base=head).description == "Does it help, or not?"
    assert load(TWO, base="# Helps?    alignlab study run mine.yaml\nbase: base.yaml\n").description == "Helps?"


def test_the_command_line_changes_the_study_itself(load):
    study = load(TWO, "seeds=[4]", "arms.InfoNCE.objective.scale=30.0")
    assert study.seeds == (4,)
    assert study.cells[1].differs["objective.scale"] == 30


def test_all_faults_are_found_at_once(load, tmp_path):
    text = """
overides: {}
arms:
  MLE: {objective: MLE, trainer: {max_step: 3}}
  InfoNCE: {objective: InfoNCEE, seed: 3}
  third: [1]
starts: [scenes-part]
seeds: [0, 0]
baseline: mle
metrics: 3
tradeoff: [caption/exact, caption/blind/text_only/exact]
"""
    message = faults(load, text)
    for part in (
        "unknown key 'overides'; did you mean 'overrides'?",
        "did you mean 'max_steps'?",
        "did you mean 'InfoNCE'?",
        "seeds stand under its key 'seeds'",
        "arm third: expected a mapping of experiment keys, got [1]",
        "did you mean 'scenes-parts'?",
        "seeds: 0 stands there more than once",
        "baseline: no arm is called 'mle'; did you mean 'MLE'?",
        "metrics: expected a list of names",
        "tradeoff: a blind score stands beside its metric in the report; name caption/exact instead",
    ):
        assert part in message
    assert message.startswith(f"{tmp_path / 'mine.yaml'}: 10 errors")


def test_a_trade_off_is_of_two_metrics_or_three_and_goes_into_the_manifest(load, tmp_path):
    for wrong in ("[a/b]", "[a/b, a/b]", "[a/b, c/d, a/b]", "[a/b, c/d, e/f, g/h]"):
        assert "tradeoff: expected two metrics, of what is gained" in faults(load, TWO + f"tradeoff: {wrong}\n")
    assert "tradeoff: expected a list of names" in faults(load, TWO + "tradeoff: a/b\n")
    study = load(TWO + "tradeoff: [caption/exact, retention/text_kl]\n")
    study.save("alignlab")
    assert Results.read(tmp_path / "out").tradeoff == study.tradeoff == ("caption/exact", "retention/text_kl")


def test_a_fault_of_all_arms_is_told_once(load):
    message = faults(load, TWO + "seeds: [0, 1, 2]", "optimization.lr=fast")
    assert message.count("optimization.lr") == 1
    assert "every arm: " in message


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("arms: {}", "arms: expected a mapping of at least one name"),
        ("seeds: [0]", "arms: expected a mapping of at least one name"),
        (TWO + "seeds: 3", "seeds: expected a list of whole numbers"),
        (TWO + "seeds: [true]", "seeds: expected a list of whole numbers"),
        (TWO + "starts: []", "starts: expected a list"),
        (TWO + "starts: [{path: x}]", "starts: expected a path or"),
        (TWO + "starts: [{name: a b, path: scenes-parts}, {name: a-b, path: scenes-parts}]", "would share a directory"),
        ("arms: {a b: {objective: MLE}, a-b: {objective: MLE}}", "would share a directory"),
        ("arms: {1: {objective: MLE}}", "a name must be text"),
        ("arms: {x: {base: nowhere.yaml}}", "nowhere.yaml: no such file"),
        ("arms: {x: {objective: MLE}, x: {objective: MLE}}", "stands twice"),
        (TWO + "starts: [scenes-parts]\noverrides: {backbone: {path: x}}", "backbone.path"),
        ("arms: {MLE: {}}", "objective"),
    ],
)
def test_a_fault_is_named(load, text, part):
    assert part in faults(load, text)


WRONG = """
arms:
  right: {objective: MLE}
  scale: {objective: {class_path: InfoNCE, init_args: {scale: -1}}}
  size: {objective: MLE, data: {class_path: Scenes, init_args: {image_size: 50}}}
  photos:
    objective: MLE
    data: {class_path: LlavaJson, init_args: {path: nowhere.json, image_folder: .}}
    evaluators: []
seeds: [0, 1]
"""


def test_a_model_by_its_path_is_judged_as_it_is_beside_every_start(load, tiny_path):
    arms = f"MLE: {{objective: MLE}}, other: {{backbone: {{path: {tiny_path}, fresh: []}}, trainer: {{max_steps: 0}}}}"
    starts = "starts: [scenes-parts, scenes-parts-1]\nseeds: [0, 1]"
    study = load(f"arms: {{{arms}}}\noverrides: {{objective: MLE}}\n{starts}")
    places = [(start, seed) for start in ("scenes-parts", "scenes-parts-1") for seed in (0, 1)]
    assert [(cell.start, cell.seed) for cell in study.cells] == places * 2  # each has its partner
    others = study.cells[4:]
    assert {cell.config["backbone"]["path"] for cell in others} == {str(tiny_path)}
    assert len({cell.directory for cell in others}) == 2 and others[0].directory == others[2].directory
    assert others[0].directory.name.startswith(f"{tiny_path.name}-seed0")
    assert "other is judged as it is, once a seed, and is compared with others of every start." in study.notes


@pytest.mark.parametrize("more", ["", "fresh: []", "trainer"])
def test_a_model_by_its_path_that_would_be_trained_or_drawn_anew_has_no_place_beside_starts(load, more):
    trainer, fresh = (", trainer: {max_steps: 0}", "") if more == "trainer" else ("", f", {more}" if more else "")
    arm = f"{{objective: MLE, backbone: {{path: scenes-vlm{fresh}}}{trainer}}}"
    message = faults(load, f"arms: {{MLE: {{objective: MLE}}, other: {arm}}}\nstarts: [scenes-parts]")
    assert "arm other: backbone.path" in message and "has trainer.max_steps 0 and no fresh parts" in message


def test_what_only_the_objects_know_is_found_before_anything_starts(load):
    message = faults(load, WRONG)
    assert ": 3 errors" in message
    for part in ("arm scale: InfoNCE needs 0 < scale", "arm size: Scenes needs image_size", "nowhere.json"):
        assert message.count(part) == 1


COUNTED = """
from pathlib import Path
from alignlab.objectives import MLE
class Counted(MLE):
    # Says that it was made.
    def __init__(self, backbone):
        super().__init__(backbone)
        with open(Path(__file__).with_name("made"), "a") as file:
            file.write("I")
"""


def test_cells_that_differ_by_seed_or_name_alone_are_tried_once(load, tmp_path):
    (tmp_path / "counted.py").write_text(COUNTED)
    text = "arms: {one: {objective: counted.Counted}, other: {objective: counted.Counted}}\nseeds: [0, 1, 2]"
    study = load(text)
    assert (tmp_path / "made").read_text() == "I"
    for index, cell in enumerate(study.cells[:3]):
        study.save("")
        cell.directory.mkdir(parents=True)
        (cell.directory / "config.yaml").write_text(f"# alignlab run, digest {cell.digest}\n")
        (cell.directory / "metrics.json").write_text(json.dumps({"config_hash": cell.digest}))
        load(text)
        assert (tmp_path / "made").read_text() == "I" * min(index + 2, 3)  # not again when all are finished


def test_a_cell_whose_directory_holds_something_else_is_named(load):
    study = load(TWO)
    study.save("")
    study.cells[1].directory.mkdir(parents=True)
    (study.cells[1].directory / "thesis.tex").touch()
    message = faults(load, TWO)
    assert "arm InfoNCE: " in message and "no run directory" in message


@pytest.mark.parametrize(
    ("override", "instead"),
    [
        ("seed=5", "use --seeds '[5]'"),
        ("backbone.path=/no where", "use --starts '[/no where]'"),
        ("backbone={path: /nowhere}", "use --starts '[/nowhere]'"),
        ("wandb.group=x", "the group 'mine', named after its file"),
    ],
)
def test_the_command_line_sets_nothing_that_the_study_decides(load, override, instead):
    message = faults(load, TWO + "starts: [scenes-parts]", override)
    assert ": 1 error\n" in message
    assert f"override {override!r}: " in message and instead in message


def test_the_command_line_sets_the_start_of_a_study_that_names_none(load, tiny_path):
    assert load(TWO, f"backbone.path={tiny_path}").cells[1].config["backbone"]["path"] == str(tiny_path)


def test_a_tag_from_the_command_line_joins_the_others(load):
    assert load(TWO, "wandb.tags=[mine]").cells[0].config["wandb"]["tags"] == ["mine", "MLE", "scenes-parts", "seed0"]


def test_a_fault_of_the_overrides_is_told_once(load):
    message = faults(load, TWO + "starts: [scenes-parts]\noverrides: {backbone: {path: x}, wandb: {group: y}, seed: 1}")
    assert ": 3 errors" in message
    assert all(f"overrides: {key}: " in message for key in ("backbone.path", "wandb.group", "seed"))


def test_a_missing_base_is_named(load):
    assert "base: expected an experiment file" in faults(load, TWO, base="")
    assert "did you mean 'base.yaml'?" in faults(load, TWO, base="base: bas.yaml\n")


def test_a_missing_study_is_named(tmp_path):
    (tmp_path / "quickstart.yaml").touch()
    with pytest.raises(InputError, match="did you mean 'quickstart.yaml'"):
        Study.load(tmp_path / "quickstar.yaml")


def test_the_directory_of_anything_else_is_left_alone(load, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    assert "holds no study" in faults(load, TWO)
    (tmp_path / "out" / "study.json").write_text(json.dumps({"name": "other"}))
    assert "holds the study 'other'" in faults(load, TWO)


def test_an_edited_study_may_go_on_in_its_directory(load):
    load(TWO).save("first")
    load(TWO + "seeds: [0, 1]").save("second")


def test_loading_writes_nothing(load, tmp_path):
    load(TWO)
    assert not (tmp_path / "out").exists()
