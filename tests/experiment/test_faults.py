"""Faults: what stops a run costs it no more than the steps since the last checkpoint, and is said in one message."""

import contextlib
import itertools
import json
import math
import multiprocessing
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
import warnings
import zipfile
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import torch
import yaml
from lightning.pytorch.utilities import rank_zero_only
from safetensors.torch import load_file

from alignlab import InputError
from alignlab.cli import main
from alignlab.experiment import record
from alignlab.experiment.config import _parsed_text, resolve
from alignlab.experiment.run import run
from alignlab.objectives import MLE

STEPS = 13


class Noisy(MLE):
    """An objective with randomness of its own, of all three sorts, in training and in validation."""

    def loss(self, batch):
        loss = super().loss(batch)
        return replace(loss, mean=loss.mean * (torch.rand(()) + random.random() + numpy.random.rand()))


class Poisoned(MLE):
    """An objective that spoils the third batch of a process, unless it is told to spare it."""

    spared = 0
    seen = 0

    def loss(self, batch):
        loss = super().loss(batch)
        self.seen += self.training
        spoilt = self.seen == 3 and self.trainer.global_rank >= self.spared
        return replace(loss, mean=self.spoil(loss.mean)) if spoilt else loss

    def spoil(self, mean):
        return mean * math.nan


class PoisonedValue(Poisoned):
    """The loss is not finite, its gradient is."""

    def spoil(self, mean):
        return mean + math.inf


class PoisonedGradient(Poisoned):
    """The loss is finite, its gradient is not: 0 times the infinite slope of a root at 0."""

    def spoil(self, mean):
        return mean + 0 * torch.sqrt(0 * mean)


class Slow(MLE):
    """An objective whose third step does not end."""

    def loss(self, batch):
        if self.trainer.global_step == 2:
            time.sleep(600)
        return super().loss(batch)


@pytest.fixture(scope="module")
def objective():
    """Puts another class in the place of MLE, also where one was read from the same config before."""
    with pytest.MonkeyPatch.context() as patch:

        def replaced(made):
            patch.setattr("alignlab.objectives.MLE", made)
            _parsed_text.cache_clear()

        yield replaced
    _parsed_text.cache_clear()


@pytest.fixture(autouse=True)
def noisy(objective):
    objective(Noisy)


@pytest.fixture(scope="module")
def config(tiny_path):
    """Checkpoints at 2, 4, ...; lines at 3, 6, ...; epochs of 5 steps, each with its validation."""
    data = {"num_train": 40, "num_val": 8, "num_test": 8, "batch_size": 8}
    return {
        "objective": "MLE",
        "backbone": {"path": str(tiny_path)},
        "data": {"class_path": "Scenes", "init_args": data},
        "trainer": {"max_steps": STEPS, "log_every_n_steps": 3, "limit_val_batches": 1},
        "evaluators": [],
        "wandb": {"mode": "disabled"},
        "checkpoint_every": 2,
    }


@pytest.fixture(scope="module")
def whole(config, objective, tmp_path_factory):
    """The directory of the uninterrupted run."""
    objective(Noisy)
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(resolve(config), folder)
    return folder


@pytest.fixture(scope="module")
def stopped(config, objective, tmp_path_factory):
    """The directory of a run that ended in its 7th step, with checkpoints of steps 4 and 6."""
    objective(Noisy)
    folder = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.raises(KeyboardInterrupt):
        run(resolve(config), folder, on_progress=at(7, raise_interrupt))
    assert [step_of(folder, name) for name in ("last", "previous")] == [6, 4]
    return folder


def at(step, action):
    """A progress function that acts once, at a step of training."""
    done = []

    def notice(progress):
        if progress.stage == "fit" and progress.step >= step and not done:
            done.append(action())

    return notice


def at_batch(number, action):
    """A progress function that acts at a micro-batch."""
    batches = itertools.count(1)
    # The first thing told is who trains, before any micro-batch.
    return lambda progress: action() if progress.parameters is None and next(batches) == number else None


def raise_interrupt():
    raise KeyboardInterrupt


def ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)


def slow_disk():
    """Data take half a second to reach the disk."""
    os.fsync = lambda file: time.sleep(0.5)


def step_of(folder, name="last"):
    return torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)["global_step"]


def steps(folder):
    file = folder / "curve.jsonl"
    return [json.loads(line)["step"] for line in file.read_text().splitlines()] if file.exists() else []


def assert_same(folder, whole):
    """Weights, curve and metrics are those of the uninterrupted run, bit for bit; nothing half-written is left."""
    expected = load_file(whole / "backbone" / "model.safetensors")
    weights = load_file(folder / "backbone" / "model.safetensors")
    assert all(torch.equal(value, weights[name]) for name, value in expected.items())
    assert (folder / "curve.jsonl").read_text() == (whole / "curve.jsonl").read_text()
    metrics, expected = (json.loads((path / "metrics.json").read_text()) for path in (folder, whole))
    # Operations are those of the micro-batches that a session counts, which are others after a resume.
    for differs in ("seconds", "peak_memory_mib", "throughput", "flops", "config_hash"):
        del metrics[differs], expected[differs]
    assert metrics == expected
    assert not list(folder.rglob("*.partial"))


class Command:
    """An alignlab command in a process of its own, forked so that nothing is imported again."""

    def __init__(self, *arguments, log, before):
        self.log = log
        self.process = multiprocessing.get_context("fork").Process(target=self._main, args=(arguments, before))
        self.process.start()

    def _main(self, arguments, before):
        os.setpgid(0, 0)
        with self.log.open("wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))
        warnings.showwarning = lambda message, *where: print(message, file=sys.stderr)  # pytest collects them
        before()
        try:
            code = main(list(arguments))
        except SystemExit as end:
            code = end.code
        sys.exit(code)

    @property
    def step(self):
        """The last step it told of."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return max((int(line.split()[1].partition("/")[0]) for line in lines if line.startswith("fit ")), default=0)

    def wait(self, moment):
        while not moment():
            assert self.process.is_alive(), f"ended before: {self.log.read_text()}"

    def kill(self):
        os.killpg(self.process.pid, signal.SIGKILL)
        assert self.end()[0] == -signal.SIGKILL

    def end(self, seconds=60):
        """Exit code and what was printed."""
        self.process.join(seconds)
        assert self.process.exitcode is not None, f"still running: {self.log.read_text()}"
        return self.process.exitcode, self.log.read_text()


@pytest.fixture
def start(config, tmp_path):
    """Starts `alignlab fit`, in ``tmp_path / "run"`` unless another output is given."""
    commands = []

    def start(changes=None, *, output=tmp_path / "run", before=lambda: None):
        file = tmp_path / "experiment.yaml"
        file.write_text(yaml.safe_dump({**config, **(changes or {})}))
        log = tmp_path / f"{len(commands)}.log"
        arguments = ("fit", "--config", str(file), "--output", str(output))
        commands.append(Command(*arguments, log=log, before=before))
        return commands[-1]

    yield start
    for command in commands:
        command.process.kill()


@pytest.fixture
def start_two(config, start):
    """Starts `alignlab fit` as two processes of one run."""

    def start_two(**options):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        changes = {"trainer": {**config["trainer"], "accelerator": "cpu", "devices": 2}}
        return [start(changes, before=lambda rank=rank: become(rank, port), **options) for rank in (0, 1)]

    return start_two


def become(rank, port):
    """What torchrun tells a process."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "none"}
    os.environ |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0"}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    rank_zero_only.rank = rank


class TestKill:
    def test_a_run_killed_six_times_resumes_to_the_same_end(self, start, whole, tmp_path):
        partial = tmp_path / "run" / "checkpoints" / ".last.ckpt.partial"
        command = start(before=slow_disk)
        command.wait(partial.exists)
        command.kill()
        assert partial.exists()  # killed inside the write of a checkpoint
        chance = random.Random(0)
        for step in sorted(chance.choices(range(STEPS - 3), k=5)):
            command = start()
            command.wait(lambda command=command, step=step: command.step >= step)
            time.sleep(chance.uniform(0, 0.1))
            command.kill()
        assert start().end()[0] == 0
        assert_same(tmp_path / "run", whole)

    @pytest.mark.parametrize("step", [1, 2, 3, 4, 5, 6, 10, STEPS])
    def test_no_step_is_a_bad_one_to_stop_at(self, config, whole, tmp_path, step):
        with pytest.raises(KeyboardInterrupt):
            run(resolve(config), tmp_path / "run", on_progress=at(step, raise_interrupt))
        run(resolve(config), tmp_path / "run")
        assert_same(tmp_path / "run", whole)

    def test_what_a_kill_left_half_written_is_removed(self, config, stopped, tmp_path):
        shutil.copytree(stopped, tmp_path / "run")
        (tmp_path / "run" / "checkpoints" / ".last.ckpt.partial").write_bytes(b"half")
        with pytest.raises(KeyboardInterrupt):
            run(resolve(config), tmp_path / "run", on_progress=at(7, raise_interrupt))
        assert not list(tmp_path.rglob("*.partial"))


class TestUnreadable:
    @pytest.mark.parametrize("size", [0, 1, 1000, -1, -10, -1000])
    def test_a_truncated_checkpoint_gives_way_to_the_one_before(self, config, stopped, whole, tmp_path, size):
        shutil.copytree(stopped, tmp_path / "run")
        last = tmp_path / "run" / "checkpoints" / "last.ckpt"
        last.write_bytes(last.read_bytes()[:size])
        with pytest.warns(match=r"last.ckpt cannot be read .* going on from .*previous.ckpt, of step 4"):
            run(resolve(config), tmp_path / "run")
        assert_same(tmp_path / "run", whole)

    def test_a_damaged_checkpoint_is_never_kept_as_the_previous_one(self, config, stopped, whole, tmp_path):
        shutil.copytree(stopped, tmp_path / "run")
        last = tmp_path / "run" / "checkpoints" / "last.ckpt"
        content = bytearray(last.read_bytes())
        with zipfile.ZipFile(last) as archive:  # within a weight, as what fills the file up between them says nothing
            weight = archive.read(max(archive.infolist(), key=lambda entry: entry.file_size))
        content[content.index(weight) + len(weight) // 2] ^= 1
        last.write_bytes(content)
        with pytest.warns(match="is damaged"), pytest.raises(KeyboardInterrupt):
            run(resolve(config), tmp_path / "run", on_progress=at(7, raise_interrupt))
        assert [step_of(tmp_path / "run", name) for name in ("last", "previous")] == [6, 4]
        run(resolve(config), tmp_path / "run")
        assert_same(tmp_path / "run", whole)

    def test_the_previous_checkpoint_alone_is_enough(self, config, stopped, whole, tmp_path):
        shutil.copytree(stopped, tmp_path / "run")
        (tmp_path / "run" / "checkpoints" / "last.ckpt").unlink()  # as between the two moves of a write
        run(resolve(config), tmp_path / "run")
        assert_same(tmp_path / "run", whole)

    def test_two_unreadable_checkpoints_are_named(self, config, stopped, tmp_path):
        shutil.copytree(stopped, tmp_path / "run")
        for name in ("last", "previous"):
            (tmp_path / "run" / "checkpoints" / f"{name}.ckpt").write_bytes(b"?")
        with pytest.raises(InputError, match="last.ckpt cannot be read .* and .*previous.ckpt cannot be read .*delete"):
            run(resolve(config), tmp_path / "run")


class TestNotFinite:
    @pytest.mark.parametrize(
        ("made", "what"), [(Poisoned, "loss"), (PoisonedValue, "loss"), (PoisonedGradient, "gradient")]
    )
    def test_training_stops_before_the_weights_change(self, start, objective, tmp_path, made, what):
        objective(made)
        code, said = start().end()
        path = tmp_path / "run" / "checkpoints" / "last.ckpt"
        expected = f"alignlab: error: {made.__name__}: the {what} of step 3 is not finite; "
        (message,) = said.splitlines()[-1:]
        assert code == 2 and message.startswith(expected) and "Traceback" not in said
        assert f"the last good checkpoint is {path}, of step 2" in message
        order = torch.randperm(40, generator=torch.Generator().manual_seed(hash((0, 0)) % 2**63))[16:24]
        assert f"examples: {', '.join(f'train-{index}' for index in order)};" in message
        state = torch.load(path, weights_only=True)
        assert state["global_step"] == 2 and all(value.isfinite().all() for value in state["state_dict"].values())

    def test_all_processes_stop_together_and_the_first_one_says_it(self, start_two, objective, monkeypatch):
        objective(Poisoned)
        monkeypatch.setattr(Poisoned, "spared", 1)  # the loss of the second process alone is spoilt
        (code, said), (_, silent) = (command.end(30) for command in start_two())
        assert code == 2 and "Poisoned: the loss of step 3 is not finite" in said
        assert "last good checkpoint" in said and not silent
        assert said.partition("examples: ")[2].partition(";")[0].count("train-") == 8


class TestInterrupt:
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    @pytest.mark.parametrize("workers", [0, 1])
    def test_ctrl_c_leaves_a_checkpoint_of_the_last_step(self, start, config, whole, tmp_path, number, workers):
        changes = {"checkpoint_every": 100, "data": deepcopy(config["data"])}
        changes["data"]["init_args"]["num_workers"] = workers
        command = start(changes)
        command.wait(lambda: command.step >= 4)
        # A terminal's Ctrl-C reaches the processes that load data too.
        (os.killpg if number == signal.SIGINT else os.kill)(command.process.pid, number)
        code, said = command.end()
        assert code == 130 and "Traceback" not in said, said
        assert said.count("stopping after this step") == 1
        assert said.splitlines()[-1].startswith("alignlab: interrupted; the same command goes on")
        assert step_of(tmp_path / "run") >= 4 and not (tmp_path / "run" / "metrics.json").exists()
        assert start(changes).end()[0] == 0
        assert_same(tmp_path / "run", whole)

    @pytest.mark.parametrize("step", [1, 4, 5, 6])
    def test_any_step_may_be_the_last_one(self, config, whole, tmp_path, step):
        config = resolve({**config, "checkpoint_every": 100})
        with pytest.raises(KeyboardInterrupt):
            run(config, tmp_path / "run", on_progress=at(step, ctrl_c))
        reached = step_of(tmp_path / "run")
        assert reached in (step, step + 1)  # the signal comes at the end of a step, before or after our callback
        run(config, tmp_path / "run", on_progress=at(1, lambda: None))
        assert_same(tmp_path / "run", whole)

    def test_a_run_stopped_at_its_very_end_still_logs_its_last_steps(self, config, tmp_path):
        config = {**config, "trainer": {**config["trainer"], "max_steps": -1, "max_epochs": 2}}
        run(resolve(config), tmp_path / "whole")
        with pytest.raises(KeyboardInterrupt):
            run(resolve(config), tmp_path / "run", on_progress=at(10, ctrl_c))
        assert step_of(tmp_path / "run") == 10
        run(resolve(config), tmp_path / "run")
        assert_same(tmp_path / "run", tmp_path / "whole")
        assert steps(tmp_path / "run")[-1] == 10

    def test_a_step_under_way_is_completed_first(self, config, tmp_path):
        config = {**config, "trainer": {**config["trainer"], "accumulate_grad_batches": 5, "max_steps": 4}}
        run(resolve(config), tmp_path / "whole")
        for batch in (1, 2, 6, 7):
            with pytest.raises(KeyboardInterrupt):
                run(resolve(config), tmp_path / str(batch), on_progress=at_batch(batch, ctrl_c))
            run(resolve(config), tmp_path / str(batch))
            assert_same(tmp_path / str(batch), tmp_path / "whole")

    def test_before_the_first_step_it_is_heard_too_and_again_in_the_next_run(self, config, tmp_path):
        def stop(progress):
            if progress.parameters is not None:
                ctrl_c()

        before = signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever Lightning left in this process
        try:
            for name in ("one", "two"):
                with pytest.raises(KeyboardInterrupt):
                    run(resolve(config), tmp_path / name, on_progress=stop)
        finally:
            signal.signal(signal.SIGINT, before)

    def test_a_second_ctrl_c_ends_at_once(self, start, objective, tmp_path):
        objective(Slow)
        command = start()
        command.wait(lambda: command.step >= 2)
        time.sleep(0.2)
        os.kill(command.process.pid, signal.SIGINT)
        command.wait(lambda: "again to stop at once" in command.log.read_text())
        os.kill(command.process.pid, signal.SIGINT)
        code, said = command.end(10)
        assert code == 130 and "Traceback" not in said
        assert step_of(tmp_path / "run") == 2

    def test_all_processes_stop_at_the_same_step(self, start_two, tmp_path):
        assert [command.end()[0] for command in start_two(output=tmp_path / "whole")] == [0, 0]
        commands = start_two()
        commands[0].wait(lambda: commands[0].step >= 4)
        os.kill(commands[1].process.pid, signal.SIGINT)
        ends = [command.end() for command in commands]
        assert [code for code, said in ends] == [130, 130] and not ends[1][1]
        assert [command.end()[0] for command in start_two()] == [0, 0]
        assert_same(tmp_path / "run", tmp_path / "whole")


class TestDisk:
    def test_a_full_disk_costs_nothing_but_the_steps_since_the_last_checkpoint(self, config, whole, small_disk):
        folder = small_disk / "run"
        filler = small_disk / "filler"

        def fill():
            with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
                while file.write(bytes(4096)):
                    pass

        message = r"last.ckpt cannot be written: No space left on device.* last good checkpoint is .* of step 2"
        with pytest.raises(InputError, match=message):
            run(resolve(config), folder, on_progress=at(3, fill))
        assert [step_of(folder)] == [2] and not list(folder.rglob("*.partial"))
        filler.unlink()
        run(resolve(config), folder)
        assert_same(folder, whole)

    def test_a_full_disk_leaves_whole_lines(self, small_disk):
        curve = record.CurveLogger(small_disk / "curve.jsonl")
        with pytest.raises(InputError, match="curve.jsonl cannot be written: No space left on device"):
            for step in range(10**6):
                curve.log_metrics({"train/loss": "x" * 10**5}, step)
        assert steps(small_disk) == list(range(step)) and step > 10

    def test_a_file_that_grows_too_large_is_named(self, start, tmp_path):
        def set_limit():
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (10**5, 10**5))

        code, said = start(before=set_limit).end()
        assert code == 2 and "last.ckpt cannot be written: File too large" in said, said
        assert "there is no checkpoint yet" in said and not list((tmp_path / "run").rglob("*.partial"))

    def test_an_unwritable_directory_is_named(self, start, read_only):
        code, said = start(output=read_only / "run").end()
        assert code == 2 and f"alignlab: error: {read_only / 'run'} cannot be written: " in said.splitlines()[-1]

    @pytest.mark.parametrize("part", ["items", "pictures", "backbone"])
    def test_results_that_cannot_be_written_leave_the_training(self, config, tmp_path, part):
        judged = {"class_path": "CaptionAccuracy", "init_args": {"num_examples": 1, "max_new_tokens": 1}}
        config = resolve({**config, "evaluators": [judged]})
        (tmp_path / "run").mkdir()
        block = lambda: (tmp_path / "run" / part).write_text("in the way")  # noqa: E731
        with pytest.raises(InputError, match=f"{part}.* cannot be written"):
            run(config, tmp_path / "run", on_progress=at(1, block))
        assert step_of(tmp_path / "run") == STEPS
        (tmp_path / "run" / part).unlink()
        assert run(config, tmp_path / "run")["steps"] == STEPS


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 12 MB."""
    with mounted(tmp_path / "disk", "size=12m") as folder:
        yield folder


@pytest.fixture
def read_only(tmp_path):
    """A directory in which nothing can be made, even by root."""
    if os.geteuid():
        (tmp_path / "disk").mkdir(mode=0o500)
        yield tmp_path / "disk"
    else:
        with mounted(tmp_path / "disk", "ro") as folder:
            yield folder


@contextmanager
def mounted(folder, options):
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a small file system cannot be mounted: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


class TestWorker:
    def test_a_dead_worker_is_named_and_costs_nothing_but_steps(self, config, whole, tmp_path):
        config = {**config, "data": deepcopy(config["data"])}
        config["data"]["init_args"]["num_workers"] = 1

        def kill():
            for worker in multiprocessing.active_children():
                worker.kill()
                worker.join()

        message = r"a process that loads data died.* DataLoader worker .*; the last good checkpoint is .* of step 4"
        with pytest.raises(InputError, match=message):
            run(resolve(config), tmp_path / "run", on_progress=at(5, kill))
        run(resolve(config), tmp_path / "run")
        assert_same(tmp_path / "run", whole)


class TestWandb:
    def test_a_run_goes_on_without_it(self, start, whole, tmp_path):
        command = start({"wandb": {"mode": "offline"}}, before=lambda: os.environ.update(WANDB_SILENT="true"))
        command.wait(lambda: command.step >= 4)
        for children in Path(f"/proc/{command.process.pid}/task").glob("*/children"):
            for child in children.read_text().split():
                os.kill(int(child), signal.SIGKILL)
        code, said = command.end()
        assert code == 0 and said.count("Weights & Biases failed") == 1 and "Traceback" not in said
        assert_same(tmp_path / "run", whole)

    @pytest.mark.parametrize(("key", "message"), [("0" * 40, "Failed to get resume"), ("", "No API key configured")])
    def test_an_unreachable_one_is_said_soon(self, start, monkeypatch, tmp_path, key, message):
        monkeypatch.setattr("alignlab.experiment.wandbrun.INIT_SECONDS", 3)
        settings = {"HOME": str(tmp_path), "WANDB_API_KEY": key, "WANDB_BASE_URL": "http://127.0.0.1:9"}
        code, said = start({"wandb": {"mode": "online"}}, before=lambda: os.environ.update(settings)).end(20)
        assert code == 2 and "Traceback" not in said
        (error,) = (line for line in said.splitlines() if "error:" in line)
        assert "wandb.mode online: Weights & Biases does not begin a run" in error and message in error
        assert "wandb.mode offline" in error
