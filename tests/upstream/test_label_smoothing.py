"""label-smoothing: what the classification loss gets for targets, in training and validation, and where it is off."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import NEWEST, OLDEST, ROOT, entry, last_json

TRAININGS = ROOT / "tests" / "upstream" / "smoothed_trainings.py"
CLASSES, EPSILON = 10, 0.2


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_targets_of_training_are_smoothed_and_those_of_validation_are_not(version, release, python, digits, tmp_path):
    common = {"model": "yolov8n.yaml", "data": digits(), "epochs": 1, "batch": 8, "project": str(tmp_path)}
    jobs = [
        {**common, "patches": f"label-smoothing:epsilon={EPSILON}"},
        {**common, "patches": "label-smoothing"},
        {**common, "patches": "none"},
        {**common, "patches": f"label-smoothing:epsilon={EPSILON}", "single_cls": True},
    ]
    done = python(TRAININGS, *map(json.dumps, jobs), **release(version))
    smoothed, inert, none, single = last_json(done)
    # Of an object's score s, the lowest class has epsilon s / C, and the highest the rest.
    for lowest, highest in smoothed["train"]:
        assert lowest == pytest.approx(EPSILON / CLASSES, rel=1e-3)
        assert highest == pytest.approx(1 - EPSILON + EPSILON / CLASSES, rel=1e-3)
    for lowest, highest in smoothed["val"] + none["train"]:
        assert (lowest, highest) == (0, 1)
    assert smoothed["weights"] != none["weights"] == inert["weights"]
    plans = [json.loads((Path(seen["save_dir"]) / "patches.json").read_text()) for seen in (smoothed, inert, single)]
    states = [entry(plan, "label-smoothing") for plan in plans]
    assert [state["status"] for state in states] == [
        "active",
        "inert",
        "unavailable" if version == NEWEST else "active",
    ]
    assert states[0]["verified"] is True
    if version == NEWEST:  # where single_cls gives the head one class
        assert "one class" in states[2]["reason"]  # measured on the live loss, whose gradient stays
