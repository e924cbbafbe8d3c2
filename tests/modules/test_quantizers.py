"""Quantisers: the recorded values of official code, what an update is, and what does not change it."""

import math
import os

import pytest
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from alignlab.certificate.children import preload, run_children
from alignlab.errors import InputError
from alignlab.functional import held_constants, normalize
from alignlab.modules import FSQ, LFQ, CountEMA, GradientCodebook, VectorQuantizer

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
MAKERS = {
    "norm": lambda: VectorQuantizer(6, num_codes=40),
    "count": lambda: CountEMA(6, num_codes=40),
    "count, Euclidean": lambda: CountEMA(6, num_codes=40, cosine=False),
    "gradient": lambda: GradientCodebook(6, num_codes=40),
    "gradient, Euclidean": lambda: GradientCodebook(6, num_codes=40, cosine=False),
    "fsq": lambda: FSQ(3, levels=[5, 4, 3]),
    "fsq, projected": lambda: FSQ(6, levels=[5, 4, 3]),
    "lfq": lambda: LFQ(5, bits=5),
    "lfq, projected": lambda: LFQ(6, bits=5, spherical=True),
}
TABLES = [name for name in MAKERS if "fq" not in name and "fsq" not in name]
FOLLOWING = ["norm", "count", "count, Euclidean"]
every = pytest.mark.parametrize("name", MAKERS)
tables = pytest.mark.parametrize("name", TABLES)
following = pytest.mark.parametrize("name", FOLLOWING)


def make(name, dtype=torch.float32):
    torch.manual_seed(0)
    return MAKERS[name]().to(dtype)


def tensors(recorded):
    """The recorded values, those of arrays as tensors."""
    return {name: torch.tensor(each["values"]) if isinstance(each, dict) else each for name, each in recorded.items()}


def some(quantizer, number=50, seed=1, dtype=torch.float32):
    return torch.randn(number, quantizer.dim, generator=torch.Generator().manual_seed(seed)).to(dtype)


def same(one, other):
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


# official code


def test_three_steps_and_an_evaluation_are_beit_s(golden):
    quantizer = VectorQuantizer(4, num_codes=8, revive_below=0)
    for number, case in enumerate(golden("adapters_tokenizer/beit2_norm_ema_quantizer")["cases"]):
        given, weights, expected = (tensors(case[part]) for part in ("inputs", "weights", "expected"))
        if number == 0:
            quantizer.codebook.copy_(weights["codebook"])
            quantizer.usage.copy_(weights["cluster_size"])
        torch.testing.assert_close(quantizer.codebook, weights["codebook"], **CLOSE)
        quantizer.train("train" in case["case"])
        z = given["z_bchw"].requires_grad_()
        out = quantizer(z.permute(0, 2, 3, 1).reshape(-1, 4))
        vectors = out.vectors.reshape(2, 2, 3, 4).permute(0, 3, 1, 2)
        assert out.codes.tolist() == expected["indices"].tolist()
        torch.testing.assert_close(vectors, expected["z_q_bchw"], **CLOSE)
        torch.testing.assert_close(out.losses.mean(), expected["loss"], **CLOSE)
        if quantizer.training:
            ((vectors * given["cotangent"]).sum() + out.losses.mean()).backward()
            torch.testing.assert_close(z.grad, tensors(case["expected_grads"])["z_bchw"], **CLOSE)
            quantizer.update()
            torch.testing.assert_close(quantizer.usage, expected["cluster_size_after"], **CLOSE)
        torch.testing.assert_close(quantizer.codebook, expected["codebook_after"], **CLOSE)
    assert number == 3 and quantizer.updates == 3


def test_count_ema_is_the_library_s(golden):
    number = 0
    for case in golden("adapters_tokenizer/vqp_vector_quantize")["cases"]:
        if "rotation_trick=False" not in case["case"]:
            continue
        settings = case["config"]
        given, weights, expected = (tensors(case[part]) for part in ("inputs", "weights", "expected"))
        quantizer = CountEMA(
            4, num_codes=6, decay=settings["decay"], commitment=settings["commitment_weight"],
            cosine=settings["use_cosine_sim"], revive_below=0,
        )  # fmt: skip
        quantizer.codebook.copy_(weights["embed"])
        quantizer.totals.copy_(weights["embed_avg"])
        quantizer.usage.copy_(weights["cluster_size"])
        x = given["x"].requires_grad_()
        out = quantizer(x.reshape(-1, 4))
        assert out.codes.tolist() == expected["indices"].flatten().tolist()
        torch.testing.assert_close(out.vectors.reshape(x.shape), expected["quantized"], **CLOSE)
        torch.testing.assert_close(out.losses.mean(), expected["loss"], **CLOSE)
        ((out.vectors.reshape(x.shape) * given["cotangent"]).sum() + out.losses.mean()).backward()
        torch.testing.assert_close(x.grad, tensors(case["expected_grads"])["x"], **CLOSE)
        quantizer.update()
        torch.testing.assert_close(quantizer.codebook, expected["embed_after"], **CLOSE)
        torch.testing.assert_close(quantizer.totals, expected["embed_avg_after"], **CLOSE)
        torch.testing.assert_close(quantizer.usage, expected["cluster_size_after"], **CLOSE)
        number += 1
    assert number == 2


def test_fsq_and_lfq_are_the_library_s(golden):
    number = 0
    for name in ("vqp_fsq", "vqp_lfq"):
        for case in golden(f"adapters_tokenizer/{name}")["cases"]:
            settings = case["config"]
            given, expected = tensors(case["inputs"]), tensors(case["expected"])
            if name == "vqp_fsq":
                quantizer, x, values = FSQ(len(settings["levels"]), levels=settings["levels"]), given["z"], "codes"
            else:
                quantizer = LFQ(
                    settings["dim"], bits=settings["dim"], spherical=settings["spherical"],
                    inverse_temperature=settings["inv_temperature"],
                )  # fmt: skip
                x, values = given["x"], "quantized"
            out = quantizer(x.reshape(-1, x.shape[-1]))
            assert out.codes.tolist() == expected["indices"].flatten().tolist()
            torch.testing.assert_close(out.vectors.reshape(x.shape), expected[values], **CLOSE)
            loss = expected.get("aux_loss", torch.tensor(0.0))
            torch.testing.assert_close(out.losses.mean(), loss, rtol=1e-4, atol=4e-5)  # see test_quantization
            number += 1
    assert number == 5


# by hand


def test_losses_by_hand():
    x = torch.tensor([[3.0, 4.0]])  # (0.6, 0.8) of length 1; (0.6 - 0)^2 + (0.8 - 1)^2 = 0.4, the mean 0.2
    for quantizer, expected in (
        (VectorQuantizer(2, num_codes=2, commitment=3.0), 0.6), (CountEMA(2, num_codes=2, commitment=0.5), 0.1),
        (GradientCodebook(2, num_codes=2, commitment=0.25), 0.25),
        (CountEMA(2, num_codes=2, cosine=False), 9.0),  # (3^2 + 3^2) / 2
    ):  # fmt: skip
        quantizer.codebook.data.copy_(torch.tensor([[-1.0, 0.0], [0.0, 1.0]]))
        out = quantizer(x)
        assert out.codes.tolist() == [1] and out.vectors.tolist() == [[0.0, 1.0]]
        assert out.losses.tolist() == pytest.approx([expected])


def test_gradients_of_a_trained_codebook_by_hand():
    quantizer = GradientCodebook(2, num_codes=2, commitment=0.25, cosine=False)
    quantizer.codebook.data.copy_(torch.tensor([[0.0, 0.0], [10.0, 10.0]]))
    x = torch.tensor([[1.0, 2.0]], requires_grad=True)
    quantizer(x).losses.sum().backward()
    assert quantizer.codebook.grad.tolist() == [[-1.0, -2.0], [0.0, 0.0]]  # d/dc mean (x - c)^2 = c - x
    assert x.grad.tolist() == [[0.25, 0.5]]


def test_a_trained_codebook_learns():
    quantizer, x = make("gradient, Euclidean"), some(MAKERS["gradient, Euclidean"](), 200)
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=0.05)
    losses = []
    for _ in range(40):
        loss = quantizer(x).losses.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


# what every quantiser keeps


@every
def test_codes_alone_give_the_vectors(name):
    quantizer = make(name)
    out = quantizer(some(quantizer))
    assert torch.equal(quantizer.lookup(out.codes), out.vectors)
    assert torch.equal(quantizer.lookup(out.codes.reshape(5, 10)), out.vectors.reshape(5, 10, -1))
    assert out.codes.min() >= 0 and out.codes.max() < quantizer.num_codes and len(out.codes.unique()) > 5


@every
def test_settings_make_it_again(name):
    import json

    quantizer = make(name)
    other = type(quantizer)(quantizer.dim, **json.loads(json.dumps(quantizer.settings)))
    assert other.settings == quantizer.settings and other.num_codes == quantizer.num_codes
    quantizer(some(quantizer))
    other.load_state_dict(quantizer.state_dict())
    assert same(quantizer, other)


@every
def test_no_rows_give_connected_zeros(name):
    quantizer = make(name)
    before = {key: value.clone() for key, value in quantizer.state_dict().items()}
    x = torch.empty(0, quantizer.dim, requires_grad=True)
    out = quantizer(x)
    assert out.vectors.shape == (0, quantizer.dim) and out.codes.shape == out.losses.shape == (0,)
    assert out.codes.dtype == torch.long
    (out.vectors.sum() + out.losses.sum()).backward()
    assert x.grad is not None
    quantizer.update()
    assert all(torch.equal(value, before[key]) for key, value in quantizer.state_dict().items())


@every
def test_autocast_changes_nothing(name):
    quantizer = make(name)
    x = some(quantizer)
    expected = quantizer(x)
    with torch.autocast("cpu", torch.bfloat16):
        found = quantizer(x)
        seen = quantizer(x.bfloat16())
        looked = quantizer.lookup(found.codes)
    assert torch.equal(found.codes, expected.codes) and torch.equal(found.vectors, expected.vectors)
    assert torch.equal(found.losses, expected.losses)
    assert seen.vectors.dtype == seen.losses.dtype == looked.dtype == torch.float32
    assert torch.equal(seen.codes, quantizer(x.bfloat16().float()).codes)


@every
def test_float64_stays_float64(name):
    quantizer = make(name, torch.float64)
    x = some(quantizer, dtype=torch.float64)
    quantizer.start(x)
    out = quantizer(x)
    assert out.vectors.dtype == out.losses.dtype == quantizer.lookup(out.codes).dtype == torch.float64
    quantizer.update()


@tables
def test_half_precision_does_not_reach_the_codebook(name):
    quantizer = make(name)
    codebook = quantizer.codebook.clone()
    quantizer.bfloat16()
    assert torch.equal(quantizer.codebook, codebook)
    quantizer(some(quantizer).bfloat16())
    quantizer.update()
    assert quantizer.codebook.dtype == torch.float32


@every
def test_gradients_are_those_with_what_is_declared_held(name):
    quantizer = make(name, torch.float64)
    x = (3 * some(quantizer, 8, dtype=torch.float64)).requires_grad_()
    weights = torch.randn(8, quantizer.dim, dtype=torch.float64)

    def scalar(x):
        out = quantizer(x)
        return (out.vectors * weights).sum() + out.losses.sum()

    with held_constants() as tape:
        scalar(x).backward()
        direction, step = torch.randn_like(x), 1e-6
        values = []
        for sign in (1, -1):
            tape.rewind()
            values.append(scalar(x.detach() + sign * step * direction).item())
    assert (values[0] - values[1]) / (2 * step) == pytest.approx((x.grad * direction).sum().item(), rel=1e-5)


def test_rows_of_another_width_are_refused():
    with pytest.raises(ValueError, match=r"VectorQuantizer needs rows \(M, 6\), got \(2, 5, 6\)"):
        make("norm")(torch.zeros(2, 5, 6))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: VectorQuantizer(0), "dim >= 1"),
        (lambda: VectorQuantizer(4, num_codes=1), "num_codes >= 2"),
        (lambda: VectorQuantizer(4, decay=1.0), r"decay in \[0, 1\), got 1.0"),
        (lambda: VectorQuantizer(4, commitment=-1), "commitment >= 0, got -1"),
        (lambda: CountEMA(4, revive_below=1.0), r"revive_below in \[0, 1\)"),
        (lambda: CountEMA(4, revive_after=-1), "revive_after >= 0"),
        (lambda: GradientCodebook(4, commitment=math.nan), "commitment >= 0, got nan"),
        (lambda: FSQ(4, levels=[8, 2]), r"at least 3 .* got \[8, 2\]"),
        (lambda: FSQ(4, levels=[]), "levels"),
        (lambda: LFQ(4, bits=25), r"bits in \[1, 24\], got 25"),
        (lambda: LFQ(4, bits=3, inverse_temperature=0), "inverse_temperature > 0"),
        (lambda: LFQ(4, bits=3, entropy=-0.1), "weights >= 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong, message):
    with pytest.raises(InputError, match=message):
        wrong()


# when an update happens, and what it sees


@tables
def test_nothing_is_counted_in_evaluation(name):
    quantizer, other = make(name).eval(), make(name).eval()
    quantizer(some(quantizer))
    assert same(quantizer, other)
    quantizer.update()
    assert same(quantizer, other)


@tables
@pytest.mark.parametrize("reentrant", [True, False])
def test_nothing_is_counted_twice_under_checkpointing(name, reentrant):
    one, other = make(name), make(name)
    x = some(one).requires_grad_()
    calls = []
    one.register_forward_pre_hook(lambda *_: calls.append(1))
    checkpoint(lambda x: one(x).losses.sum(), x, use_reentrant=reentrant).backward()
    assert len(calls) == 2  # so there was a second time
    other(x.detach())
    assert other.counts.sum() == 50 and same(one, other)


@tables
def test_micro_batches_are_one_batch(name):
    one, other = make(name), make(name)
    for step in range(3):
        x = some(one, seed=step)
        one(x)
        for part in (x[:7], x[7:7], x[7:]):
            other(part)
        assert torch.equal(one.counts, other.counts) and one.counts.sum() == 50
        one.update()
        other.update()
        assert same(one, other)
    assert one.updates == 3


@following
def test_a_codebook_follows_its_rows(name):
    quantizer, x = make(name), some(MAKERS[name](), 400)
    before = quantizer(x).losses.mean()
    for _ in range(50):
        quantizer(x)
        quantizer.update()
    assert quantizer(x).losses.mean() < 0.9 * before
    if quantizer.cosine:
        torch.testing.assert_close(quantizer.codebook.norm(dim=-1), torch.ones(40))


@tables
def test_training_goes_on_bit_for_bit_from_its_state(name):
    one = make(name)
    one(some(one, 3))
    one.update()
    one(some(one, 4))  # in the middle of an accumulation
    other = make(name)
    other.load_state_dict(one.state_dict())
    for quantizer in (one, other):
        if name in FOLLOWING:
            quantizer.revive_after = 0
        quantizer(some(quantizer, 5))
        quantizer.update()
    assert same(one, other) and one.updates == 2


@tables
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_leaves_no_trace(name, value):
    one, other = make(name), make(name)
    x = some(one)
    strange = torch.full((3, 6), value)
    strange[1, 1:] = 0
    for quantizer, rows in ((one, torch.cat([x, strange])), (other, x)):
        if name in FOLLOWING:
            quantizer.revive_after = 0
        out = quantizer(rows)
        assert out.losses[:50].isfinite().all() and not out.losses[50:].isfinite().any()
        quantizer.update()
    assert same(one, other)
    one(torch.full((4, 6), value))
    one.update()
    assert same(one, other)  # a step without any good row is none


# how it begins, and how codes die


@tables
def test_it_starts_with_the_means_of_rows(name):
    quantizer = make(name)
    torch.manual_seed(5)
    centres = 3 * torch.randn(40, 6)
    x = centres.repeat(20, 1) + 0.001 * torch.randn(800, 6)
    before = quantizer(x).losses.mean()
    quantizer.eval().start(torch.cat([x, torch.full((1, 6), math.nan), torch.zeros(1, 6)]))
    assert quantizer.started and quantizer(x).losses.mean() < 0.25 * before
    quantizer.train()(x)
    quantizer.update()
    assert quantizer(x).losses.mean() < 0.25 * before


@following
def test_a_start_forgets_what_was_gathered_for_other_codes(name):
    one, other = make(name), make(name)
    one(some(one))
    one.update()
    one(some(one, seed=2))
    for quantizer in (one, other):
        quantizer.start(some(quantizer, seed=3))
        quantizer.keys.copy_(other.keys)
    if name == "count, Euclidean":  # where rows are fewer than codes, others stay as they are
        one.codebook, one.totals = other.codebook, other.totals
    assert one.updates == 0 and same(one, other)


def test_fewer_rows_than_codes_leave_the_others_as_they_were():
    quantizer = make("norm")
    before, x = quantizer.codebook.clone(), some(quantizer, 10)
    quantizer.start(x)
    found = {tuple(row) for row in (normalize(x) @ quantizer.codebook.T > 1 - 1e-5).nonzero().tolist()}
    assert len({row for row, _ in found}) > 5  # rows are codes now
    assert torch.equal(quantizer.codebook[30:], before[30:]) and len(quantizer.codebook.unique(dim=0)) == 40


def test_grids_have_nothing_to_start():
    for name in ("fsq", "lfq"):
        quantizer = make(name)
        quantizer.start(some(quantizer))
        assert quantizer.started and quantizer.report() == {}


@tables
def test_a_start_needs_rows(name):
    quantizer = make(name)
    assert not quantizer.started
    with pytest.raises(InputError, match="start needs rows that are finite and not zero"):
        quantizer.start(torch.zeros(3, 6))
    assert not quantizer.started


@following
def test_a_collapse_is_seen_and_repaired(name):
    """All codes but one lie where no rows are."""
    torch.manual_seed(0)
    quantizer = type(make(name))(6, **make(name).settings | {"num_codes": 32, "decay": 0.9, "revive_after": 60})
    codes = normalize(1 + 0.1 * torch.randn(32, 6))
    codes[0] *= -1
    quantizer.place(slice(None), codes, quantizer.usage.clone())
    reports = []
    for step in range(200):
        quantizer(normalize(some(quantizer, 256, step) - 2))
        quantizer.update()
        reports.append({key: value.item() for key, value in quantizer.report().items()})
    before, after = reports[58], reports[-1]
    assert before["dead"] == 31 and before["usage"] == pytest.approx(1 / 32) and before["perplexity"] < 1.5
    assert after["dead"] <= 1 and after["usage"] > 0.95 and after["perplexity"] > 16
    never = type(quantizer)(6, **quantizer.settings | {"revive_below": 0.0})
    assert len(never.sample) == 0


def test_revival_puts_dead_codes_on_rows():
    quantizer = VectorQuantizer(6, num_codes=40, revive_after=0, revive_below=0.5)
    quantizer.usage.fill_(10)
    quantizer.usage[[3, 8]] = 0.01
    x = normalize(normalize(quantizer.codebook[9] + 0.01 * some(quantizer, 20)))
    quantizer(torch.cat([x, torch.zeros(2, 6)]))
    quantizer.update()
    for code in (3, 8):
        assert (x - quantizer.codebook[code]).abs().amax(-1).min() < 1e-6
    assert not torch.equal(quantizer.codebook[3], quantizer.codebook[8])
    assert quantizer.usage[3] == quantizer.usage[8] > 5 and quantizer.report()["dead"] == 0


def test_which_rows_revive_is_drawn_anew_every_update():
    seen = set()
    for number in range(30):
        quantizer = VectorQuantizer(6, num_codes=4)
        quantizer.updates.fill_(number)
        quantizer.update()
        rows = normalize(some(quantizer, 20))
        quantizer(rows)
        kept = (rows[:, None] - quantizer.sample).abs().amax(-1).amin(-1) < 1e-6
        assert kept.sum() == 4
        seen |= {index for index, each in enumerate(kept.tolist()) if each}
    assert len(seen) == 20  # 30 draws of 4 of 20: a row is left out once in 800 times


# several processes


def steps(name, quantizer, rows):
    """Start, then updates with revival; rows are those of a process, for the start and every step."""
    first, *others = rows
    quantizer.start(first)
    if name in FOLLOWING:
        away = -torch.ones(20, 6) - 0.1 * some(quantizer, 20)
        quantizer.place(slice(0, None, 2), normalize(away), 0.0)  # where no rows are
    for each in others:
        for part in (each + 3).split(9):
            quantizer(part)
        quantizer.update()
    return quantizer


def own(name, rank, sizes):
    quantizer = make(name)
    if name in FOLLOWING:
        quantizer.revive_after = 2
    rows = [some(quantizer, sum(sizes), seed=step) for step in range(5)]
    begin = sum(sizes[:rank])
    return quantizer, [each[begin : begin + sizes[rank]] for each in rows]


SIZES = (31, 12)


def parallel(rank):
    model = torch.nn.Sequential(torch.nn.Linear(6, 6), make("norm"))
    torch.nn.init.eye_(model[0].weight)
    torch.nn.init.zeros_(model[0].bias)
    wrapped = DistributedDataParallel(model)
    for step in range(2):
        rows = some(model[1], 40, seed=step)[20 * rank : 20 * rank + 20]
        with wrapped.no_sync():
            wrapped(rows[:8]).losses.sum().backward()
        wrapped(rows[8:]).losses.sum().backward()
        model[1].update()
    return {f"parallel.{key}": value for key, value in model[1].state_dict().items()}


def share(rank, folder):
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(len(SIZES))}
    distributed.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=len(SIZES))
    result = {}
    for name in TABLES:
        quantizer, rows = own(name, rank, SIZES)
        result |= {f"{name}.{key}": value for key, value in steps(name, quantizer, rows).state_dict().items()}
    quantizer = make("lfq")
    x = some(quantizer, sum(SIZES))[sum(SIZES[:rank]) :][: SIZES[rank]].requires_grad_()
    losses = quantizer(x).losses
    losses.sum().backward()
    result |= {"lfq.losses": losses.detach(), "lfq.grad": x.grad}
    quantizer.eval()(x[: rank + 1])  # in evaluation processes do not wait for each other
    if rank:
        quantizer(x)
    return result | parallel(rank)


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """What two processes with unequal rows find."""
    preload()
    folder = tmp_path_factory.mktemp("processes")
    return run_children(share, [(rank, folder) for rank in range(2)])


def test_processes_are_one(processes):
    one, other = processes
    for name in TABLES:
        quantizer, rows = own(name, 0, (sum(SIZES),))
        alone = steps(name, quantizer, rows).state_dict()
        for key, value in alone.items():
            assert torch.equal(one[f"{name}.{key}"], other[f"{name}.{key}"]), (name, key)
            torch.testing.assert_close(one[f"{name}.{key}"], value, rtol=1e-5, atol=1e-6, msg=f"{name} {key}")
        if name in FOLLOWING:
            assert alone["codebook"][::2].sum(-1).min() > 0  # dead codes were revived
    quantizer = make("lfq")
    x = some(quantizer, sum(SIZES)).requires_grad_()
    losses = quantizer(x).losses
    losses.sum().backward()
    torch.testing.assert_close(torch.cat([one["lfq.losses"], other["lfq.losses"]]), losses.detach())
    torch.testing.assert_close(torch.cat([one["lfq.grad"], other["lfq.grad"]]), x.grad)


def test_data_parallel_training_with_accumulation_loses_no_row(processes):
    """DistributedDataParallel sends the first process's buffers to the others, but not between micro-batches."""
    alone = make("norm")
    for step in range(2):
        alone(some(alone, 40, seed=step))
        alone.update()
    for seen in processes:
        torch.testing.assert_close(seen["parallel.usage"], alone.usage)
        torch.testing.assert_close(seen["parallel.codebook"], alone.codebook)
