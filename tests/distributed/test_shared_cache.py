"""cache=ram of several ranks, by torchrun: the images are there once, and the training is upstream's."""

from __future__ import annotations

import functools
import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import NEWEST, ROOT, entry

SCRIPT = ROOT / "tests" / "distributed" / "shared_cache_rank.py"
RANKS = 2
OUTSIDE = "killed from outside"


def _words(out, data, patches, **more):
    """Return the words of a launcher whose ranks train."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    job = {
        "data": data, "imgsz": 64, "epochs": 1, "batch": 8, "plots": False, "device": "cpu",
        "cache": "ram", "workers": 1, "project": str(out), "name": "run", "patches": patches, "out": str(out), **more,
    }  # fmt: skip
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node", str(RANKS), "--master-port", str(port))
    return [*launcher, str(SCRIPT), json.dumps(job)]


@pytest.fixture(scope="module")
def trained(environment, interpreter, digits, release, tmp_path_factory):
    """Return a function that trains two ranks and returns what each has seen, the plan and the output."""

    @functools.cache
    def train(patches, version=NEWEST, limit=0):
        out = tmp_path_factory.mktemp("run")
        done = subprocess.run(
            [interpreter, *_words(out, digits(train=24, val=12), patches, limits={"0": limit} if limit else {})],
            cwd=out,
            env={**environment, **release(version)},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
        ranks = [json.loads((out / f"{rank}.json").read_text()) for rank in range(RANKS)]
        return ranks, json.loads(Path(out, "run", "patches.json").read_text()), done.stdout + done.stderr

    return train


@pytest.mark.parametrize("version", ["8.3.253", NEWEST])
def test_one_copy_and_the_same_training(trained, version):
    before = {path.name for path in Path("/dev/shm").iterdir()}
    plain, _, _ = trained("torchrun", version)
    shared, plan, log = trained("torchrun,shared-cache", version)
    found = entry(plan, "shared-cache")
    assert (found["status"], found["verified"]) == ("active", True)
    assert found["changes"] == [{"what": "copies of the images in a machine's memory", "upstream": 2, "patched": 1}]
    assert any(note.startswith("24 images, ") for note in found["notes"])
    for rank in range(RANKS):
        for name in ("train", "val"):
            assert shared[rank][name]["memory"] == shared[0][name]["memory"] is not None
            assert plain[rank][name]["memory"] is None
            assert shared[rank][name]["spare"] == []
            for what in ("pixels", "sizes"):
                assert shared[rank][name][what] == plain[rank][name][what]
        assert shared[rank]["weights"] == plain[rank]["weights"]
    assert "yolo-patches: shared-cache" not in log
    assert {path.name for path in Path("/dev/shm").iterdir()} <= before


def test_where_the_first_rank_cannot_share_each_keeps_its_own(trained):
    """The system refuses rank 0 to write more than a few images: all ranks train on, as upstream has it."""
    plain, _, _ = trained("torchrun")
    limited, plan, log = trained("torchrun,shared-cache", limit=40_000)
    found = entry(plan, "shared-cache")
    assert found["verified"] is False
    assert "could not be shared" in found["reason"] and "as upstream has it" in found["reason"]
    assert log.count("shared-cache did not take effect") == 1
    for rank in range(RANKS):
        assert limited[rank]["train"]["memory"] is None
        assert limited[rank]["train"]["pixels"] == plain[rank]["train"]["pixels"]
        assert limited[rank]["weights"] == plain[rank]["weights"]


@pytest.mark.parametrize("fault", ["raises while it decodes", "killed while it decodes", "raises in a step", OUTSIDE])
def test_nothing_is_left_of_a_run_that_ends_in_the_middle(fault, environment, digits, release, tmp_path):
    """No memory, no process, and no rank that waits for images that will not come."""
    before = {path.name for path in Path("/dev/shm").iterdir()}
    mark = uuid.uuid4().hex
    # Ranks that begin elsewhere have not this environment, by which they are found.
    own = {**release(NEWEST), "MARK": mark, "PYTHON_EXEC": sys.executable}
    faults = {"fault": [fault, int("step" in fault)]}
    log = tmp_path / "log"  # no pipe: whoever is left would keep it open, and be waited for
    run = subprocess.Popen(
        [sys.executable, *_words(tmp_path, digits(train=24, val=12), "torchrun,shared-cache", **faults)],
        cwd=tmp_path,
        env={**environment, **own},
        stdout=log.open("w"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        if fault == OUTSIDE:
            until(lambda: all((tmp_path / f"{rank}.step").exists() for rank in range(RANKS)), 120)
            assert holders(mark), "the images are in such a memory"
            for process in marked(mark):
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
        assert run.wait(timeout=120) != 0
        if "decodes" in fault:
            assert (tmp_path / "fault").exists() and not (tmp_path / "0.step").exists(), log.read_text()[-3000:]
        else:
            memories = {tuple(json.loads(file.read_text())["train"]["memory"]) for file in tmp_path.glob("*.step")}
            assert len(memories) == 1, log.read_text()[-3000:]
        until(lambda: not marked(mark), 30)
        assert holders(mark) == []
        assert {path.name for path in Path("/dev/shm").iterdir()} <= before
    finally:
        for process in marked(mark):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)


def until(condition, seconds):
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, "it hangs"
        time.sleep(0.05)


def marked(mark):
    """Return the processes with a mark in their environment."""
    found = []
    for file in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if mark.encode() in file.read_bytes():
                found.append(int(file.parent.name))
    return found


def holders(mark):
    """Return those of them that hold images in shared memory."""
    return [pid for pid in marked(mark) if "memfd:yolo-patches-images" in Path(f"/proc/{pid}/maps").read_text()]
