"""Bad configs: one line for each thing that is wrong."""

import pytest

from alignlab.experiment.config import ConfigError, resolve, resolve_file

PLAIN = {"objective": "MLE", "data": "Scenes"}


def problems(config):
    with pytest.raises(ConfigError) as caught:
        resolve(config)
    return str(caught.value).splitlines()


BAD = {
    "unknown key": ({"optimisation": {}}, ["optimisation: no such key", "did you mean 'optimization'"]),
    "base in a mapping": ({"base": "x.yaml"}, ["base: is read from files only"]),
    "unknown argument": (
        {"objective": {"class_path": "InfoNCE", "init_args": {"scal": 2}}},
        ["objective.init_args.scal: InfoNCE has no argument 'scal'", "did you mean 'scale'", "symmetric"],
    ),
    "unknown setting": ({"optimization": {"lrr": 1}}, ["optimization.lrr", "did you mean 'lr'", "warmup_steps"]),
    "abbreviated option": ({"trainer": {"max_step": 3}}, ["trainer.max_step", "did you mean 'max_steps'"]),
    "text for a number": ({"optimization": {"lr": "fast"}}, ["optimization.lr: expected a number, got 'fast' (text)"]),
    "float for an integer": ({"trainer": {"max_steps": 1e3}}, ["trainer.max_steps", "got 1000.0", "write 1000"]),
    "number for text": ({"wandb": {"name": 5}}, ["wandb.name: expected text, got 5"]),
    "bool for a number": ({"seed": True}, ["seed: expected a whole number, at least 0, got true"]),
    "text for a list": ({"wandb": {"tags": "a"}}, ["wandb.tags: expected a list, each text, got 'a'"]),
    "null": ({"optimization": {"lr": None}}, ["optimization.lr: expected a number, got null"]),
    "list of another length": (
        {"optimization": {"betas": [0.9]}},
        ["optimization.betas: expected a list of 2", "[0.9]"],
    ),
    "element": (
        {"backbone": {"fresh": ["projectr"]}},
        ["backbone.fresh.0: expected one of", "did you mean 'projector'"],
    ),
    "key of a mapping": (
        {"optimization": {"part_lr": {"projectr": 1}}},
        ["optimization.part_lr.projectr", "'projector'"],
    ),
    "value of a mapping": ({"optimization": {"part_lr": {"projector": "x"}}}, ["part_lr.projector: expected a number"]),
    "scalar for a section": ({"backbone": "scenes"}, ["backbone: expected a mapping of arguments of open_backbone"]),
    "refused value": ({"optimization": {"lr": -1}}, ["optimization: learning rates must be positive"]),
    "choice": (
        {"wandb": {"mode": "onlin"}},
        ["wandb.mode: expected one of offline, online, disabled", "mean 'online'"],
    ),
    "missing objective": (
        {"objective": None},
        ["objective: missing", "InfoNCE, LLM2CLIP, LLM2CLIPText, LaVIT, LaVITTokenizer, MLE, Mixture"],
    ),
    "missing data": ({"data": None}, ["data: missing", "Scenes"]),
    "missing argument": (
        {"data": {"class_path": "LlavaJson", "init_args": {"path": "a.json"}}},
        ["data.init_args.image_folder: missing; LlavaJson needs it (text)"],
    ),
    "missing class_path": ({"objective": {"init_args": {}}}, ["objective.class_path: missing"]),
    "misspelled class": ({"objective": "InfoNC"}, ["there is no objective 'InfoNC'", "did you mean 'InfoNCE'"]),
    "class of another kind": ({"objective": "Scenes"}, ["objective: Scenes is a data module, not an objective"]),
    "class of something else": ({"objective": "json.JSONDecoder"}, ["objective: json.JSONDecoder is not an objective"]),
    "base class": ({"objective": "Objective"}, ["objective: Objective is the base class"]),
    "no class of a module": ({"data": "alignlab.data.Scens"}, ["module alignlab.data has no class Scens", "'Scenes'"]),
    "no module": ({"data": "nowhere.Scenes"}, ["data: there is no module nowhere"]),
    "argument beside class_path": (
        {"objective": {"class_path": "InfoNCE", "scale": 2}},
        ["objective.scale", "init_args"],
    ),
    "given argument": (
        {"objective": {"class_path": "MLE", "init_args": {"backbone": "x"}}},
        ["objective.init_args.backbone: is passed by alignlab"],
    ),
    "argument of a part": (
        {
            "objective": {
                "class_path": "Mixture",
                "init_args": {"parts": {"a": {"class_path": "MLE", "init_args": {"x": 1}}}},
            }
        },
        ["objective.init_args.parts.a.init_args.x: MLE has no argument 'x' (it takes none)"],
    ),
    "part": (
        {"objective": {"class_path": "Mixture", "init_args": {"parts": {"a": "MLEE"}}}},
        ["objective.init_args.parts.a: there is no objective 'MLEE'"],
    ),
    "evaluator": ({"evaluators": ["Retreival"]}, ["evaluators.0: there is no evaluator", "did you mean 'Retrieval'"]),
    "evaluator twice": ({"evaluators": ["Retrieval", "Retrieval"]}, ["evaluators.1", "retrieval", "evaluators.0"]),
    "label twice": (
        {"evaluators": [{"class_path": "VQAAccuracy", "init_args": {"label": "caption"}}, "CaptionAccuracy"]},
        ["evaluators.1: its scores would be called caption, as those of evaluators.0", "label"],
    ),
    "evaluator's own data": (
        {
            "evaluators": [{"class_path": "VQAAccuracy", "init_args": {"data": "Scens"}}],
            "data": {"class_path": "LlavaJson", "init_args": {"path": "a", "image_folder": "b"}},
        },
        ["evaluators.0.init_args.data: there is no data module 'Scens'", "did you mean 'Scenes'"],
    ),
    "argument of an evaluator's own data": (
        {
            "evaluators": [
                {
                    "class_path": "VQAAccuracy",
                    "init_args": {"data": {"class_path": "Scenes", "init_args": {"num_tests": 1}}},
                }
            ]
        },
        ["evaluators.0.init_args.data.init_args.num_tests: Scenes has no argument", "'num_test'"],
    ),
    "requires of an evaluator with data of its own": (
        {
            "evaluators": [
                {
                    "class_path": "VQAAccuracy",
                    "init_args": {
                        "data": {"class_path": "LlavaPairs", "init_args": {"path": "a", "image_folder": "b"}}
                    },
                }
            ],
        },
        ["evaluators.0: VQAAccuracy requires questions, but data LlavaPairs supplies", "lacks questions"],
    ),
    "split that the data lack": (
        {
            "evaluators": [{"class_path": "CaptionAccuracy", "init_args": {"split": "compositional"}}],
            "data": {"class_path": "LlavaPairs", "init_args": {"path": "a", "image_folder": "b"}},
        },
        ["evaluators.0.init_args.split: there is no compositional split", "LlavaPairs has only train, val, test"],
    ),
    "adapter": ({"adapter": "LoRa"}, ["adapter: there is no adapter 'LoRa'", "Full"]),
    "checkpoint": ({"backbone": {"path": "scenes-part"}}, ["backbone.path", "did you mean 'scenes-parts'"]),
    "checkpoint to take from": (
        {"backbone": {"take": {"projector": "nowhere"}}},
        ["backbone.take.projector", "nowhere"],
    ),
    "stage": ({"backbone": {"path": "stage:on"}}, ["backbone.path: there is no earlier stage 'on'"]),
    "trainer argument of ours": ({"trainer": {"logger": True}}, ["trainer.logger: is set by alignlab", "wandb.mode"]),
    "callback's argument": (
        {"trainer": {"callbacks": [{"class_path": "EarlyStopping", "init_args": {"monitr": "x"}}]}},
        ["trainer.callbacks.0", "monitr"],
    ),
    "requires": (
        {"objective": "InfoNCE", "data": {"class_path": "LlavaJson", "init_args": {"path": "a", "image_folder": "b"}}},
        ["InfoNCE requires query, target", "LlavaJson supplies conversation", "lacks query, target"],
    ),
    "requires of a part": (
        {
            "objective": {"class_path": "Mixture", "init_args": {"parts": {"a": "MLE", "b": "InfoNCE"}}},
            "data": {"class_path": "LlavaJson", "init_args": {"path": "a", "image_folder": "b"}},
        },
        ["Mixture requires conversation, query, target", "lacks query, target"],
    ),
    "requires of an evaluator": (
        {
            "evaluators": ["VQAAccuracy"],
            "data": {"class_path": "LlavaJson", "init_args": {"path": "a", "image_folder": "b"}},
        },
        ["evaluators.0: VQAAccuracy requires questions", "lacks questions"],
    ),
    "python_path": ({"python_path": 3}, ["python_path: expected a list of folders"]),
    "stages": ({"stages": ["a"]}, ["stages: expected a mapping"]),
    "stage's name": ({"stages": {"a/b": {}}}, ["stages.a/b: names its folder"]),
    "stage of a stage": ({"stages": {"a": {"stages": {"b": {}}}}}, ["stages.a.stages: a stage has no stages"]),
}


class TestChecking:
    @pytest.mark.parametrize(("changes", "fragments"), BAD.values(), ids=BAD)
    def test_one_line_says_what_is_wrong(self, changes, fragments):
        (line,) = problems(PLAIN | changes)
        assert [fragment for fragment in fragments if fragment not in line] == []
        assert "Union" not in line and "<class" not in line

    def test_all_problems_come_at_once(self):
        config = {
            "objective": {"class_path": "InfoNCE", "init_args": {"scale": "x", "symetric": True}},
            "data": "Scens",
            "wandb": {"mode": "on"},
            "trainer": {"max_steps": "many"},
        }
        keys = [line.partition(": ")[0] for line in problems(config)]
        assert sorted(keys) == [
            "data", "objective.init_args.scale", "objective.init_args.symetric", "trainer.max_steps", "wandb.mode",
        ]  # fmt: skip

    def test_a_file_s_problems_come_with_file_and_line(self, write):
        base = write("data: Scenes\nwandb: {mode: on}\n", "base.yaml")
        path = write("base: base.yaml\nobjective: InfoNCE\noptimization:\n  lr: x\n")
        with pytest.raises(ConfigError) as caught:
            resolve_file(path, ["objective.scal=2"])
        assert [line.partition(": ")[0] for line in str(caught.value).splitlines()] == [
            "override objective.scal=2",
            f"{path}:4",
            f"{base}:2",
        ]

    def test_a_stage_s_problems_are_told_apart(self):
        lines = problems(PLAIN | {"seed": "x", "stages": {"one": {"objective": "MLEE"}, "two": {}}})
        assert [line.partition(": ")[0] for line in lines] == ["seed", "stages.one.objective"]

    def test_a_broken_module_of_the_user_says_why(self, write, tmp_path):
        write("import numpyy", "broken_import.py")
        write("x = 1 / 0", "broken_body.py")
        write("def f(:", "broken_syntax.py")
        for module, reason in {"import": "numpyy", "body": "ZeroDivisionError", "syntax": "SyntaxError"}.items():
            (line,) = problems(PLAIN | {"objective": f"broken_{module}.X", "python_path": [str(tmp_path)]})
            assert f"importing broken_{module} failed" in line and reason in line
