"""From the command line to results.csv and `verify`: N ranks train like one, and upstream's do not."""

from __future__ import annotations

import csv
import json

import pytest

from tests.conftest import NEWEST, OLDEST

OFF = [f"{name}=0.0" for name in ("hsv_h", "hsv_s", "hsv_v", "translate", "scale", "fliplr", "mosaic", "erasing")]


def losses(folder):
    with open(folder / "results.csv") as file:
        rows = [{key.strip(): value for key, value in row.items()} for row in csv.DictReader(file)]
    return [[float(row[key]) for key in row if key.startswith("train/")] for row in rows]


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_losses_of_1_2_and_4_ranks(version, release, python, digits, tmp_path):
    """16 images, one step an epoch: every epoch's losses in results.csv are the same, however many ranks share them."""

    def train(ranks, spec):
        name = f"{ranks}-{spec.partition(',')[0]}"
        words = [
            "model=yolov8n.yaml",
            f"data={digits()}",
            "epochs=5",
            "batch=16",
            "imgsz=64",
            "device=cpu",
            "amp=False",
        ]
        words += [*OFF, "plots=False", f"project={tmp_path}", f"name={name}", "optimizer=SGD", "nbs=16", "lr0=0.05"]
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        # One process counts as rank -1 in upstream's seed, rank 0 of several as 0: the same weights to start from.
        launch, seed = (launcher, "seed=0") if ranks > 1 else ([], "seed=1")
        python(*launch, "-m", "yolo_patches", "train", *words, seed, f"patches={spec}", **release(version))
        return losses(tmp_path / name)

    one = train(1, "all")
    assert len(one) == 5
    assert one[0] != one[4]  # it trains
    for ranks in (2, 4):
        shared = train(ranks, "all")
        for epoch in range(5):
            assert shared[epoch] == pytest.approx(one[epoch], rel=1e-3, abs=1.1e-5), (
                ranks,
                epoch,
            )  # the file has 5 decimals
    upstream = train(2, "torchrun")
    assert any(upstream[epoch] != pytest.approx(one[epoch], rel=1e-2) for epoch in range(5))


@pytest.mark.parametrize("model", ["yolo26n.yaml", "yolo11n-seg.yaml"])
def test_verify(python, model):
    done = python("-m", "yolo_patches", "verify", "--model", model, "--json", timeout=600)
    result = json.loads(done.stdout)
    assert result["holds"] is True
    for what, limit in result["limits"].items():
        assert result["errors"]["patched"][what] <= limit
        assert result["errors"]["upstream"][what] > 1e-4  # what it would be without: the check can fail


@pytest.mark.parametrize("words", [("--world-size", "1"), ("--model", "no-such-model.yaml")])
def test_verify_refuses_what_it_cannot_judge(python, words):
    done = python("-m", "yolo_patches", "verify", *words, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("yolo-patches: error: verify: ")
