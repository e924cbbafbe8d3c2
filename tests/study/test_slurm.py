"""Cells as jobs: submission returns at once, a preempted job goes on from its checkpoint, a second one does nothing."""

import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import psutil
import pytest
from acts import study_of
from rich.console import Console
from test_launchers import written

from alignlab.cli import main
from alignlab.errors import InputError
from alignlab.study import Study, run_study
from alignlab.study.launchers.slurm import Settings, Slurm, settings_from
from alignlab.study.progress import is_alive, position
from alignlab.study.status import Status


def test_settings_are_options_of_the_command():
    found = settings_from(["slurm.partition=gpu", "slurm.time=30", "slurm.qos=long", "slurm.mail_user=me@here"])
    assert (found.partition, found.time, found.others) == ("gpu", 30, {"qos": "long", "mail-user": "me@here"})


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("slurm.time=0", "--slurm.time: expected a number of at least 3, got 0"),
        ("slurm.cpus=two", "--slurm.cpus: expected a number of at least 1, got 'two'"),
        ("slurm.array=0-3", "--slurm.array is decided by the study"),
        ("slurm.mem=4", "--slurm.mem is decided by the study; did you mean 'memory'"),
        ("slurm.cluster=pbs", "expected slurm or local, got 'pbs'"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(option, message):
    with pytest.raises(InputError, match=message):
        settings_from([option])


def test_settings_of_slurm_go_with_its_launcher(capsys):
    assert main(["study", "run", "it.yaml", "--slurm.partition", "gpu"]) == 2
    assert "--slurm.partition goes with --launcher slurm" in capsys.readouterr().err


def test_where_slurm_is_missing_nothing_starts(monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(InputError, match="there is no sbatch here"):
        Slurm().prepare()


def test_a_job_with_fewer_gpus_than_its_cell_asks_for_is_refused(tmp_path):
    pytest.importorskip("submitit")
    study = study_of(tmp_path / "study", "finish")
    study.cells[0].config["trainer"] = {"devices": 4, "accelerator": "gpu"}
    with pytest.raises(InputError, match="asks for 4 devices on a machine, and --slurm.gpus_per_node is 2"):
        Slurm(Settings(gpus_per_node=2, cluster="local")).start(study, jobs=None, command="", console=Console())
    assert not study.cells[0].directory.exists()


@pytest.mark.slow
def test_a_preempted_job_goes_on_from_its_checkpoint_and_a_killed_one_has_failed(
    tmp_path, tiny_path, monkeypatch, capsys
):
    pytest.importorskip("submitit")
    monkeypatch.chdir(tmp_path)
    study, launcher = written(tmp_path, tiny_path, steps=400), Slurm(Settings(cluster="local", cpus=1))
    assert run_study(study, launcher=launcher) == 0
    assert "2 cells submitted" in capsys.readouterr().out
    preempted, killed = Study.load(study).cells
    assert main(["study", "run", str(study), "--launcher", "slurm", "--slurm.cluster", "local"]) == 0
    assert "nothing to submit, 2 queued or running already" in capsys.readouterr().out
    wait(lambda: position(killed.directory) is not None)
    os.kill(position(killed.directory).pid, signal.SIGKILL)
    wait(lambda: position(preempted.directory) is not None and position(preempted.directory).step > 0)
    first = position(preempted.directory)
    supervisor = psutil.Process(first.pid).parent()
    supervisor.send_signal(signal.SIGUSR2)
    wait(lambda: preempted.state == "finished")
    steps = [json.loads(line)["step"] for line in (preempted.directory / "curve.jsonl").read_text().splitlines()]
    assert (
        steps == sorted(set(steps)) and json.loads((preempted.directory / "metrics.json").read_text())["steps"] == 400
    )
    log = (preempted.directory / "log.txt").read_text()
    assert "stopping after this step, with a checkpoint" in log
    assert not is_alive(first.pid), "another process has finished it"
    wait(lambda: Status.read(tmp_path / "runs/mine").count("failed") == 1)
    assert killed.state == "failed"
    assert "killed by SIGKILL" in json.loads((killed.directory / "failure.json").read_text())["message"]


CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmdPort={other}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
MpiDefault=none
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 State=UNKNOWN
PartitionName=only Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """SLURM on this machine alone, with its own key, ports and folders."""
    if missing := [name for name in ("munged", "slurmctld", "slurmd", "sbatch", "srun") if which(name) is None]:
        pytest.skip(f"there is no {', '.join(missing)} here (Debian: apt-get install slurmctld slurmd munge)")
    if os.geteuid() != 0:
        pytest.skip("slurmd starts jobs as their users, for which it has to be root")
    folder = Path(tempfile.mkdtemp(prefix="slurm", dir="/tmp"))  # sockets have short names
    host, (port, other) = socket.gethostname().split(".")[0], _free_ports(2)
    (folder / "slurm.conf").write_text(CONF.format(host=host, port=port, other=other, folder=folder))
    (folder / "key").write_bytes(os.urandom(128))
    (folder / "key").chmod(0o600)
    (folder / "spool").mkdir()
    monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
    munge = [f"--{name}-file={folder}/munge.{name}" for name in ("pid", "log", "seed")]
    commands = (
        ["munged", "--foreground", "--force", f"--key-file={folder}/key", f"--socket={folder}/munge.socket", *munge],
        ["slurmctld", "-D", "-i"],
        ["slurmd", "-D", "-N", host],
    )
    daemons = []
    try:
        for command in commands:
            with open(folder / f"{command[0]}.log", "w") as log:
                path = which(command[0])
                daemons.append(subprocess.Popen([path, *command[1:]], stdout=log, stderr=log))
            time.sleep(1)
        for _ in range(60):
            nodes = subprocess.run(["sinfo", "-h", "-o", "%T"], capture_output=True, text=True)
            if nodes.stdout.strip() == "idle":
                break
            time.sleep(1)
        else:
            logs = "".join(file.read_text()[-2000:] for file in folder.glob("*.log"))
            pytest.skip(f"SLURM did not come up: {nodes.stdout} {nodes.stderr} {logs}")
        yield folder
    finally:
        subprocess.run(["scancel", "--me"], capture_output=True)  # else their processes would wait for the daemons
        for _ in range(40):
            left = subprocess.run(["squeue", "--me", "--noheader"], capture_output=True, text=True)
            if not left.stdout.strip():
                break
            time.sleep(1)
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait(30)
        shutil.rmtree(folder)


@pytest.mark.slow
def test_a_study_runs_on_a_real_slurm_and_goes_on_after_preemption(slurm, tmp_path, tiny_path, monkeypatch, capsys):
    pytest.importorskip("submitit")
    monkeypatch.chdir(tmp_path)
    path = written(tmp_path, tiny_path, steps=400)
    command = ["study", "run", str(path), "--launcher", "slurm", "--jobs", "2", "--slurm.cpus", "1"]
    assert main(command) == 0
    assert "2 cells submitted" in capsys.readouterr().out
    first, second = Study.load(path).cells
    assert Status.read(tmp_path / "runs/mine").count("queued", "running") == 2
    assert main(command) == 0
    assert "nothing to submit, 2 queued or running already" in capsys.readouterr().out
    wait(lambda: position(first.directory) is not None and position(first.directory).step > 0)
    pid = position(first.directory).pid
    jobs = json.loads((tmp_path / "runs/mine/launch.json").read_text())["jobs"]
    job = {place.split("/")[1]: each["id"] for place, each in jobs.items()}
    subprocess.run(["scancel", job["MLE"], "--signal", "USR2"], check=True)  # as before its time is over
    wait(lambda: not is_alive(pid))
    wait(lambda: second.state == "finished")
    # A job that is queued again waits for two minutes first, unless it is released.
    wait(lambda: _release(job["MLE"]) and first.state == "finished")
    log = (first.directory / "log.txt").read_text()
    assert "stopping after this step, with a checkpoint" in log
    steps = [json.loads(line)["step"] for line in (first.directory / "curve.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps)), "nothing is trained twice"
    assert main(command) == 0
    assert "Report: runs/mine/report.html" in capsys.readouterr().out


def _release(job: str) -> bool:
    subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], capture_output=True)
    time.sleep(2)
    return True


def which(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def wait(condition, *, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.05)
