"""Every supported release, real training: the live validation loader with and without val-batch, for every task."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import MODELS, NEWEST, OLDEST, RELEASES, ROOT, entry, last_json

DOUBLED = {"detect", "segment", "pose", "classify"}  # where upstream doubles the batch; elsewhere the patch is inert
TASKS = {version: ["detect", "obb"] for version in RELEASES}
TASKS[OLDEST] = ["detect", "obb", "classify", "segment", "pose"]
TASKS["8.4.60"] = ["detect", "obb", "semantic"]
TASKS[NEWEST] = list(MODELS)


@pytest.mark.parametrize("version", RELEASES)
def test_validation_batch(version, matrix, release, digits, python, tmp_path):
    common = {"epochs": 1, "batch": 4, "project": str(tmp_path / "runs")}
    jobs = [
        {"model": MODELS[task], "data": digits(task), "patches": spec, "name": f"{task}-{spec}", **common}
        for task in (TASKS[version] if matrix or version == NEWEST else TASKS[version][:3])
        for spec in ("none", "all")
    ]
    done = python(ROOT / "tests/e2e/train.py", *map(json.dumps, jobs), timeout=600, **release(version))
    for job, seen in zip(jobs, last_json(done)):
        task = job["name"].partition("-")[0]
        upstream = 8 if task in DOUBLED else 4
        assert f"/{version}/" in seen["where"]
        assert seen["keys"] == []
        run = Path(seen["save_dir"])
        assert "patches" not in (run / "args.yaml").read_text()
        assert (run / "weights" / "best.pt").is_file()
        expected = upstream if job["patches"] == "none" else 4
        assert seen["val"] == [expected, expected], (job["name"], "between epochs, and final")
        assert seen["batches"] == [-(-12 // expected)] * 2
        if job["patches"] == "none":
            assert not (run / "patches.json").exists()
            continue
        plan = json.loads((run / "patches.json").read_text())
        assert plan["upstream"] == {"name": "ultralytics", "version": version}
        assert (plan["world_size"], plan["global_batch"]) == (1, 4)
        decided = entry(plan)
        if task in DOUBLED:
            assert (decided["status"], decided["verified"]) == ("active", True)
            assert decided["changes"] == [{"what": "val batch per rank", "upstream": 8, "patched": 4}]
        else:
            assert (decided["status"], decided["changes"]) == ("inert", [])


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("task", ["detect", "obb", "classify"])
def test_forecast_is_what_happens(version, task, release, python):
    """`doctor` must say before training what the test above sees during it."""
    words = (f"model={MODELS[task]}", "batch=4", "device=cpu", "patches=val-batch")
    done = python("-m", "yolo_patches", "doctor", "--json", *words, **release(version), check=False)
    decided = entry(json.loads(done.stdout))
    changes = [{"what": "val batch per rank", "upstream": 8, "patched": 4}] if task in DOUBLED else []
    assert (decided["changes"], decided["verified"]) == (changes, None)


@pytest.mark.parametrize("version", RELEASES)
def test_signatures_seams_and_revert(version, release, python):
    """Every wrapper has the signature of what it wraps, nothing is missing, and revert restores the very objects."""
    code = """
import importlib, inspect, json
from yolo_patches.activation import activation
names = {"ultralytics.cfg": None, "ultralytics.utils.dist": None, "ultralytics.engine.trainer": "BaseTrainer",
         "ultralytics.engine.model": "Model"}
owners = [getattr(importlib.import_module(m), c) if c else importlib.import_module(m) for m, c in names.items()]
handles = [h for w in activation._wrappings.values() for h in w._handles]
functions = [(original, wrapped) for _, _, original, wrapped in handles if callable(original)]  # or a module
same = all(inspect.signature(wrapped) == inspect.signature(original) for original, wrapped in functions)
wrapped = sorted(f"{owner.__name__}.{name}" for owner, name, _, _ in handles)
import yolo_patches
from yolo_patches import registry
missing = {seam.__name__: why for seam, why in registry.adapter("ultralytics").missing().items()}
yolo_patches.revert()
restored = all(vars(owner)[name] is original for owner, name, original, _ in handles)
print(json.dumps([same, restored, missing, wrapped]))
"""
    same, restored, missing, wrapped = last_json(python("-c", code, **release(version)))
    assert same
    assert restored
    assert missing == {}
    for name in ("BaseTrainer.__init__", "Model.train", "Model.val", "ultralytics.cfg.entrypoint"):
        assert name in wrapped
    assert "ultralytics.utils.dist.generate_ddp_file" in wrapped


def test_unknown_upstream_is_left_alone(python, digits, tmp_path):
    """A trainer whose constructor we do not know: nothing is replaced, and a training to be patched says so."""
    code = """
import json, sys
import ultralytics.engine.trainer as module
import yolo_patches
from yolo_patches.activation import activation
yolo_patches.revert()
original = module.BaseTrainer.__init__
def init(self, first, second=None, third=None): original(self, first, second, third)
module.BaseTrainer.__init__ = init
yolo_patches.apply("all")
from ultralytics import YOLO
YOLO("yolov8n.yaml").train(data=sys.argv[1], project=sys.argv[2], epochs=1, imgsz=64, batch=8, device="cpu",
    plots=False, workers=0, val=False)
print()
print(json.dumps([module.BaseTrainer.__init__ is init, activation.left_alone["ultralytics.engine.trainer"]]))
"""
    done = python("-c", code, digits(), tmp_path)
    untouched, why = last_json(done)
    assert untouched is True
    assert "BaseTrainer.__init__ has no parameter cfg, overrides, _callbacks" in why
    said = [line for line in (done.stdout + done.stderr).splitlines() if "yolo-patches" in line]
    assert len(said) == 1
    assert "patches=all has no effect, this Ultralytics is not supported" in said[0]
