"""fast-val and val-loss in checkouts: the same trainings and metrics, and losses where upstream has none."""

from __future__ import annotations

import csv

import pytest

from tests.scripts.conftest import arguments, plan, run

#: The criterion, called as in training on every batch that upstream's validation reads, beside its own run.
DIRECTLY = """
import sys, torch
from yolo_patches.upstreams.scripts import session
def directly(model, criterion, loader, masks):
    total, model = 0.0, model.eval()
    head = model.model[-1]
    with torch.inference_mode():
        for batch in loader:
            head.training = True
            made = model(batch[0].float() / 255)
            head.training = False
            more = (batch[4].float(),) if masks else ()
            total = total + criterion(made, batch[1].clone(), *more)[1].double()
    return (total / len(loader)).tolist()
from yolo_patches.upstreams.scripts.training import Training
Training.once = getattr(Training, "once", Training.validate)
def validate(self, function, args, kwargs):
    result = self.once(function, args, kwargs)
    loader = getattr(kwargs["dataloader"], "__wrapped__", kwargs["dataloader"])
    expected = directly(kwargs["model"].float(), kwargs["compute_loss"], loader, "segment" in run["script"])
    run.setdefault("losses", []).append([result[0][-len(expected):], expected])
    return result
Training.validate = validate
"""


def rows(folder):
    with open(folder / "results.csv") as file:
        return [{key.strip(): str(value).strip() for key, value in row.items() if key} for row in csv.DictReader(file)]


def test_the_same_training(drive, yolov9, yolov5, models, data, tmp_path):
    """Three epochs: weights and every figure in results.csv, with fast-val and without."""
    jobs = {
        "yolov9": (yolov9, "train.py", models / "single.yaml", models / "hyp9.yaml", "detect"),
        "yolov5": (yolov5, "segment/train.py", models / "v5-segment.yaml", models / "hyp5.yaml", "segment"),
    }
    for upstream, (root, script, model, hyp, task) in jobs.items():
        runs = []
        for spec in ("compat", "compat,fast-val"):
            name = f"{upstream} {spec}"
            words = (*arguments(model, data(task), hyp, tmp_path, name, epochs=3), "--noplots")
            runs.append(run(name, root, script, words, spec))
        theirs, ours = drive(runs).values()
        for done in (theirs, ours):
            assert "error" not in done, done["log"][-3000:]
        assert ours["digest"] == theirs["digest"] and ours["left"] == []
        assert rows(tmp_path / runs[1]["name"]) == rows(tmp_path / runs[0]["name"])
        item = next(one for one in plan(tmp_path / runs[1]["name"])["patches"] if one["name"] == "fast-val")
        assert item["status"] == "active" and "MiB of images are kept" in item["reason"], item


@pytest.mark.parametrize(("script", "model", "task"), [
    ("train_dual.py", "dual", "detect"), ("train_triple.py", "triple", "detect"),
    ("segment/train_dual.py", "dual-segment", "segment"),
])  # fmt: skip
def test_losses_are_the_criterions(script, model, task, drive, yolov9, models, data, tmp_path):
    runs = []
    for spec in ("compat", "compat,val-loss"):
        words = arguments(models / f"{model}.yaml", data(task), models / "hyp9.yaml", tmp_path, spec, epochs=2)
        runs.append(run(spec, yolov9, script, (*words, "--noplots"), spec, before=DIRECTLY))
    theirs, ours = drive(runs).values()
    for done in (theirs, ours):
        assert "error" not in done, done["log"][-3000:]
    assert ours["digest"] == theirs["digest"]
    assert all(sum(told) == 0 < sum(expected) for told, expected in theirs["losses"])
    assert len(ours["losses"]) >= 2
    for told, expected in ours["losses"]:
        assert told == pytest.approx(expected, rel=1e-6)
    columns = [key for key in rows(tmp_path / "compat,val-loss")[0] if key.startswith("val/")]
    for row in rows(tmp_path / "compat,val-loss")[:2]:
        assert sum(float(row[key]) for key in columns) > 0
    item = next(one for one in plan(tmp_path / "compat,val-loss")["patches"] if one["name"] == "val-loss")
    assert (item["status"], item["verified"]) == ("active", True), item
