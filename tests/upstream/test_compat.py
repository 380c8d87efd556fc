"""Releases that today's torch or NumPy stops, and the YOLOv10 authors' fork: they fail, and train with `compat`."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.conftest import entry, last_json

#: Release -> what upstream dies of, alone. The fork is Ultralytics 8.1.34 with models and trainers of its own.
DIES = {"8.0.200": "weights_only", "8.1.34": "weights_only", "8.3.100": "'trapz'", "yolov10": "weights_only"}
GAP = {"weights_only": "torch.load", "'trapz'": "numpy"}


def words(version, digits, folder):
    model, size = ("yolov10n", 160) if version == "yolov10" else ("yolov8n", 64)
    common = ["epochs=1", "batch=8", "device=cpu", "plots=False", f"data={digits()}", f"project={folder}"]
    return ["detect", "train", f"model={model}.yaml", f"imgsz={size}", *common]


@pytest.mark.parametrize("version", DIES)
def test_training_to_the_end(version, release, yolo, digits, tmp_path):
    start = words(version, digits, tmp_path)
    alone = yolo(*start, "name=alone", "patches=none", check=False, **release(version))
    assert alone.returncode == 1
    assert DIES[version] in alone.stderr
    done = yolo(*start, "name=run", "patches=all", **release(version))
    assert "yolo-patches 0." in done.stdout + done.stderr
    plan = json.loads((tmp_path / "run" / "patches.json").read_text())
    for name in ("compat", "val-batch"):
        assert (entry(plan, name)["status"], entry(plan, name)["verified"]) == ("active", True), name
    assert GAP[DIES[version]] in {change["what"] for change in entry(plan, "compat")["changes"]}
    assert [change["patched"] for change in entry(plan)["changes"]] == [8]
    # The checkpoint goes on: its first use is outside of any training, where the argument alone tells.
    best = tmp_path / "yolov10-best.pt"  # the fork takes a file without that word for another project's
    shutil.copy(tmp_path / "run" / "weights" / "best.pt", best)
    yolo(*start, "name=tuned", f"model={best}", "patches=all", **release(version))
    assert (tmp_path / "tuned" / "weights" / "best.pt").is_file()


FORK = """
import json, sys
from ultralytics import YOLOv10
job, seen = json.loads(sys.argv[1]), {"val": []}
def on_train_start(trainer):
    seen.update(trainer=type(trainer).__name__, loss=type(trainer.model.init_criterion()).__name__)
    seen["val"].append(trainer.test_loader.batch_size)
model = YOLOv10("yolov10n.yaml")
model.add_callback("on_train_start", on_train_start)
model.train(**job)
print()
print(json.dumps(seen))
"""


def test_the_fork_by_its_own_classes(release, python, digits, tmp_path):
    job = {"data": digits(), "epochs": 1, "batch": 8, "imgsz": 160, "device": "cpu", "plots": False, "name": "run"}
    job.update(project=str(tmp_path), patches="all")
    seen = last_json(python("-c", FORK, json.dumps(job), **release("yolov10")))
    assert seen == {"val": [8], "trainer": "YOLOv10DetectionTrainer", "loss": "v10DetectLoss"}
    assert (tmp_path / "run" / "weights" / "best.pt").is_file()


ONLY_HERE = """
import json, sys
import numpy, torch
load = torch.load
import ultralytics
from ultralytics.nn import tasks
from ultralytics.utils import metrics, torch_utils
import yolo_patches
seen = {"torch": torch.load is load, "numpy": hasattr(numpy, "trapz"), "none": hasattr(metrics.np, "trapz")}
with yolo_patches.applied("compat"):
    seen["compat"] = hasattr(metrics.np, "trapz")
torch.save({"model": tasks.DetectionModel}, "file.pt")
for spec in ("none", "compat"):
    yolo_patches.apply(spec)
    try:
        tasks.torch_safe_load("file.pt")
        seen["load " + spec] = True
    except Exception as error:
        seen["load " + spec] = type(error).__name__
yolo_patches.revert()
seen["reverted"] = [tasks.torch is torch, torch_utils.torch is torch, metrics.np is numpy]
print(json.dumps(seen))
"""


def test_nobody_else_sees_it(release, python):
    """The library is untouched, the modules see the stand-ins while the patch is selected, and revert removes them."""
    seen = last_json(python("-c", ONLY_HERE, **release("8.1.34")))
    assert seen == {
        "torch": True,
        "numpy": False,
        "none": False,
        "compat": True,
        "load none": "UnpicklingError",
        "load compat": True,
        "reverted": [True, True, True],
    }
