"""On a machine with a CUDA GPU: two ranks that share it, through gloo, since NCCL refuses ranks that share one."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from yolo_patches.verify import verify

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture
def here(environment, monkeypatch):
    """Let the children of this process have the tests' environment."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("model", ["yolo11n.yaml", "yolo26n.yaml"])
def test_two_ranks_train_like_one(model, here, capsys):
    """In float32, and without TF32, whose ten bits would be all that is compared."""
    errors = verify(model, 2, device="cuda", dtype="float32")["errors"]
    with capsys.disabled():
        print(f"\n{model}, float32, two ranks on {torch.cuda.get_device_name()}: {json.dumps(errors)}")
    assert errors["patched"]["gradient"] < 1e-3
    assert errors["patched"]["BatchNorm statistics"] < 1e-5
    assert errors["upstream"]["gradient"] > 0.1


def test_native_kernels(here, tmp_path):
    """On CUDA the layers use PyTorch's own kernels, and give what BatchNorm2d gives for the whole batch."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launcher, ROOT / "tests/gpu/native.py"], capture_output=True, text=True, cwd=tmp_path, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads(done.stdout.strip().splitlines()[-1])
    assert seen["function"] == "SyncBatchNormBackward"
    assert seen["output"] < 1e-5
    assert seen["gradient"] < 1e-5
    assert seen["variance"] < 1e-5


def test_step_time(here, capsys):
    """Two collectives a layer and step at most, as on the CPU; the ratio is for the reader."""
    command = [
        sys.executable,
        ROOT / "benchmarks/ddp.py",
        "--device",
        "cuda",
        "--imgsz",
        "320",
        "--rounds",
        "1",
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads(done.stdout)
    with capsys.disabled():
        print(f"\ntwo ranks on {torch.cuda.get_device_name()}: {json.dumps(rows)}")
    assert all(row["collectives_per_step"] <= 2 * row["layers"] + 2 for row in rows)
