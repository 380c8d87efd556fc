"""cache=ram of several ranks, by torchrun: the images are there once, and the training is upstream's."""

from __future__ import annotations

import functools
import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import NEWEST, ROOT, entry

SCRIPT = ROOT / "tests" / "distributed" / "shared_cache_rank.py"
RANKS = 2


@pytest.fixture(scope="module")
def trained(environment, digits, release, tmp_path_factory):
    """Return a function that trains two ranks and returns what each has seen, the plan and the output."""

    @functools.cache
    def train(patches, version=NEWEST, limit=0):
        out = tmp_path_factory.mktemp("run")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        job = {
            "data": digits(train=24, val=12), "imgsz": 64, "epochs": 1, "batch": 8, "plots": False, "device": "cpu",
            "cache": "ram", "workers": 1, "project": str(out), "name": "run", "patches": patches, "out": str(out),
            "limits": {"0": limit} if limit else {},
        }  # fmt: skip
        launcher = ("-m", "torch.distributed.run", "--nproc-per-node", str(RANKS), "--master-port", str(port))
        done = subprocess.run(
            [sys.executable, *launcher, SCRIPT, json.dumps(job)],
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
