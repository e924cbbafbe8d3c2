"""References of a policy: what they are, what they cost, and when they are refused."""

import copy
import gc
import os
import warnings
import weakref
from types import SimpleNamespace

import pytest
import torch
from drawing_files import draw, write_lines
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import FSDPStrategy
from peft import LoraConfig
from test_base import fit
from test_seva import DECODER, LN2, batch_of, changed, move, whole
from torch import distributed

from alignlab import InputError
from alignlab.adapters import Full, PLoRA, adapter_parameters, adapters_off, has_adapters
from alignlab.backbones import Backbone
from alignlab.backbones.tiny import give_tokenizer
from alignlab.certificate.children import run_children
from alignlab.data import Preferences, Scenes
from alignlab.data.logps import AnswerLogps
from alignlab.functional import preference
from alignlab.objectives import AdaptersOff, Cached, Free, FrozenCopy, Optimization, SeVa


def lora(backbone):
    backbone.model.requires_grad_(False)
    torch.manual_seed(0)
    backbone.model.add_adapter(LoraConfig(r=4, lora_alpha=8, target_modules=DECODER))
    return backbone


def test_without_adapters_the_policy_is_its_start_though_the_projector_trained(tiny_backbone64, examples):
    start = copy.deepcopy(tiny_backbone64)
    backbone = lora(tiny_backbone64)
    for parameter in backbone.model.model.multi_modal_projector.parameters():
        parameter.requires_grad_(True)
    objective = SeVa(backbone)
    assert isinstance(objective.reference, AdaptersOff)
    # Four weights of the projector: no copy of an adapter, which is turned off.
    assert len(objective.reference.kept) == 4
    trained = {name for name, p in backbone.named_parameters() if p.requires_grad}
    batch = batch_of(objective, examples)
    assert objective.loss(batch).mean.item() == pytest.approx(LN2, abs=1e-9)
    move(objective, batch, steps=3, lr=0.3)
    loss = objective.loss(batch)
    policy, reference = whole(backbone, batch), whole(start, batch)
    expected = preference.sigmoid(*policy, *reference, beta=0.1).mean()
    torch.testing.assert_close(loss.mean, expected, rtol=1e-9, atol=0)
    with adapters_off(backbone):
        shared = whole(backbone, batch)  # as officially: the reference sees through the policy's projector
    assert (shared - reference).abs().max() > 1e-3
    assert {name for name, p in backbone.named_parameters() if p.requires_grad} == trained


def test_adapters_are_only_turned_off_where_there_are_some(tiny_backbone):
    assert not has_adapters(tiny_backbone)
    with pytest.raises(InputError, match="AdaptersOff needs a policy with adapters"):
        SeVa(tiny_backbone, reference=AdaptersOff())


def test_a_copy_of_other_weights_than_train_is_refused(tiny_backbone):
    objective = SeVa(tiny_backbone)
    Full(parts=["projector"]).apply(tiny_backbone)
    with pytest.raises(InputError, match="apply the adapter first"):
        fit(objective)


def test_what_is_frozen_is_not_copied(tiny_backbone):
    Full(parts=["projector"]).apply(tiny_backbone)
    assert len(SeVa(tiny_backbone).reference.kept) == 4


def test_free_of_a_reference(tiny_backbone64, examples):
    objective = SeVa(tiny_backbone64, beta=0.3, reference=Free())
    batch = batch_of(objective, examples)
    chosen, rejected = whole(tiny_backbone64, batch)
    expected = -torch.nn.functional.logsigmoid(0.3 * (chosen - rejected)).mean()
    torch.testing.assert_close(objective.loss(batch).mean, expected)


def test_a_reference_keeps_its_weights_under_autocast(tiny_path, examples):
    backbone = Backbone(str(tiny_path))
    objective = SeVa(backbone, beta=1.0)
    batch = batch_of(objective, examples)
    move(objective, batch, lr=0.3)
    plain = objective.loss(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # which keeps weights in half precision, by their tensor
        half = objective.loss(batch)
    assert abs(plain.mean - LN2) > 0.05
    assert half.mean.item() == pytest.approx(plain.mean.item(), abs=0.02)
    assert half.report["rewards/margins"].item() == pytest.approx(plain.report["rewards/margins"].item(), abs=0.05)


@pytest.mark.parametrize("start", ["pissa", True])
def test_adapters_that_change_something_already_are_a_part_of_the_start(tiny_backbone, examples, start):
    tiny_backbone.model.requires_grad_(False)
    torch.manual_seed(0)
    settings = LoraConfig(r=4, lora_alpha=8, target_modules=DECODER, init_lora_weights=start)
    tiny_backbone.model.add_adapter(settings)
    if start is True:  # one that has been trained before
        for name, parameter in tiny_backbone.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    with pytest.raises(InputError, match="adapters that change something before training begins"):
        SeVa(tiny_backbone, reference=AdaptersOff())
    objective = SeVa(tiny_backbone)
    assert type(objective.reference) is FrozenCopy
    assert objective.loss(batch_of(objective, examples)).mean.item() == pytest.approx(LN2, abs=1e-5)


@pytest.fixture
def earlier(tiny_path, tmp_path):
    """A model whose visual tokens take branches that were trained before; a text says nothing of them."""
    torch.manual_seed(0)
    backbone = Backbone(str(tiny_path))
    PLoRA(ranks={"visual": 4}).apply(backbone)
    for parameter in adapter_parameters(backbone):
        parameter.data += 0.2 * torch.randn_like(parameter)
    backbone.save(tmp_path / "earlier")
    return tmp_path / "earlier"


def test_adapters_of_an_earlier_stage_are_a_part_of_the_start(earlier, examples):
    backbone = Backbone(str(earlier))
    PLoRA(ranks={"visual": 2}).apply(backbone)
    with pytest.raises(InputError, match="of an earlier stage say"):
        SeVa(copy.deepcopy(backbone), reference=AdaptersOff())
    objective = SeVa(backbone)
    assert type(objective.reference) is FrozenCopy
    batch, start = batch_of(objective, examples), Backbone(str(earlier)).eval()
    move(objective, batch, steps=6, lr=3.0)
    expected = preference.sigmoid(*whole(backbone, batch), *whole(start, batch), beta=0.1).mean()
    assert abs(expected.item() - LN2) > 5e-4  # branches begin slowly, as their B is zero
    torch.testing.assert_close(objective.loss(batch).mean, expected, rtol=1e-5, atol=1e-5)


def test_cached_logps_are_of_the_start_with_its_adapters(earlier, tmp_path, examples):
    def trained(folder):
        torch.manual_seed(0)
        backbone = Backbone(str(folder))
        PLoRA(ranks={"visual": 2}).apply(backbone)
        objective = SeVa(backbone, reference=Cached(str(tmp_path / "cache")))
        objective.optimization = Optimization(lr=1e-3)
        return fitted(objective)

    objective, start = trained(earlier), Backbone(str(earlier)).eval()
    batch = batch_of(objective, examples)
    answers = start.answers(batch.conversation, batch.rejected, batch.prompt_lengths)
    expected = start.answer_logps(answers, features=start.features(batch.conversation))
    torch.testing.assert_close(objective.reference.logps(batch, answers, []), expected, rtol=1e-4, atol=1e-4)
    for parameter in adapter_parameters(start):
        parameter.data += 1.0
    start.save(tmp_path / "other")
    trained(tmp_path / "other")
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 2


def test_a_tower_with_adapters_is_no_tower_of_the_reference(tiny_backbone64, examples):
    start = copy.deepcopy(tiny_backbone64)
    tiny_backbone64.model.requires_grad_(False)
    torch.manual_seed(0)
    tiny_backbone64.model.add_adapter(LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    objective = SeVa(tiny_backbone64)
    for name, parameter in tiny_backbone64.named_parameters():
        if "vision_tower" in name and "lora" in name:  # what has been learned there stays as it is
            torch.nn.init.normal_(parameter, std=0.3)
            parameter.requires_grad_(False)
    batch = batch_of(objective, examples)
    expected = preference.sigmoid(*whole(tiny_backbone64, batch), *whole(start, batch), beta=0.1).mean()
    assert abs(expected.item() - LN2) > 1e-3
    torch.testing.assert_close(objective.loss(batch).mean, expected, rtol=1e-6, atol=0)


def test_nothing_of_a_model_that_is_gone_is_kept(tiny_path):
    objective = SeVa(Backbone(str(tiny_path)))
    objective.state_dict()
    gone = weakref.ref(objective.reference.kept[0][1])
    del objective
    gc.collect()
    assert gone() is None


def test_whole_weights_are_needed_for_a_copy(tiny_backbone):
    trainer = SimpleNamespace(strategy=FSDPStrategy.__new__(FSDPStrategy))
    with pytest.raises(InputError, match="FrozenCopy exchanges whole weights, which FSDPStrategy cuts into pieces"):
        SeVa(tiny_backbone).begin(trainer)


def training(path, folder, *, seed=0, **settings):
    torch.manual_seed(seed)
    backbone = Backbone(str(path), **settings)
    objective = SeVa(backbone, reference=Cached(str(folder)))
    objective.optimization = Optimization(lr=1e-3)
    return objective


def fitted(objective, steps=1, **settings):
    trainer = Trainer(max_steps=steps, logger=False, enable_progress_bar=False, enable_model_summary=False,
                      limit_val_batches=0, enable_checkpointing=False, **settings)  # fmt: skip
    trainer.fit(objective, datamodule=Scenes(num_train=24, num_val=8, batch_size=8))
    return objective


def test_cached_logps_are_those_of_a_live_reference_and_computed_once(tiny_path, tmp_path, examples):
    live = SeVa(Backbone(str(tiny_path)))
    objective = fitted(training(tiny_path, tmp_path))
    (file,) = tmp_path.glob("*.safetensors")
    batch = batch_of(live, examples)
    answers = live.backbone.answers(batch.conversation, batch.rejected, batch.prompt_lengths)
    expected = live.reference.logps(batch, answers, [])
    torch.testing.assert_close(objective.reference.logps(batch, answers, []), expected, rtol=1e-5, atol=1e-5)
    fresh = training(tiny_path, tmp_path)
    with pytest.raises(InputError, match="nothing has been computed yet"):
        fresh.loss(batch)
    fresh.reference.table = objective.reference.table
    told = [changed(example, rejected="a lie") if example.id == "train-5" else example for example in examples]
    with pytest.raises(InputError, match="other texts of example 'train-5'"):
        fresh.loss(batch_of(fresh, told))
    assert fresh.loss(batch).mean.item() == pytest.approx(LN2, abs=1e-5)
    written = file.stat().st_mtime_ns
    fitted(training(tiny_path, tmp_path, seed=1), steps=2)  # another seed and budget, the same start
    assert file.stat().st_mtime_ns == written and len(list(tmp_path.glob("*.safetensors"))) == 1


def test_examples_that_cannot_be_read_have_no_cached_logps(tiny_path, tmp_path):
    draw(tmp_path, *(f"{number}.png" for number in range(8)))
    (tmp_path / "3.png").write_bytes(b"no picture")
    rows = [
        {"id": str(n), "image": f"{n}.png", "prompt": "what?", "chosen": f"answer {n}", "rejected": "a lie"}
        for n in range(8)
    ]
    path = str(write_lines(tmp_path / "pairs.jsonl", rows))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = Preferences(path=path, val_fraction=0.0, batch_size=4, unreadable="skip")
    (tmp_path / "5.png").unlink()
    objective = training(tiny_path, tmp_path / "cache")
    Trainer(max_steps=2, logger=False, enable_progress_bar=False, enable_model_summary=False,
            enable_checkpointing=False).fit(objective, datamodule=data)  # fmt: skip
    assert sorted(objective.reference.table.rows) == ["0", "1", "2", "4", "6", "7"]


def test_cached_logps_of_something_else_are_refused(tiny_path, tmp_path):
    objective = fitted(training(tiny_path, tmp_path))
    (file,) = tmp_path.glob("*.safetensors")
    changes = {
        "weights": lambda: moved(training(tiny_path, tmp_path)),
        "max_length": lambda: training(tiny_path, tmp_path, max_length=500),
        "image processor": lambda: resized(training(tiny_path, tmp_path)),
        "tokenizer": lambda: retold(training(tiny_path, tmp_path)),
    }
    for name, make in changes.items():
        other = fitted(make())  # has its own file
        assert other.reference.table.path != file
        content = file.read_bytes()
        other.reference.table.path.write_bytes(content)
        with pytest.raises(InputError, match=f"holds log-probabilities of other {name};"):
            fitted(make())
        other.reference.table.path.unlink()
    with pytest.raises(InputError, match="of other data;"):
        renamed = AnswerLogps(tmp_path, {**objective.reference.table.made_of, "data": "others"})
        os.link(file, renamed.path)
        renamed.read()
    file.write_bytes(b"no file")
    with pytest.raises(InputError, match="cannot be read"):
        fitted(training(tiny_path, tmp_path))


def test_a_visual_tokenizer_is_a_part_of_the_start(tiny_path, tmp_path):
    def begun(change=lambda tokenizer: None):
        objective = training(tiny_path, tmp_path)
        torch.manual_seed(2)
        give_tokenizer(objective.backbone)
        objective.backbone.visual_tokenizer.split()
        change(objective.backbone.visual_tokenizer)
        objective.reference.attach(objective.backbone)
        return objective.reference.fingerprint()

    def moved_code(tokenizer):
        tokenizer.quantizer.codebook[0] *= -1

    changes = [
        lambda tokenizer: next(tokenizer.input_merger.parameters()).data.add_(1e-3),
        lambda tokenizer: setattr(tokenizer, "discrete", True),
        lambda tokenizer: tokenizer.selection.settings.update(decision="topk"),
        moved_code,
    ]
    assert begun() == begun()
    assert len({training(tiny_path, tmp_path).reference.fingerprint(), begun(), *map(begun, changes)}) == 6


def moved(objective):
    parameter = next(objective.backbone.model.get_decoder().parameters())
    parameter.data += 1e-3
    objective.reference.attach(objective.backbone)
    return objective


def resized(objective):
    objective.backbone.encoder.image_processor.image_mean = [0.4, 0.4, 0.4]
    return objective


def retold(objective):
    processor = objective.backbone.encoder.processor
    processor.chat_template = processor.chat_template + "{# told otherwise #}"
    return objective


def test_cached_logps_that_are_gone_are_not_made_of_trained_weights(tiny_path, tmp_path):
    objective = fitted(training(tiny_path, tmp_path / "refs"))
    checkpoint = Trainer(max_steps=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
                         limit_val_batches=0, default_root_dir=tmp_path)  # fmt: skip
    data = Scenes(num_train=24, num_val=8, batch_size=8)
    checkpoint.fit(objective, datamodule=data)
    checkpoint.save_checkpoint(tmp_path / "last.ckpt")
    (file,) = (tmp_path / "refs").glob("*.safetensors")
    file.unlink()
    again = training(tiny_path, tmp_path / "refs")
    goes_on = Trainer(max_steps=2, logger=False, enable_progress_bar=False, enable_model_summary=False,
                      limit_val_batches=0, enable_checkpointing=False)  # fmt: skip
    with pytest.raises(InputError, match="is gone, and the weights are the start's no longer"):
        goes_on.fit(again, datamodule=data, ckpt_path=tmp_path / "last.ckpt", weights_only=True)


def known(table):
    """The names of what is in a table, and their log-probabilities."""
    names = sorted(table.rows)
    rows = torch.tensor([table.rows[name] for name in names])
    return names, table.of(names, table.contents[rows]).tolist()


def share(rank, path, folder):
    """One of two processes that train together."""
    os.environ |= {"LOCAL_RANK": str(rank), "RANK": str(rank), "WORLD_SIZE": "2"}
    distributed.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2)
    objective = training(path, folder / "refs")
    rows = objective.reference._rows
    computed = []
    objective.reference._rows = lambda trainer: [computed.append(row[0]) or row for row in rows(trainer)]
    fitted(objective, devices=2, strategy="ddp", plugins=[LightningEnvironment()], accelerator="cpu",
           use_distributed_sampler=False)  # fmt: skip
    names, values = known(objective.reference.table)
    return {"computed": " ".join(computed), "names": " ".join(names), "values": torch.tensor(values)}


def test_processes_share_the_work_and_all_know_the_result(tiny_path, tmp_path):
    one, other = run_children(share, [(rank, tiny_path, tmp_path) for rank in range(2)])
    halves = [set(each["computed"].split()) for each in (one, other)]
    assert len(halves[0]) + len(halves[1]) == 24 + 8 and not halves[0] & halves[1] and all(halves)
    assert torch.equal(one["values"], other["values"])
    names, values = known(fitted(training(tiny_path, tmp_path / "alone")).reference.table)
    assert one["names"].split() == names
    torch.testing.assert_close(one["values"], torch.tensor(values), rtol=1e-5, atol=1e-5)


def test_examples_of_one_name_are_refused(tmp_path):
    table = AnswerLogps(tmp_path, {"weights": "a"})
    with pytest.raises(InputError, match="several examples are called 'x'"):
        table.fill([("x", (0.0, 0.0), 1), ("y", (0.0, 0.0), 2), ("x", (1.0, 1.0), 3)])
    table.fill([("x", (-1.0, -2.0), 1), ("z", (-3.0, -4.0), 2**62)])
    table.save()
    again = AnswerLogps(tmp_path, {"weights": "a"})
    again.read()
    assert again.of(["z", "x"], torch.tensor([2**62, 1])).tolist() == [[-3.0, -1.0], [-4.0, -2.0]]
    with pytest.raises(InputError, match="no log-probabilities of example 'y'"):
        table.of(["x", "y"], torch.tensor([1, 2]))


def test_a_live_reference_resumes_as_the_start(tiny_path, examples):
    objective = SeVa(Backbone(str(tiny_path)))
    assert isinstance(objective.reference, FrozenCopy)
    batch = batch_of(objective, examples)
    move(objective, batch)
    resumed = SeVa(Backbone(str(tiny_path)))
    resumed.load_state_dict(objective.state_dict())
    assert torch.equal(resumed.loss(batch).mean, objective.loss(batch).mean)
