"""YOLOv9's own script on CUDA: with AMP on one GPU, and as two ranks where there are two; it refuses CPU ranks."""

from __future__ import annotations

import json

import pytest

from tests.conftest import entry
from tests.scripts.conftest import arguments, data, models, yolov9  # noqa: F401 - fixtures

torch = pytest.importorskip("torch")
GPUS = torch.cuda.device_count()


@pytest.mark.parametrize("ranks", [1, 2])
def test_train_dual(ranks, python, yolov9, models, data, tmp_path):  # noqa: F811
    if ranks > GPUS:
        pytest.skip(f"{GPUS} CUDA devices")
    devices = ",".join(map(str, range(ranks)))
    words = arguments(models / "dual.yaml", data("detect"), models / "hyp9.yaml", tmp_path)
    words = [devices if word == "cpu" else word for word in words]
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", ranks) if ranks > 1 else ()
    python(*launcher, yolov9 / "train_dual.py", *words, "--noplots", "--patches", "all")
    assert (tmp_path / "run" / "weights" / "best.pt").is_file()
    plan = json.loads((tmp_path / "run" / "patches.json").read_text())
    assert plan["world_size"] == ranks
    expected = ("active", True) if ranks > 1 else ("inert", None)
    for name in ("sync-bn", "loss-norm"):
        assert (entry(plan, name)["status"], entry(plan, name)["verified"]) == expected, name
