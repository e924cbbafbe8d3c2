"""LaVITTokenizer: the loss by loops, the noise, what is frozen, how the codebook begins, and several processes."""

import copy
import math
import os
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch.plugins.environments import LightningEnvironment
from torch import distributed

from alignlab import InputError
from alignlab.backbones import Backbone
from alignlab.batch import Example, Turn
from alignlab.certificate.children import preload, run_children
from alignlab.certificate.training import Given as Batches
from alignlab.data import AlignmentData, Scenes
from alignlab.data.identity import seed_of
from alignlab.experiment.fitting import fit
from alignlab.modules import FSQ, AllPatches, RandomSelection, VectorQuantizer
from alignlab.modules.tokenizer import Kept, Selection
from alignlab.objectives import LaVITTokenizer, Optimization

SMALL = {"depth": 1, "num_heads": 4, "mlp_ratio": 1.5, "code_dim": 4}
CODES = partial(VectorQuantizer, num_codes=6)


@pytest.fixture
def backbone(tiny_backbone64):
    torch.manual_seed(0)
    return tiny_backbone64


def made(backbone, **settings):
    """With weights that matter."""
    torch.manual_seed(0)
    objective = LaVITTokenizer(backbone, **{**SMALL, **settings})
    with torch.no_grad():
        for parameter in objective.tokenizer.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.ndim > 1 else 0.1))
    return objective


@torch.no_grad()
def halve(tokenizer, backbone, examples):
    """Let a selector keep about half of the patches."""
    keep, drop = tokenizer.selection.log_probs(
        backbone.patch_features(backbone.encoder.batch(examples[:8], ("conversation",)).conversation)
    ).unbind(-1)
    tokenizer.selection.linears[-1].bias[0] -= (keep - drop).median() + 1e-3  # no tie


def two_pictures(examples):
    """A conversation with two pictures, one with one, and one with none."""
    first, second, third = (each.query[0] for each in examples[:3])
    answer = Turn("assistant", ("a red circle",))
    return [
        Example("two", (Turn("user", (first, second, "which one")), answer)),
        Example("one", (Turn("user", (third, "and this")), answer)),
        Example("none", (Turn("user", ("hello",)), answer)),
    ]


def batch_of(objective, examples):
    return objective.backbone.encoder.batch(examples, objective.requires)


def cosine(one, other):
    return float((one * other).sum() / one.norm() / other.norm())


def by_loops(objective, examples, *, step=0, training=True):
    """The terms of the loss, each a mean over pictures."""
    tokenizer, backbone = objective.tokenizer, objective.backbone
    terms = {"reconstruction_loss": [], "keep_loss": [], "quantizer_loss": [], "pixel_loss": []}
    for example in examples:
        generator = torch.Generator().manual_seed(seed_of(step, example.id))
        if not example.images:
            continue
        chat = batch_of(objective, [example]).conversation
        for features, shown in zip(backbone.patch_features(chat), backbone.pixels(chat), strict=True):
            probable = tokenizer.selection.log_probs(features[None])[0]
            gumbel = -torch.empty(36, 2).exponential_(generator=generator).log()
            keep = [bool((row + (g if training else 0)).argmax() == 0) for row, g in zip(probable, gumbel, strict=True)]
            mask = torch.tensor(keep).double()
            projected = tokenizer.to_codes(tokenizer.merger(features[None], mask[None]))
            rows = [row / row.norm() for row in projected]
            vectors, off = rows, [0.0]
            if tokenizer.quantizer is not None:
                nearest = [max(tokenizer.quantizer.codebook, key=lambda code, row=row: row @ code) for row in rows]
                pairs = zip(rows, nearest, strict=True)
                off = [sum(float(a - b) ** 2 for a, b in zip(*pair, strict=True)) / 4 for pair in pairs]
                vectors = nearest
            decoded = tokenizer.decode(torch.stack(list(vectors)), torch.tensor([len(rows)]))
            cosines = [cosine(back, there) for back, there in zip(decoded[0], features, strict=True)]
            decoded = decoded.detach()
            terms["reconstruction_loss"].append(sum(1 - each for each in cosines) / 36)
            terms["keep_loss"].append(2 * (1 / 3 - sum(keep) / 36) ** 2)
            terms["quantizer_loss"].append(sum(off) / len(off))
            terms["pixel_loss"].append(float((tokenizer.pixels(decoded)[0] - shown).square().mean().detach()))
    return {name: sum(values) / len(values) for name, values in terms.items()}


@pytest.mark.parametrize("quantizer", [None, CODES], ids=["rows", "codes"])
def test_the_loss_is_that_of_loops_over_pictures_and_patches(backbone, examples, quantizer):
    objective = made(backbone, quantizer=quantizer).train()
    halve(objective.tokenizer, backbone, examples)
    given = [*two_pictures(examples), *examples[4:6]]
    loss = objective.loss(batch_of(objective, given))
    expected = by_loops(objective, given)
    assert loss.weight == 5
    assert (expected["quantizer_loss"] > 0.05) == (quantizer is not None) and expected["keep_loss"] > 1e-3
    for name, value in expected.items():
        assert float(loss.report[name]) == pytest.approx(value, rel=1e-6, abs=1e-12), name
    assert float(loss.mean) == pytest.approx(sum(expected.values()), rel=1e-6)


def test_terms_of_a_picture_do_not_depend_on_how_many_tokens_others_have(backbone, examples):
    objective = made(backbone, quantizer=CODES).train()
    each = [objective.loss(batch_of(objective, [example])) for example in examples[:3]]
    counts = [float(loss.report["kept"]) * 36 for loss in each]
    together = objective.loss(batch_of(objective, examples[:3]))
    assert len(set(counts)) > 1  # else means over tokens and over pictures are the same
    for name in ("quantizer_loss", "reconstruction_loss", "keep_loss"):
        alone = [float(loss.report[name]) for loss in each]
        assert float(together.report[name]) == pytest.approx(sum(alone) / 3, rel=1e-6), name


def test_weights_scale_their_terms(backbone, examples):
    objective = made(backbone, quantizer=CODES)
    batch = batch_of(objective, examples[:2])
    one = objective.loss(batch)
    objective.keep_weight, objective.pixel_weight = 6.0, 0.5
    other = objective.loss(batch)
    assert float(other.report["keep_loss"]) == pytest.approx(3 * float(one.report["keep_loss"]), rel=1e-6)
    assert float(other.report["pixel_loss"]) == pytest.approx(0.5 * float(one.report["pixel_loss"]), rel=1e-6)
    objective.pixel_weight = 0.0
    assert "pixel_loss" not in objective.loss(batch).report


def test_pixels_decide_nothing_of_the_tokens(backbone, examples):
    objective = made(backbone)
    batch, found = batch_of(objective, examples[:2]), []
    for weight in (0.0, 100.0):
        objective.pixel_weight = weight
        objective.zero_grad()
        objective.loss(batch).mean.backward()
        found.append({name: each.grad for name, each in objective.tokenizer.named_parameters()})
    for name, gradient in found[0].items():
        assert (gradient is None) == ("pixel_decoder" in name)
        assert gradient is None or torch.equal(gradient, found[1][name]), name


def test_all_patches_at_a_ratio_of_one_cost_nothing_to_keep(backbone, examples):
    objective = made(backbone, selection=AllPatches, keep_ratio=1.0)
    report = objective.loss(batch_of(objective, examples[:3])).report
    assert report["keep_loss"] == 0 and report["kept"] == 1
    objective.keep_ratio = 0.75
    assert float(objective.loss(batch_of(objective, examples[:3])).report["keep_loss"]) == pytest.approx(2 * 0.25**2)


class Listening(Selection):
    """Keeps everything, and what noise it was given."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim, self.settings, self.heard = dim, {}, []

    def decide(self, features, noise=None):
        self.heard.append(noise)
        return Kept(torch.ones(features.shape[:2], dtype=features.dtype))


def test_noise_is_the_examples_and_the_steps(backbone, examples):
    objective = made(backbone, selection=Listening).train()
    heard, two = objective.tokenizer.selection.heard, two_pictures(examples)[0]
    orders = [[*examples[:3], two], [two, examples[2], examples[7]]]
    for given in orders:
        objective.loss(batch_of(objective, given))
    first, other = heard
    assert first.shape == (5, 36, 2)
    assert torch.equal(first[3:], other[:2]) and torch.equal(first[2], other[2])
    assert not torch.equal(first[3], first[4]) and not torch.equal(first[0], first[1])
    assert float(first.mean()) == pytest.approx(0.577, abs=0.2)  # Euler's constant, as of Gumbel's distribution
    objective.after_step()
    objective.loss(batch_of(objective, orders[0]))
    assert not torch.isclose(heard[-1], first).any(-1).all(-1).any()
    objective.eval().loss(batch_of(objective, orders[0]))
    assert heard[-1] is None


def test_evaluation_decides_by_the_threshold(backbone, examples):
    objective = made(backbone, quantizer=CODES).eval()
    halve(objective.tokenizer, backbone, examples)
    expected = by_loops(objective, examples[:3], training=False)
    batch = batch_of(objective, examples[:3])
    found = objective.loss(batch).report
    assert all(float(found[name]) == pytest.approx(value, rel=1e-6) for name, value in expected.items())
    objective.after_step()
    assert objective.loss(batch).report["reconstruction_loss"] == found["reconstruction_loss"]


def test_a_frozen_selector_has_no_gradient_and_decides_as_in_evaluation(backbone, examples):
    halve(made(backbone).tokenizer, backbone, examples)
    frozen = LaVITTokenizer(backbone, quantizer=CODES, **SMALL).train()
    batch = batch_of(frozen, examples[:4])
    frozen.loss(batch).mean.backward()
    selection = frozen.tokenizer.selection
    assert all(each.grad is None and not each.requires_grad for each in selection.parameters())
    assert all(each.grad is not None for each in frozen.tokenizer.merger.parameters())
    kept = selection.decide(backbone.patch_features(batch.conversation)).mask.mean()
    for _ in range(2):
        assert frozen.loss(batch).report["kept"] == kept
        frozen.after_step()
    free = LaVITTokenizer(backbone, quantizer=CODES, freeze_selector=False, **SMALL).train()
    free.loss(batch).mean.backward()
    assert all(each.grad is not None and each.grad.any() for each in free.tokenizer.selection.parameters())
    sampled, decided = (free.train(mode).loss(batch).report["reconstruction_loss"] for mode in (True, False))
    assert abs(sampled - decided) > 1e-4


def test_batches_of_texts_alone_weigh_nothing_and_reach_all_weights(backbone, examples):
    objective = made(backbone, quantizer=CODES).train()
    full = objective.loss(batch_of(objective, examples[:2])).report
    loss = objective.loss(batch_of(objective, two_pictures(examples)[2:]))
    assert loss.weight == 0 and loss.mean == 0 and loss.report.keys() == full.keys()
    assert all(torch.as_tensor(each).isfinite() for each in loss.report.values())
    objective.zero_grad()
    loss.mean.backward()
    assert all(each.grad is not None and not each.grad.any() for each in objective.parameters() if each.requires_grad)


class Given(AlignmentData):
    supplies = ("conversation", "target")

    def __init__(self, examples, *, batch_size=4):
        super().__init__(batch_size=batch_size)
        self.given = examples

    def examples(self, split):
        return self.given


QUIET = {"accelerator": "cpu", "devices": 1, "limit_val_batches": 0, "num_sanity_val_steps": 0, "log_every_n_steps": 1}


def fitted(objective, folder, *, data=None, steps=2, lr=1e-2, **settings):
    folder.mkdir(parents=True, exist_ok=True)
    objective.optimization = Optimization(lr=lr, schedule="constant")
    data = data or Scenes(num_train=24, batch_size=8)
    fit(objective, data, {**QUIET, "max_steps": steps, **settings}, folder)
    return objective


def test_nothing_of_the_backbone_moves_in_a_fit(tiny_backbone, tmp_path):
    objective = made(tiny_backbone, quantizer=CODES)
    before = copy.deepcopy(objective.state_dict())
    modes = []
    loss = objective.loss
    objective.loss = lambda batch: modes.append([m.training for m in tiny_backbone.model.modules()]) or loss(batch)
    fitted(objective, tmp_path, limit_val_batches=1, val_check_interval=1)
    assert len(modes) == 4 and not any(map(any, modes)) and objective.tokenizer.training
    after = objective.state_dict()
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert moved and all(name == "step" or "visual_tokenizer" in name for name in moved)
    parts = ("selection", "merger", "to_codes", "decoder", "pixel_decoder", "quantizer.codebook")
    assert all(any(f"visual_tokenizer.{part}." in f"{name}." for name in moved) for part in parts)


def test_the_codebook_begins_once_with_what_there_is(tiny_backbone, tmp_path):
    objective = made(tiny_backbone, quantizer=CODES)
    quantizer, starts = objective.tokenizer.quantizer, []
    drawn, start = quantizer.codebook.clone(), quantizer.start
    quantizer.start = lambda rows: starts.append(len(rows)) or start(rows)
    fitted(objective, tmp_path / "run", steps=1, lr=1e-9)
    assert quantizer.started and len(starts) == 1 and starts[0] >= 10 * 6
    assert not torch.isclose(quantizer.codebook, drawn).all(1).any()
    again = made(Backbone(tiny_backbone.path), quantizer=CODES)
    again.tokenizer.quantizer.start = lambda rows: starts.append(len(rows))
    fitted(again, tmp_path / "run", steps=2, lr=1e-9)
    assert len(starts) == 1 and again.tokenizer.quantizer.updates == 2
    continued = LaVITTokenizer(again.backbone, quantizer=CODES, **SMALL)
    fitted(continued, tmp_path / "next", steps=1)
    assert len(starts) == 1


def test_pictures_that_come_late_start_the_codebook_too(tiny_backbone, examples, tmp_path):
    texts = [Example(f"text {number}", two_pictures(examples)[2].conversation) for number in range(4)]
    objective = made(tiny_backbone, quantizer=CODES)
    fitted(objective, tmp_path, data=Given([*texts, *examples[:4]]), steps=4)
    assert objective.tokenizer.quantizer.started and math.isfinite(objective.logged["train/loss"])


@pytest.mark.parametrize("collapsed", [False, True])
def test_a_collapse_is_seen_in_what_is_logged(tiny_backbone, tmp_path, collapsed):
    objective = made(tiny_backbone, quantizer=partial(CODES, revive_below=0.0))
    quantizer = objective.tokenizer.quantizer
    if collapsed:  # rows lie around one code, and the others on the far side
        with torch.no_grad():
            objective.tokenizer.to_codes[-1].bias += 100.0
        quantizer.codebook.fill_(-0.5)
        quantizer.codebook[2] *= -1
        quantizer.started.fill_(True)
    fitted(objective, tmp_path, steps=3)
    seen = {name: objective.logged[f"train/{name}"] for name in ("dead", "usage", "perplexity")}
    if collapsed:
        assert seen == {"dead": 5, "usage": pytest.approx(1 / 6), "perplexity": pytest.approx(1)}
    else:
        assert seen["dead"] <= 2 and seen["usage"] >= 1 / 2 and seen["perplexity"] > 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keep_ratio": 0.0}, "0 < keep_ratio <= 1"),
        ({"keep_ratio": 1.1}, "0 < keep_ratio <= 1"),
        ({"keep_weight": -1.0}, "keep_weight = -1.0"),
        ({"pixel_weight": -0.1}, "pixel_weight = -0.1"),
        ({"keep_reduction": "mean"}, "keep_reduction is one of per_image, batch_mean, not 'mean'"),
        ({"num_heads": 5}, "num_heads that divides"),
        ({"depth": 0}, "a depth and a code_dim of 1 or more"),
    ],
)
def test_settings_out_of_range_are_refused(tiny_backbone, settings, message):
    with pytest.raises(InputError, match=message):
        LaVITTokenizer(tiny_backbone, **{**SMALL, **settings})


def test_a_tokenizer_keeps_its_form_its_selection_and_its_quantizer(tiny_backbone):
    half = partial(RandomSelection, ratio=0.5)
    LaVITTokenizer(tiny_backbone, selection=half, **SMALL)
    with pytest.raises(InputError, match="continues a tokenizer whose depth is 1, not 2"):
        LaVITTokenizer(tiny_backbone, **{**SMALL, "depth": 2})
    second = LaVITTokenizer(tiny_backbone, quantizer=CODES, selection=half, **SMALL)
    assert isinstance(second.tokenizer.selection, RandomSelection) and second.tokenizer.num_codes == 6
    with pytest.raises(InputError, match=r"quantizer is VectorQuantizer\(dim=4, num_codes=6.*, not FSQ"):
        LaVITTokenizer(tiny_backbone, quantizer=partial(FSQ, levels=[3, 3, 3, 3]), selection=half, **SMALL)
    with pytest.raises(InputError, match="not None; name the same one"):
        LaVITTokenizer(tiny_backbone, selection=half, **SMALL)
    third = LaVITTokenizer(tiny_backbone, quantizer=CODES, selection=half, **SMALL)
    assert third.tokenizer.quantizer is second.tokenizer.quantizer


def test_the_batchs_mean_couples_its_pictures(tiny_backbone):
    assert LaVITTokenizer(tiny_backbone, **SMALL).coupled == ""
    objective = LaVITTokenizer(tiny_backbone, keep_reduction="batch_mean", **SMALL)
    assert "batch" in objective.coupled and objective.per_process == objective.coupled


class FirstAll(Selection):
    """All patches of pictures whose first process sees them, a third of the others'."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim, self.settings = dim, {}
        self.third = RandomSelection(dim)

    def decide(self, features, noise=None):
        kept = self.third.decide(features)
        return Kept(torch.ones_like(kept.mask)) if distributed.get_rank() == 0 else kept


def share(rank: int, path: Path, folder: Path) -> dict:
    """One of two processes, which do not look for weights that have no gradient."""
    os.environ |= {"LOCAL_RANK": str(rank), "RANK": str(rank), "WORLD_SIZE": "2"}
    distributed.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2)
    found = {}
    for selection in (FirstAll, AllPatches):
        torch.manual_seed(0)
        objective = made(Backbone(str(path)), quantizer=CODES, selection=selection)
        together = {"devices": 2, "strategy": "ddp", "plugins": [LightningEnvironment()]}
        fitted(objective, folder / f"{selection.__name__} {rank}", steps=3, **together)
        state = objective.tokenizer.state_dict()
        found |= {f"{selection.__name__} {name}": value for name, value in state.items()}
    split = Scenes(num_train=24).examples("train")
    given = two_pictures(split)[2:] if rank == 0 else [split[0], split[1]]  # texts alone
    objective = made(Backbone(str(path)), quantizer=CODES)
    data = Batches((), [batch_of(objective, given)] * 2)
    fitted(objective, folder / f"texts {rank}", data=data, **together)
    return found | {f"texts {name}": value for name, value in objective.tokenizer.state_dict().items()}


def test_processes_that_keep_everything_or_see_no_picture_stay_in_step(tiny_path, tmp_path):
    preload()
    one, other = run_children(share, [(rank, tiny_path, tmp_path) for rank in range(2)])
    assert one.keys() == other.keys() and one["FirstAll quantizer.updates"] == 3
    assert one["texts quantizer.updates"] == 2
    assert all(torch.equal(value, other[name]) for name, value in one.items())
