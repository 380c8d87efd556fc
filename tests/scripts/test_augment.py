"""augment in checkouts: the hyperparameters change in memory, the files never."""

from __future__ import annotations

import json
import shutil

import pytest
import yaml

from tests.conftest import entry
from tests.scripts.conftest import arguments, plan, run, source

HIGH = {"scale": 0.9, "mixup": 0.1, "copy_paste": 0.1}


def forecast(python, root, script, *words):
    done = python("-m", "yolo_patches", "doctor", "--json", root / script, *map(str, words), check=False)
    return entry(json.loads(done.stdout), "augment")


def changes(item):
    return {change["what"]: change["patched"] for change in item["changes"]}


@pytest.mark.parametrize(("size", "expected"), [
    ("s", {}), ("m", HIGH),
])  # fmt: skip
def test_yolov5_sizes(size, expected, python, yolov5, data):
    """Its default file is for small models; the authors trained m, l and x with another one."""
    words = ("--weights", "", "--data", data("detect"), "--device", "cpu", "--cfg", f"yolov5{size}.yaml")
    item = forecast(python, yolov5, "train.py", *words)
    assert changes(item) == expected
    assert item["status"] == ("active" if expected else "inert")
    if size == "m":
        hyp = yolov5 / "data" / "hyps" / "hyp.scratch-high.yaml"
        if not hyp.is_file():  # the wheel has only some of them
            values = yaml.safe_load((yolov5 / "data" / "hyps" / "hyp.scratch-low.yaml").read_text())
            hyp = data("detect").replace("data.yaml", "own.yaml")
            with open(hyp, "w") as file:
                yaml.safe_dump({**values, "scale": 0.7}, file)
        item = forecast(python, yolov5, "train.py", *words, "--hyp", hyp)
        assert "scale" not in changes(item), "a file of the user's own counts as theirs"
        weights = forecast(python, yolov5, "train.py", *words[2:], "--weights", "yolov5m.pt")
        assert "starts from weights" in weights["reason"]


def test_yolov9_has_its_authors_values(python, yolov9, data):
    shutil.copytree(source("yolo9") / "yolo9" / "models" / "detect", yolov9 / "models" / "detect", dirs_exist_ok=True)
    words = ("--weights", "", "--data", data("detect"), "--device", "cpu", "--hyp", "data/hyps/hyp.scratch-high.yaml")
    words = (*words[:-1], yolov9 / words[-1])
    item = forecast(python, yolov9, "train_dual.py", *words, "--cfg", yolov9 / "models/detect/yolov9-c.yaml")
    assert item["reason"].startswith("nothing to change in the values that yolov9-c was trained with")
    full = ("--patches", "augment:full=true")
    item = forecast(python, yolov9, "train_dual.py", *words, *full, "--cfg", yolov9 / "models/detect/yolov9-c.yaml")
    assert changes(item) == {"epochs": 500, "close_mosaic": 15}
    mine = data("detect").replace("data.yaml", "mine.yaml")
    shutil.copy(yolov9 / "models/detect/gelan-c.yaml", mine)
    item = forecast(python, yolov9, "train.py", *words, "--cfg", mine)
    assert "the values that gelan-c was trained with" in item["reason"]


def test_in_memory_alone(drive, yolov5, models, data, tmp_path):
    """A real training with the values of YOLOv5x: its data set reads them, hyp.yaml in the run says so."""
    hyp = yolov5 / "data" / "hyps" / "hyp.scratch-low.yaml"
    before = hyp.read_text()
    words = arguments(models / "v5-detect.yaml", data("detect"), hyp, tmp_path, "run")
    done = drive([run("run", yolov5, "train.py", (*words, "--noplots"), "compat,augment:recipe=yolov5x")])["run"]
    assert "error" not in done, done["log"][-3000:]
    item = entry(plan(tmp_path / "run"), "augment")
    assert changes(item) == HIGH
    assert item["verified"] is True
    saved = yaml.safe_load((tmp_path / "run" / "hyp.yaml").read_text())
    assert (saved["scale"], saved["mixup"], saved["copy_paste"], saved["mosaic"]) == (0.9, 0.1, 0.1, 1.0)
    assert hyp.read_text() == before
