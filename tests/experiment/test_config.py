"""Configs: filled in, found again, and made into objects."""

import inspect
import subprocess
import sys
from time import thread_time
from typing import Union

import pytest

from alignlab.certificate.children import run_child
from alignlab.errors import InputError
from alignlab.experiment.config import (
    ConfigError,
    describe_objectives,
    digest,
    dump,
    instantiate,
    read,
    resolve,
    resolve_file,
)

PLAIN = {"objective": "MLE", "data": "Scenes"}
FULL = {
    "objective": {
        "class_path": "Mixture",
        "init_args": {"parts": {"likelihood": "alignlab.objectives.mle.MLE", "contrast": "InfoNCE"}},
    },
    "data": {"class_path": "Scenes", "init_args": {"num_train": 128, "num_objects": [1, 2]}},
    "adapter": "Full",
    "backbone": {"path": "stage:first"},
    "optimization": {"lr": 1, "part_lr": {"projector": 1e-05}},
    "trainer": {
        "max_steps": 3,
        "callbacks": [{"class_path": "EarlyStopping", "init_args": {"monitor": "val/loss"}}],
    },
    "evaluators": [
        "CaptionAccuracy",
        {"class_path": "Retrieval", "init_args": {"num_examples": 8}},
        {"class_path": "CaptionAccuracy", "init_args": {"data": "Scenes", "label": "other", "split": "compositional"}},
    ],
    "stages": {"first": {"objective": "MLE", "adapter": None}},
}


def problems(config):
    with pytest.raises(ConfigError) as caught:
        resolve(config)
    return str(caught.value).splitlines()


class TestResolving:
    def test_a_resolved_config_resolves_to_itself(self, write):
        resolved = resolve(FULL)
        assert resolve(resolved) == resolved
        assert resolve(read(write(dump(resolved)))) == resolved
        assert dump(resolve(read(write(dump(resolved))))) == dump(resolved)

    def test_every_default_is_stated(self):
        resolved = resolve(FULL)
        parts = resolved["objective"]["init_args"]["parts"]
        assert parts["likelihood"] == {"class_path": "MLE", "init_args": {}}
        assert parts["contrast"]["init_args"]["learn_scale"] is True
        assert resolved["data"]["init_args"]["batch_size"] == 64
        assert resolved["trainer"]["accumulate_grad_batches"] == 1
        assert resolved["wandb"]["mode"] == "offline"
        assert isinstance(resolved["optimization"]["lr"], float)
        assert list(resolved)[:3] == ["objective", "backbone", "adapter"]

    def test_a_stage_is_the_experiment_with_its_changes(self):
        resolved = resolve(FULL)
        stage = resolved["stages"]["first"]
        assert stage["objective"] == {"class_path": "MLE", "init_args": {}} and stage["adapter"] is None
        assert stage["data"] == resolved["data"] and stage["stages"] == {}
        assert stage["backbone"]["path"] == "scenes-parts"  # what the main part takes from it is no setting of its own

    def test_a_stage_takes_from_earlier_ones_only(self):
        stages = {"one": {}, "two": {"backbone": {"path": "stage:one"}}}
        assert resolve(PLAIN | {"stages": stages})["stages"]["two"]["backbone"]["path"] == "stage:one"
        (line,) = problems(PLAIN | {"stages": dict(reversed(stages.items()))})
        assert line.startswith("stages.two.backbone.path: there is no earlier stage 'one'")

    def test_the_digest_follows_the_content_alone(self):
        def of(**changes):
            return digest(resolve(PLAIN | changes))

        assert len(of()) == 8
        assert of() == of(objective="alignlab.objectives.MLE", optimization={"lr": 1e-3}, seed=0)
        assert of() == of(wandb={"mode": "disabled", "tags": ["x"]})
        assert of(stages={"a": {}}) == of(stages={"a": {"wandb": {"group": "g"}}})
        assert len({of(), of(seed=1), of(stages={"a": {}}), of(optimization={"lr": 2e-3})}) == 4

    def test_an_evaluator_s_own_data_are_stated_whole_and_part_of_the_digest(self):
        def of(**own):
            data = {"class_path": "Scenes", "init_args": own}
            return resolve(PLAIN | {"evaluators": [{"class_path": "CaptionAccuracy", "init_args": {"data": data}}]})

        assert of(num_test=8)["evaluators"][0]["init_args"]["data"]["init_args"]["batch_size"] == 64
        assert len({digest(of(num_test=8)), digest(of(num_test=9)), digest(resolve(PLAIN))}) == 3

    def test_it_takes_milliseconds_once_libraries_are_loaded(self):
        resolve(FULL)
        seconds = []
        for _ in range(5):
            start = thread_time()
            resolve(FULL)
            seconds.append(thread_time() - start)
        assert min(seconds) < 0.05

    def test_whole_numbers_stay_whole_whatever_was_imported_before(self):
        assert run_child(batches_of) == {"checked": "[0, 1, 1.0, 0.5]", "made": "[0, 1, 1.0, 0.5]"}

    def test_the_module_itself_loads_no_torch(self):
        code = "import sys, alignlab.experiment.config; sys.exit('torch' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code]).returncode == 0


OWN = '''
from __future__ import annotations

from typing import TYPE_CHECKING

from alignlab.objectives import MLE

if TYPE_CHECKING:
    from alignlab.backbones import Backbone


class {name}(MLE):
    """Mine.

    Args:
        gamma: Mine.
    """

    def __init__(self, backbone: Backbone, *, gamma: float = 2.0, **rest) -> None:
        super().__init__(backbone, **rest)
        self.gamma = gamma
'''


def batches_of():
    """What becomes of limits in batches where typing gives out the wrong one of two equal types."""
    from lightning.pytorch import Trainer

    Trainer.__init__.__annotations__["limit_val_batches"] = Union[float, int, None]  # noqa: UP007
    inspect.unwrap(Trainer.__init__).__annotations__["limit_val_batches"] = Union[float, int, None]  # noqa: UP007
    configs = [resolve(PLAIN | {"trainer": {"max_steps": 1, "limit_val_batches": limit}}) for limit in (0, 1, 1.0, 0.5)]
    checked = [config["trainer"]["limit_val_batches"] for config in configs]
    return {
        "checked": str(checked),
        "made": str([instantiate(config).trainer["limit_val_batches"] for config in configs]),
    }


def made_anew(saved):
    """The objects of a saved config, in a process that has not seen their classes."""
    assert "fresh_mle" not in sys.modules
    requires = instantiate(resolve(read(saved))).requires
    return {"requires": requires, "file": sys.modules["fresh_mle"].__file__}


class TestOwnClasses:
    def test_a_module_beside_the_config_is_found_and_recorded(self, write, tmp_path):
        write(OWN.format(name="FocalMLE"), "own/focal_mle_here.py")
        path = write(
            "{objective: {class_path: focal_mle_here.FocalMLE, init_args: {gamma: 3}}, data: Scenes}", "own/focal.yaml"
        )
        config = resolve_file(path)
        assert config["python_path"] == [str(tmp_path / "own")]
        assert config["objective"] == {"class_path": "focal_mle_here.FocalMLE", "init_args": {"gamma": 3.0}}
        moved = write(dump(config), "runs/config.yaml")
        assert resolve_file(moved) == config
        inherited = write("base: ../own/focal.yaml", "elsewhere/more.yaml")
        assert resolve_file(inherited) == config

    def test_the_saved_config_runs_in_a_new_process(self, write):
        write(OWN.format(name="Fresh"), "own/fresh_mle.py")
        path = write("{objective: fresh_mle.Fresh, data: Scenes}", "own/fresh.yaml")
        saved = write(dump(resolve_file(path)), "runs/config.yaml")
        found = run_child(made_anew, saved)
        file = str(saved.parents[1] / "own" / "fresh_mle.py")
        assert found == {"requires": ("conversation",), "file": file}

    def test_the_current_directory_is_searched(self, write, tmp_path, monkeypatch):
        write(OWN.format(name="Cwd"), "cwd_mle.py")
        monkeypatch.chdir(tmp_path)
        assert resolve(PLAIN | {"objective": "cwd_mle.Cwd"})["python_path"] == [str(tmp_path)]

    def test_misspellings_are_near_the_file_s_own_names(self, write):
        write(OWN.format(name="Spelled"), "spelled_mle.py")
        for name, hint in {"speled_mle.Spelled": "'spelled_mle'", "spelled_mle.Speled": "'Spelled'"}.items():
            with pytest.raises(ConfigError, match=f"did you mean {hint}"):
                resolve_file(write(f"{{objective: {name}, data: Scenes}}"))

    def test_a_second_module_of_the_same_name_is_refused(self, write):
        for folder in ("one", "two"):
            write(OWN.format(name="Twin"), f"{folder}/twin_mle.py")
            write("{objective: twin_mle.Twin, data: Scenes}", f"{folder}/twin.yaml")
        resolve_file(write("{objective: twin_mle.Twin, data: Scenes}", "one/twin.yaml"))
        with pytest.raises(ConfigError, match="of the same name comes first; rename yours"):
            resolve_file(write("{objective: twin_mle.Twin, data: Scenes}", "two/twin.yaml"))


class TestObjects:
    def test_they_are_what_the_config_says(self):
        config = resolve(FULL | {"backbone": {"max_length": 64}})
        experiment = instantiate(config)
        assert experiment.requires == ("conversation", "query", "target")
        assert experiment.data.world.num_objects == (1, 2) and experiment.data.sizes["train"] == 128
        assert experiment.adapter.parts == ("vision_tower", "projector", "language_model")
        assert [evaluator.label for evaluator in experiment.evaluators] == ["caption", "retrieval", "other"]
        own = experiment.evaluators[2].data
        assert type(own) is type(experiment.data) and own.sizes["train"] == 20000 and own is not experiment.data
        assert [evaluator.data for evaluator in experiment.evaluators[:2]] == [None, None]
        assert experiment.evaluators[1].num_examples == 8
        assert experiment.optimization.part_lr == {"projector": 1e-05} and experiment.optimization.betas == (0.9, 0.999)
        assert experiment.trainer["max_steps"] == 3 and experiment.trainer["callbacks"][0].monitor == "val/loss"
        assert experiment.wandb.tags == () and experiment.seed == 0
        backbone = experiment.make_backbone()
        objective = experiment.make_objective(backbone)
        assert objective.backbone is backbone and backbone.encoder.max_length == 64
        assert set(objective.parts) == {"likelihood", "contrast"} and objective.parts["contrast"].symmetric is True

    def test_a_constructor_s_refusal_stays_one_message(self):
        with pytest.raises(InputError, match="multiple of 24"):
            instantiate(resolve(PLAIN | {"data": {"class_path": "Scenes", "init_args": {"image_size": 50}}}))

    def test_trainer_takes_what_is_resolved(self):
        from lightning.pytorch import Trainer

        trainer = Trainer(**instantiate(resolve(PLAIN | {"trainer": {"max_steps": 3}})).trainer, logger=False)
        assert trainer.max_steps == 3


def test_the_catalogue_lists_every_objective_with_its_settings():
    described = {info.name: info for info in describe_objectives()}
    assert {"InfoNCE", "MLE", "Mixture"} <= set(described)
    info = described["InfoNCE"]
    assert info.requires == ("query", "target") and info.summary
    settings = {setting.name: setting for setting in info.settings}
    assert settings["symmetric"].type == "true or false" and settings["symmetric"].default == "true"
    assert "backbone" not in settings and all(setting.doc for setting in info.settings)
    assert {setting.name: setting.default for setting in described["Mixture"].settings}["parts"] == "(required)"
