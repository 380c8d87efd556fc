"""Real torchrun, real training on CPU ranks: from the first collective to the last process's exit."""

from __future__ import annotations

import csv
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.conftest import NEWEST, OLDEST, ROOT, last_json

TORCHRUN = ("-m", "torch.distributed.run")
OURS = ("-m", "yolo_patches")
SCRIPT = ROOT / "tests" / "e2e" / "train.py"


@pytest.fixture
def start(environment, interpreter, digits, tmp_path):
    """Return a function that starts a launcher and returns its process; its output goes to `log`."""
    started = []

    def run(*launcher, command=OURS, ranks=2, epochs=1, batch=8, patches="all", name="train", fresh=False, **variables):
        arguments = {
            "model": "yolov8n.yaml",
            "data": digits(train=16, val=12),
            "imgsz": 64,
            "epochs": epochs,
            "batch": batch,
            "plots": False,
            "device": "cpu",
            "patches": patches,
            "project": tmp_path / "runs",
            "name": name,
        }
        log = tmp_path / f"{name}-{len(started)}.log"
        python = sys.executable if fresh else interpreter
        with log.open("w") as output:
            process = subprocess.Popen(
                [python, *TORCHRUN, "--nproc-per-node", str(ranks), *launcher, *command, "train"]
                + [f"{key}={value}" for key, value in arguments.items()],
                cwd=tmp_path,
                env={**environment, "PYTHON_EXEC": python, **variables},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        process.read = functools.partial(log.read_text, errors="replace")
        started.append(process)
        return process

    yield run
    for process in started:
        if process.poll() is None:
            for child in [*psutil.Process(process.pid).children(recursive=True), process]:
                child.kill()


def ends(process, timeout=150):
    """Return the exit status of a launcher, which must end by itself."""
    try:
        return process.wait(timeout)
    except subprocess.TimeoutExpired:
        pytest.fail(f"still running after {timeout} s\n{process.read()[-6000:]}")


def succeeds(*launchers):
    """Return the output of launchers that must succeed."""
    for launcher in launchers:
        if ends(launcher):
            pytest.fail(launcher.read()[-8000:])
    return "".join(launcher.read() for launcher in launchers)


def check_run(run, log, ranks, epochs):
    """Check what a run of several ranks leaves, and that rank 0 alone wrote and said it."""
    assert [path.name for path in run.parent.iterdir()] == [run.name]
    assert sorted(path.name for path in (run / "weights").iterdir()) == ["best.pt", "last.pt"]
    with (run / "results.csv").open() as file:
        assert [int(float(row["epoch"])) for row in csv.DictReader(line.replace(" ", "") for line in file)] == [*epochs]
    plan = json.loads((run / "patches.json").read_text())
    assert (plan["world_size"], plan["global_batch"]) == (ranks, 8)
    entries = {entry["name"]: entry for entry in plan["patches"]}
    assert (entries["torchrun"]["status"], entries["torchrun"]["verified"]) == ("active", True)
    assert entries["torchrun"]["changes"] == [{"what": "ranks", "upstream": 1, "patched": ranks}]
    assert entries["val-batch"]["changes"][0]["patched"] == 8 // ranks
    with (run / "patches.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in rows] == [*epochs]
    for row in rows:  # monitor has heard every rank, and they are one model
        assert [float(row[f"ranks/{name}"]) for name in ("heard", "weights_differ", "statistics_differ")] == [
            ranks,
            0,
            0,
        ]
    assert float(rows[0]["steps"]) * float(rows[0]["effective_batch"]) == 16  # images
    assert log.count("(patches=all)") == 1
    assert log.count("Validating ") == 1
    assert " 2/2 " in log and " 4/4 " not in log, "16 images, batch 8: two steps, not four halves or one rank's all"
    assert "Traceback" not in log and "destroy_process_group" not in log


def test_two_ranks_train_to_the_end(start, release, tmp_path):
    log = succeeds(start(epochs=2, fresh=True, **release(NEWEST)))
    check_run(tmp_path / "runs" / "train", log, 2, (1, 2))


def test_two_ranks_of_the_oldest_release_by_its_own_command(start, release, tmp_path):
    command = ("--no-python", str(Path(sys.executable).with_name("yolo")))
    log = succeeds(start(command=command, **release(OLDEST)))
    check_run(tmp_path / "runs" / "train", log, 2, (1,))


def test_the_monitor_sees_that_ranks_differ(start, release, tmp_path):
    """Without sync-bn each rank has BatchNorm statistics of its own: upstream's, and it is said once."""
    log = succeeds(start(epochs=2, patches="torchrun,monitor", **release(OLDEST)))
    with (tmp_path / "runs" / "train" / "patches.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["ranks/weights_differ"]) for row in rows] == [0, 0]
    assert all(float(row["ranks/statistics_differ"]) > 1e-6 for row in rows)
    assert all(1 <= float(row["ranks/step_skew"]) < 2 for row in rows)
    assert log.count("each has its own; patches=sync-bn") == 1


def test_two_launchers_are_two_nodes(start, release, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{probe.getsockname()[1]}"
    nodes = ("--nnodes", "2", "--rdzv-backend", "c10d", "--rdzv-id", "test", "--rdzv-endpoint", endpoint)
    log = succeeds(*(start(*nodes, ranks=1, **release(NEWEST)) for _ in range(2)))
    check_run(tmp_path / "runs" / "train", log, 2, (1,))


def test_a_killed_rank_ends_the_run(start, release, tmp_path):
    launcher = start(epochs=1000, fresh=True, **release(NEWEST))
    results = tmp_path / "runs" / "train" / "results.csv"
    deadline = time.monotonic() + 120
    while not results.exists() and launcher.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    ranks = {child.environ()["RANK"]: child for child in psutil.Process(launcher.pid).children()}
    os.kill(ranks["1"].pid, signal.SIGKILL)
    assert ends(launcher, 60) != 0
    assert not any(rank.is_running() for rank in ranks.values())


def test_a_batch_that_the_ranks_cannot_share_is_refused(start, release, tmp_path):
    launcher = start(batch=7, **release(NEWEST))
    assert ends(launcher) != 0
    assert "batch=7 cannot be shared by 2 ranks" in launcher.read()
    assert "the nearest valid is 6 or 8" in launcher.read()
    assert not (tmp_path / "runs").exists()


def test_without_the_patch_upstream_does_not_know_its_ranks(start, release):
    launcher = start(patches="all,-torchrun", **release(NEWEST))
    assert ends(launcher) != 0
    assert "Default process group has not been initialized" in launcher.read()


def test_one_rank_trains_as_without_a_launcher(python, release, digits, tmp_path):
    """Upstream seeds rank 0 of 1 differently up to 8.4.1xx, and shards its data over a group that does not exist."""
    job = {"model": "yolov8n.yaml", "data": digits(train=16, val=12), "epochs": 1, "batch": 8}
    words = [json.dumps({**job, "project": str(tmp_path / spec), "patches": spec}) for spec in ("none", "torchrun")]
    plain = last_json(python(SCRIPT, words[0], **release(OLDEST)))[0]
    launched = last_json(python(*TORCHRUN, "--nproc-per-node", "1", SCRIPT, words[1], **release(OLDEST)))[0]
    for what in ("model", "ema", "metrics"):
        assert launched[what] == plain[what], what
    plan = json.loads(Path(launched["save_dir"], "patches.json").read_text())
    entry = next(entry for entry in plan["patches"] if entry["name"] == "torchrun")
    assert (plan["world_size"], entry["status"], entry["verified"]) == (1, "active", True)


def test_nodes_need_not_share_a_file_system(python, tmp_path):
    """Releases from 8.3.225 on evaluate best.pt on every rank: one that lacked it would leave the others waiting."""
    script = tmp_path / "rank.py"
    script.write_text(
        "import os, types\nfrom pathlib import Path\nfrom torch import distributed\n"
        "from yolo_patches.facts import Launcher\nfrom yolo_patches.upstreams.ultralytics.launch import _Launch\n"
        "rank = int(os.environ['RANK'])\n"
        "distributed.init_process_group('gloo')\n"
        "best = Path(f'node{rank}', 'best.pt')\n"
        "if rank == 0:\n    best.parent.mkdir()\n    best.write_bytes(b'weights')\n"
        "distributed.barrier()\n"
        "validator = types.SimpleNamespace(gather_stats=None)\n"
        "trainer = types.SimpleNamespace(best=best, validator=validator)\n"
        "launch = _Launch(trainer, None, Launcher(rank, 2, 0, 1))\n"
        "with launch.best_on_every_node():\n    assert trainer.best.read_bytes() == b'weights'\n"
        "assert trainer.best is best and best.exists() is (rank == 0)\n"
        "distributed.destroy_process_group()\n"
    )
    python(*TORCHRUN, "--nproc-per-node", "2", script)
