"""Defects of single releases: recognised by what upstream does, mended where they are, inert where they are fixed."""

from __future__ import annotations

import shutil

import pytest

from tests.conftest import NEWEST, last_json

CLASSES = """
import json, os
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
import yolo_patches
yolo_patches.apply("none")
from ultralytics.engine.trainer import BaseTrainer
from ultralytics.nn.tasks import DetectionModel
from yolo_patches import facts
from yolo_patches.seams import Live, OptimizerChoice
from yolo_patches.upstreams.ultralytics.defects.auto_lr_classes import AutoLrClasses
os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
model = DistributedDataParallel(DetectionModel("yolov8n.yaml", verbose=False))
model.module.nc = 80  # which the trainer sets
trainer = BaseTrainer.__new__(BaseTrainer)
vars(trainer).update(data={"nc": 80}, args=type("A", (), {"lr0": 0.01, "momentum": 0.9, "warmup_bias_lr": 0.1})())
def chosen():
    return trainer.build_optimizer(model, name="auto", iterations=10).param_groups[0]["lr"]
patch = AutoLrClasses()
known = facts.Facts("ultralytics", "", "detect", facts.Batch(8), devices=facts.Devices(2))
seen = [patch.decide(known).status, chosen()]
if seen[0] == "active":
    patch._show(OptimizerChoice(8, 80, 1, 10, model=model))
    seen += [chosen(), patch.verify(Live(model=model))]
    patch.close()
    seen += [hasattr(model, "nc")]
print(json.dumps(seen))
"""


@pytest.mark.parametrize("version", ["8.3.0", NEWEST])
def test_auto_lr_classes(version, release, python):
    seen = last_json(python("-c", CLASSES, **release(version)))
    if version == NEWEST:
        assert seen == ["inert", pytest.approx(0.002 * 5 / 84, rel=0.01)]
    else:
        wrong, right = 0.002 * 5 / 14, 0.002 * 5 / 84
        assert seen == ["active", pytest.approx(wrong, rel=0.01), pytest.approx(right, rel=0.01), True, False]


def test_below_the_oldest_release(release, python, digits, tmp_path):
    """One line that names it: in `list`, from `doctor`, and where a training was to be patched."""
    home = release(NEWEST)["PYTHONPATH"]
    shutil.copytree(f"{home}/ultralytics", tmp_path / "old" / "ultralytics")
    init = tmp_path / "old" / "ultralytics" / "__init__.py"
    init.write_text(init.read_text().replace(f'"{NEWEST}"', '"8.0.100"'))
    where = {"PYTHONPATH": str(tmp_path / "old")}
    says = "Ultralytics 8.0.100 is older than 8.0.200, the oldest release that yolo-patches supports"
    listed = python("-m", "yolo_patches", "list", **where).stdout
    assert f"ultralytics: unavailable: {says}" in listed
    doctor = python("-m", "yolo_patches", "doctor", "model=yolov8n.yaml", check=False, **where)
    assert (doctor.returncode, doctor.stderr.strip().splitlines()[-1]) == (2, f"yolo-patches: error: {says}")
    words = ("model=yolov8n.yaml", f"data={digits()}", "epochs=1", "imgsz=64", "device=cpu", "plots=False", "val=False")
    run = python("-m", "yolo_patches", "train", *words, "batch=4", YOLO_PATCHES="all", **where)
    lines = [line for line in (run.stdout + run.stderr).splitlines() if "yolo-patches" in line]
    assert len(lines) == 1
    assert says in lines[0]
