"""val-period in checkouts: the scripts' own loops, which call nothing best that was not validated."""

from __future__ import annotations

import csv
import math

from tests.conftest import entry
from tests.scripts.conftest import arguments, plan, run
from yolo_patches.upstreams.scripts import source


def figures(folder):
    """The first metric of each epoch; the segmentation scripts add a row for the best weights."""
    with open(folder / "results.csv") as file:
        rows = [{key.strip(): value for key, value in row.items() if key} for row in csv.DictReader(file)]
    return [float(next(value for key, value in row.items() if key.startswith("metrics/"))) for row in rows[:3]]


def test_every_second_epoch(drive, yolov9, yolov5, models, data, tmp_path):
    """Of three epochs the second, and the last; an error of ours in between, and upstream validates."""
    jobs = {
        "yolov9": (yolov9, "train_dual.py", models / "dual.yaml", models / "hyp9.yaml", "detect"),
        "segment": (yolov5, "segment/train.py", models / "v5-segment.yaml", models / "hyp5.yaml", "segment"),
    }
    for name, (root, script, model, hyp, task) in jobs.items():
        words = (*arguments(model, data(task), hyp, tmp_path, name, epochs=3), "--noplots")
        done = drive([run(name, root, script, words, "compat,val-period:every=2")])[name]
        assert "error" not in done, done["log"][-3000:]
        assert len(done["validations"]) == 3  # one of them is that of the best weights, at the end
        item = entry(plan(tmp_path / name), "val-period")
        assert (item["status"], item["verified"]) == ("active", True), item
        assert item["changes"] == [{"what": "validations", "upstream": 3, "patched": 2}]
        assert [math.isnan(value) for value in figures(tmp_path / name)] == [True, False, False]
        assert (tmp_path / name / "weights" / "best.pt").is_file()


def test_what_a_validation_returns(yolov9, yolov5, tmp_path):
    assert source.validation(yolov9 / "train_dual.py") == (3, 7)
    assert source.validation(yolov9 / "panoptic" / "train.py") == (3, 12)
    assert source.validation(yolov5 / "train.py") == (4, 7)
    (tmp_path / "other.py").write_text("results = validate.run(data)\n")
    assert source.validation(tmp_path / "other.py") is None
