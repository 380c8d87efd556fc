"""From the command line to results.csv and `verify`: N ranks train like one, and upstream's do not."""

from __future__ import annotations

import csv
import json

import pytest

from tests.conftest import NEWEST, OLDEST, ROOT

OFF = [f"{name}=0.0" for name in ("hsv_h", "hsv_s", "hsv_v", "translate", "scale", "fliplr", "mosaic", "erasing")]


def losses(folder):
    with open(folder / "results.csv") as file:
        rows = [{key.strip(): value for key, value in row.items()} for row in csv.DictReader(file)]
    return [[float(row[key]) for key in row if key.startswith("train/")] for row in rows]


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_losses_of_1_2_and_4_ranks(version, release, python, digits, tmp_path):
    """16 images, one step an epoch: every epoch's losses in results.csv are the same, however many ranks share them."""

    def train(name, ranks, spec, model, *more):
        words = [f"model={model}", f"data={digits()}", "imgsz=64", "device=cpu", "amp=False", "plots=False", *OFF]
        words += [f"project={tmp_path}", f"name={name}", *more]
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        launch = launcher if ranks > 1 else []
        python(*launch, "-m", "yolo_patches", "train", *words, f"patches={spec}", **release(version))
        return losses(tmp_path / name)

    # At first weights no box overlaps: upstream's clamp is then the normaliser, and the losses round to nothing.
    train("base", 1, "none", "yolov8n.yaml", "epochs=12", "batch=4", "nbs=4", "optimizer=AdamW", "lr0=0.002")

    def tuned(ranks, spec):
        words = ("epochs=5", "batch=16", "nbs=16", "optimizer=SGD", "lr0=0.01")
        return train(f"{ranks}-{spec}", ranks, spec, tmp_path / "base/weights/last.pt", *words)

    one = tuned(1, "all")
    assert len(one) == 5
    assert min(map(min, one)) > 0.5
    assert one[4][0] < one[0][0]  # it trains
    for ranks in (2, 4):
        shared = tuned(ranks, "all")
        for epoch in range(5):
            assert shared[epoch] == pytest.approx(one[epoch], rel=1e-3), (ranks, epoch)
    upstream = tuned(2, "torchrun")
    assert any(upstream[epoch] != pytest.approx(one[epoch], rel=1e-2) for epoch in range(5))
    print(f"{version}: one process {one[4]}, 4 ranks {shared[4]}, 2 ranks of upstream {upstream[4]}")


@pytest.mark.parametrize(("model", "optimizer"), [("yolo26n.yaml", "SGD"), ("yolov8n-seg.yaml", "AdamW")])
def test_verify(python, model, optimizer):
    """Gradient, statistics, and six steps with accumulation, clip, EMA and warm-up.

    AdamW divides each element by its own magnitude: of a model whose box head has hardly a gradient at first, yolo11n,
    it makes 5e-8 of a gradient that differs by 9e-13.
    """
    words = ("--model", model, "--optimizer", optimizer)
    done = python("-m", "yolo_patches", "verify", *words, "--json", timeout=600)
    result = json.loads(done.stdout)
    assert result["holds"] is True
    for what, limit in result["limits"].items():
        assert result["errors"]["patched"][what] <= limit
        assert result["errors"]["upstream"][what] > 1e-4  # what it would be without: the check can fail


def test_musgd(environment, monkeypatch):
    """MuSGD rounds its update to bfloat16 on the way, and so makes of the last bit 2e-5; without that it is exact."""
    from yolo_patches import verify

    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(verify, "PATCHES", {"patched": verify.PATCHES["patched"]})
    rounded = verify.verify("yolo11n.yaml", 2, "MuSGD")["errors"]["patched"]
    monkeypatch.setattr(verify, "WORKER", [str(ROOT / "tests/distributed/unrounded.py")])
    unrounded = verify.verify("yolo11n.yaml", 2, "MuSGD")["errors"]["patched"]
    assert rounded["gradient"] <= verify.LIMITS["gradient"]
    assert 1e-6 < rounded["trajectory"] < 1e-2
    assert unrounded["trajectory"] <= verify.LIMITS["trajectory"]


@pytest.mark.parametrize("words", [("--world-size", "1"), ("--model", "no-such-model.yaml")])
def test_verify_refuses_what_it_cannot_judge(python, words):
    done = python("-m", "yolo_patches", "verify", *words, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("yolo-patches: error: verify: ")
