"""What is exported computes the same in plain transformers and peft, in a process without alignlab."""

import pytest
import torch
from adapting import plain_logits, trained
from safetensors.torch import load_file

from alignlab import InputError
from alignlab.adapters import DoRA, LoRA, PLoRA, adapters_off
from alignlab.backbones import Backbone
from alignlab.cli import main
from alignlab.experiment.export import export


@pytest.fixture
def tokens(tiny_backbone, examples):
    return tiny_backbone.encoder.batch(examples[:3], ("conversation",)).conversation


@pytest.mark.parametrize("kind", [LoRA, DoRA])
def test_lora_and_dora_are_merged_into_plain_weights(tiny_path, tmp_path, tokens, kind):
    saved = trained(tiny_path, kind(rank=2, parts=["vision_tower", "language_model"], train=["projector"]))
    saved.save(tmp_path / "a")
    assert export(tmp_path / "a", tmp_path / "out") is None
    assert not (tmp_path / "out" / "adapter").exists()
    assert torch.allclose(plain_logits(tmp_path / "out", tokens), saved(tokens).logits, atol=1e-5)
    again = Backbone(str(tmp_path / "out")).eval()
    assert torch.allclose(again(tokens).logits, saved(tokens).logits, atol=1e-5)


@pytest.mark.parametrize("ranks", [{"visual": 3}, {"visual": 3, "all": 2}])
def test_branches_of_some_tokens_stay_beside_the_model_and_the_readme_says_how(tiny_path, tmp_path, tokens, ranks):
    saved = trained(tiny_path, PLoRA(ranks=ranks, train=["projector"]))
    saved.save(tmp_path / "a")
    assert "one kind alone (visual)" in export(tmp_path / "a", tmp_path / "out")
    # The same operations in the same order: not one bit differs.
    assert torch.equal(plain_logits(tmp_path / "out", tokens, alignlab=True), saved(tokens).logits)
    base = Backbone(str(tmp_path / "out")).eval()
    with adapters_off(saved.model):
        assert torch.equal(base(tokens).logits, saved(tokens).logits)


def test_branches_of_all_tokens_are_merged(tiny_path, tmp_path, tokens):
    saved = trained(tiny_path, PLoRA(ranks={"all": 3}))
    saved.save(tmp_path / "a")
    assert export(tmp_path / "a", tmp_path / "out") is None
    assert torch.allclose(plain_logits(tmp_path / "out", tokens), saved(tokens).logits, atol=1e-5)


def test_two_sets_are_merged_one_after_the_other(tiny_path, tmp_path, tokens):
    trained(tiny_path, LoRA(rank=2)).save(tmp_path / "a")
    trained(tmp_path / "a", LoRA(rank=3, modules=["v_proj", "up_proj"])).save(tmp_path / "b")
    export(tmp_path / "b", tmp_path / "out")
    wanted = Backbone(str(tmp_path / "b")).eval()(tokens).logits
    assert torch.allclose(Backbone(str(tmp_path / "out")).eval()(tokens).logits, wanted, atol=1e-5)


def test_the_type_is_that_asked_for(tiny_path, tmp_path):
    trained(tiny_path, LoRA(rank=2)).save(tmp_path / "a")
    export(tmp_path / "a", tmp_path / "out", dtype="bfloat16")
    assert {each.dtype for each in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.bfloat16}


def test_what_is_there_is_not_overwritten_and_nothing_half_is_left(tiny_path, tmp_path, capsys):
    trained(tiny_path, LoRA(rank=2)).save(tmp_path / "a")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    assert main(["export", str(tmp_path / "a"), str(tmp_path / "out")]) == 2
    assert "is there already" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]
    with pytest.raises(InputError, match="nowhere"):
        export(tmp_path / "nowhere", tmp_path / "other")
    (tmp_path / "other").mkdir()
    assert main(["export", str(tmp_path / "a"), str(tmp_path / "other")]) == 0
    assert (tmp_path / "other" / "model.safetensors").exists()
    assert not list(tmp_path.glob(".*"))


def test_nothing_is_exported_into_its_source(tiny_path, tmp_path):
    trained(tiny_path, LoRA(rank=2)).save(tmp_path / "a")
    before = sorted(tmp_path.rglob("*"))
    for output in (tmp_path / "a" / "out", tmp_path / "other" / ".." / "a" / "more" / "out"):
        with pytest.raises(InputError, match="lies in .*a, which would be exported into itself"):
            export(tmp_path / "a", output)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_place_that_cannot_be_written_is_named_without_an_option_that_there_is_not(tiny_path, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file/out cannot be written: .*choose another place") as raised:
        export(tiny_path, tmp_path / "file" / "out")
    assert "--output" not in str(raised.value)


def test_an_interrupted_export_leaves_nothing(tiny_path, tmp_path, monkeypatch):
    trained(tiny_path, LoRA(rank=2)).save(tmp_path / "a")

    def interrupt(*arguments, **named):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export(tmp_path / "a", tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"a"}


def test_a_backbone_without_adapters_is_written_as_it_is(tiny_path, tmp_path):
    assert export(tiny_path, tmp_path / "out") is None
    first, second = (load_file(folder / "model.safetensors") for folder in (tiny_path, tmp_path / "out"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_name_of_nothing_is_refused_as_what_it_looks_like(tmp_path):
    with pytest.raises(InputError, match=r"export: there is no directory .*nowhere, and the packaged checkpoints are"):
        export(tmp_path / "nowhere", tmp_path / "out")


def test_weights_can_be_read_by_whoever_may_read_the_rest(tiny_path, tmp_path):
    export(tiny_path, tmp_path / "out")
    modes = {file.stat().st_mode for file in (tmp_path / "out").iterdir() if file.is_file()}
    assert len(modes) == 1
