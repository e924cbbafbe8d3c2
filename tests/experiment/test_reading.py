"""Configs as text: files, bases, merging, overrides."""

import pytest

from alignlab.errors import InputError
from alignlab.experiment.reading import dump, merge, read


def content(path, overrides=()):
    """What ``read`` gives, without the folders."""
    config = read(path, overrides)
    del config["python_path"]
    return config


class TestReading:
    def test_exponents_are_floats_and_words_are_text(self, write):
        path = write("{a: 1e-4, b: 1e5, c: -.5, d: .inf, e: 12, f: off, g: 1:30, h: 2024-01-01, i: true, j: ~, k: 010}")
        expected = [1e-4, 1e5, -0.5, float("inf"), 12, "off", "1:30", "2024-01-01", True, None, 10]
        assert content(path) == dict(zip("abcdefghijk", expected, strict=True))

    def test_what_is_dumped_is_read_back(self, write):
        config = {
            "a": 1e-05,
            "b": "1e-05",
            "c": "no",
            "d": "12",
            "e": ["x: y", None, True],
            "f": {},
            "g": "null",
            "h": 3.0,
        }
        assert content(write(dump(config))) == config

    @pytest.mark.parametrize(
        ("text", "fragments"),
        [
            ("a: b: c", ["line 1, column 5", "mapping values"]),
            ("a: 1\nb: [1, 2\n", ["line 3", "from line 2"]),
            ("a: 1\nb: 2\na: 3\n", ["line 3, column 1", "'a' stands twice", "line 1"]),
            ("a: 1\n\tb: 2\n", ["line 2", "spaces"]),
            ("- a\n", ["key: value", "['a']"]),
            ("base: [3]\n", ["base", "[3]"]),
        ],
    )
    def test_malformed_yaml_is_refused_with_its_place(self, write, text, fragments):
        path = write(text)
        with pytest.raises(InputError) as caught:
            read(path)
        assert all(fragment in str(caught.value) for fragment in [str(path), *fragments])

    def test_a_missing_file_is_refused_with_the_near_spelling(self, write):
        path = write("a: 1", "focal.yaml")
        with pytest.raises(InputError, match=r"focl\.yaml: no such file; did you mean 'focal\.yaml'"):
            read(path.with_name("focl.yaml"))
        (path.parent / "focl.yml").mkdir()
        with pytest.raises(InputError, match=r"focl\.yaml: no such file; did you mean 'focal\.yaml'"):
            read(path.with_name("focl.yaml"))
        with pytest.raises(InputError, match="there is no folder"):
            read(path.parent / "nowhere" / "focal.yaml")
        with pytest.raises(InputError, match="this is a folder"):
            read(path.parent)

    def test_bases_lie_under_the_file_in_order(self, write):
        write("{a: 1, b: 1, c: {x: 1, y: [1, 2]}}", "bases/one.yaml")
        write("{b: 2, c: {x: 2}}", "bases/two.yaml")
        path = write("{base: [bases/one.yaml, bases/two.yaml], c: {y: [3]}}")
        assert content(path) == {"a": 1, "b": 2, "c": {"x": 2, "y": [3]}}

    def test_a_base_is_relative_to_the_file_that_names_it(self, write):
        write("{a: 1}", "deep/er/one.yaml")
        write("{base: er/one.yaml, b: 2}", "deep/two.yaml")
        assert content(write("base: deep/two.yaml")) == {"a": 1, "b": 2}

    def test_a_circle_of_bases_is_refused(self, write):
        path = write("base: b.yaml", "a.yaml")
        write("base: a.yaml", "b.yaml")
        with pytest.raises(InputError, match=r"circle: .*a\.yaml -> .*b\.yaml -> .*a\.yaml"):
            read(path)

    def test_a_missing_base_names_who_asked(self, write):
        with pytest.raises(InputError, match=r"experiment\.yaml: base: .*bse\.yaml: no such file"):
            read(write("base: bse.yaml"))


class TestMerging:
    def test_the_same_class_keeps_its_arguments(self):
        base = {"objective": {"class_path": "InfoNCE", "init_args": {"scale": 2}}}
        assert merge(base, {"objective": "InfoNCE"})["objective"]["init_args"] == {"scale": 2}
        assert merge(base, {"objective": "alignlab.objectives.InfoNCE"})["objective"]["init_args"] == {"scale": 2}
        assert merge(base, {"objective": {"init_args": {"symmetric": False}}})["objective"] == {
            "class_path": "InfoNCE",
            "init_args": {"scale": 2, "symmetric": False},
        }

    @pytest.mark.parametrize("other", ["MLE", {"class_path": "MLE"}, {"class_path": "MLE", "init_args": None}])
    def test_another_class_drops_the_arguments(self, other):
        base = {"objective": {"class_path": "InfoNCE", "init_args": {"scale": 2}}}
        assert merge(base, {"objective": other})["objective"] == other

    def test_arguments_join_the_short_form(self):
        merged = merge({"objective": "InfoNCE"}, {"objective": {"init_args": {"scale": 3}}})
        assert merged["objective"] == {"class_path": "InfoNCE", "init_args": {"scale": 3}}

    def test_classes_inside_arguments_follow_the_same_rule(self):
        parts = {"a": {"class_path": "InfoNCE", "init_args": {"scale": 2}}, "b": "MLE"}
        base = {"objective": {"class_path": "Mixture", "init_args": {"parts": parts}}}
        merged = merge(base, {"objective": {"init_args": {"parts": {"a": "MLE"}}}})
        assert merged["objective"]["init_args"]["parts"] == {"a": "MLE", "b": "MLE"}

    def test_null_replaces_and_neither_side_changes(self):
        base, over = {"adapter": {"class_path": "Full"}, "a": {"b": 1}}, {"adapter": None, "a": {"c": 2}}
        assert merge(base, over) == {"adapter": None, "a": {"b": 1, "c": 2}}
        assert base == {"adapter": {"class_path": "Full"}, "a": {"b": 1}}


class TestOverrides:
    @pytest.mark.parametrize(
        ("overrides", "expected"),
        [
            (["optimization.lr=1e-4"], {"optimization": {"lr": 1e-4, "weight_decay": 0.1}}),
            (["objective.scale=5"], {"objective": {"class_path": "InfoNCE", "init_args": {"scale": 5}}}),
            (["objective.init_args.scale=5"], {"objective": {"class_path": "InfoNCE", "init_args": {"scale": 5}}}),
            (["objective=MLE"], {"objective": "MLE"}),
            (["objective=Mixture", "objective.weights={a: 2}"],
             {"objective": {"class_path": "Mixture", "init_args": {"weights": {"a": 2}}}}),
            (["adapter.parts=[projector]", "adapter=Full"],
             {"adapter": {"class_path": "Full", "init_args": {"parts": ["projector"]}}}),
            (["evaluators.0.num_examples=3"],
             {"evaluators": [{"class_path": "Retrieval", "init_args": {"num_examples": 3}}, "VQAAccuracy"]}),
            (["evaluators.1=CaptionAccuracy"], {"evaluators": ["Retrieval", "CaptionAccuracy"]}),
            (["wandb.tags=[a, b]", "wandb.name=off"], {"wandb": {"tags": ["a", "b"], "name": "off"}}),
            (["stages.one.objective.scale=2"], {"stages": {"one": {"objective": {"init_args": {"scale": 2}}}}}),
        ],
    )  # fmt: skip
    def test_forms(self, write, overrides, expected):
        path = write("""
            objective: InfoNCE
            optimization: {lr: 1, weight_decay: 0.1}
            evaluators: [Retrieval, VQAAccuracy]
        """)
        assert content(path, overrides) == content(path) | expected

    def test_a_part_of_a_mixture_is_reached(self, write):
        path = write("objective: {class_path: Mixture, init_args: {parts: {a: InfoNCE}}}")
        changed = content(path, ["objective.parts.a.scale=2"])["objective"]["init_args"]["parts"]
        assert changed == {"a": {"class_path": "InfoNCE", "init_args": {"scale": 2}}}

    @pytest.mark.parametrize(
        ("override", "fragment"),
        [
            ("optimization.lr", "expected key=value"),
            ("a..b=1", "expected key=value"),
            ("optimization.lr=[1", "the value is not YAML"),
            ("optimization.lr.x=1", "optimization.lr is 1 and has nothing below it"),
            ("evaluators.2.num_examples=1", "evaluators is a list of 2"),
            ("evaluators.x=1", "evaluators is a list of 2"),
            ("base=other.yaml", "base is a key of files"),
        ],
    )
    def test_bad_ones_are_refused(self, write, override, fragment):
        path = write("{optimization: {lr: 1}, evaluators: [Retrieval, VQAAccuracy]}")
        with pytest.raises(InputError) as caught:
            read(path, [override])
        assert f"override {override!r}" in str(caught.value) and fragment in str(caught.value)

    def test_they_do_without_a_file(self):
        config = content(None, ["objective=MLE", "data.num_train=64", "data=Scenes"])
        assert config == {"objective": "MLE", "data": {"class_path": "Scenes", "init_args": {"num_train": 64}}}
