"""`patches=none`, and the defaults on one rank at the base batch, are upstream to the last bit, for every task."""

from __future__ import annotations

import json

import pytest

from tests.conftest import NEWEST, OLDEST, ROOT, last_json

SCRIPT = ROOT / "tests" / "e2e" / "train.py"
MODELS = {
    "detect": "yolov8n.yaml",
    "segment": "yolov8n-seg.yaml",
    "pose": "yolov8n-pose.yaml",
    "obb": "yolov8n-obb.yaml",
    "classify": "yolov8n-cls.yaml",  # its loss, and RT-DETR's, are means over images
    "rtdetr": "rtdetr-resnet50.yaml",
}


def trained(python, jobs, **how):
    return last_json(python(SCRIPT, *map(json.dumps, jobs), timeout=900, **how))


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_bit_identity(version, release, digits, python, tmp_path):
    def job(task, name, **more):
        data = digits("detect" if task == "rtdetr" else task)
        epochs = 1 if task == "rtdetr" else 2
        common = {"batch": 8, "epochs": epochs, "deterministic": True, "project": str(tmp_path / name), "workers": 0}
        return {"model": MODELS[task], "data": data, "seed": 3, **common, **more}

    tasks = list(MODELS) if version == NEWEST else ["detect", "obb", "classify"]
    where = release(version)
    upstream = trained(
        python, [*(job(task, "u") for task in tasks), job("detect", "u", seed=4)], absent=True, **where
    )  # fmt: skip
    ours = trained(python, [*(job(task, "o") for task in tasks), job("detect", "o", patches="none")], **where)
    assert {run["loaded"] for run in upstream} == {False}
    assert {run["loaded"] for run in ours} == {True}
    for task, expected, seen in zip(tasks, upstream, ours):
        # val-batch is active in most: another validation batch, the same weights.
        assert (seen["model"], seen["ema"]) == (expected["model"], expected["ema"]), task
    for what in ("model", "ema", "metrics", "val"):
        assert ours[-1][what] == upstream[0][what], what
    assert ours[0]["val"] != upstream[0]["val"]  # upstream's 16, but 12 images are all there are
    assert upstream[-1]["model"] != upstream[0]["model"]  # so the comparison can fail
