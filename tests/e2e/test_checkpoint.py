"""What is trained under patches must load, validate, resume and export where yolo_patches does not exist."""

from __future__ import annotations

import json
import pickletools
import shutil
import zipfile
from pathlib import Path

import pytest

from tests.conftest import NEWEST, OLDEST, ROOT, entry, last_json

SCRIPT = ROOT / "tests" / "e2e" / "train.py"

USE = """
import json, sys
from pathlib import Path
from ultralytics import YOLO
weights, data = Path(sys.argv[1]), sys.argv[2]
metrics = YOLO(weights).val(data=data, imgsz=64, device="cpu", plots=False, verbose=False).results_dict
exported = YOLO(weights).export(format="torchscript", imgsz=64, device="cpu")
tuned = YOLO(weights).train(data=data, imgsz=64, epochs=1, batch=8, device="cpu", plots=False, verbose=False)
print()
print(json.dumps([sorted(metrics), Path(exported).is_file(), "yolo_patches" in sys.modules]))
"""


def words(checkpoint):
    """Return every string in a checkpoint's pickle."""
    with zipfile.ZipFile(checkpoint) as archive:
        data = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
    return [str(argument) for _, argument, _ in pickletools.genops(data) if isinstance(argument, str)]


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_used_and_resumed_without_the_package(version, release, digits, python, tmp_path):
    where = release(version)
    job = {"model": "yolov8n.yaml", "data": digits(), "epochs": 3, "batch": 4, "project": str(tmp_path / "runs")}
    (begun,) = last_json(python(SCRIPT, json.dumps({**job, "patches": "all", "stop_after": 1}), **where))
    run = Path(begun["save_dir"])
    last = run / "weights" / "last.pt"
    # The last commit's message is in it, too, where upstream lies in somebody's repository.
    assert not [word for word in words(last) if word == "patches" or "yolo_patches" in word]
    assert "patches" not in (run / "args.yaml").read_text()
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)

    # Resumed with the package and without a word: the run's own patches.json decides.
    resume = {"model": str(last), "resume": True}
    (ours,) = last_json(python(SCRIPT, json.dumps(resume), **where))
    assert ours["val"] == [4, 4, 4]
    plan = json.loads((run / "patches.json").read_text())
    assert (entry(plan)["status"], entry(plan)["verified"]) == ("active", True)

    # Told otherwise, it is as told.
    shutil.copytree(copy, run, dirs_exist_ok=True)
    (told,) = last_json(python(SCRIPT, json.dumps({**resume, "patches": "none"}), **where))
    assert told["val"] == [8, 8, 8]

    # Without the package it is upstream's run, from the same file.
    shutil.copytree(copy, run, dirs_exist_ok=True)
    (theirs,) = last_json(python(SCRIPT, json.dumps(resume), absent=True, **where))
    assert theirs["val"] == [8, 8, 8]
    assert theirs["model"] == told["model"] == ours["model"]

    metrics, exported, loaded = last_json(python("-c", USE, last, digits(), absent=True, **where))
    assert "metrics/mAP50(B)" in metrics
    assert (exported, loaded) == (True, False)


def test_resume_of_an_upstream_run_stays_upstream(digits, python, tmp_path):
    job = {"model": "yolov8n.yaml", "data": digits(), "epochs": 2, "batch": 4, "project": str(tmp_path / "runs")}
    (begun,) = last_json(python(SCRIPT, json.dumps({**job, "stop_after": 1}), absent=True))
    run = Path(begun["save_dir"])
    (ours,) = last_json(python(SCRIPT, json.dumps({"model": str(run / "weights" / "last.pt"), "resume": True})))
    assert ours["val"] == [8, 8]
    assert not (run / "patches.json").exists()
