"""best: early stopping by a mean, and which weights best.pt holds, in the real trainer with figures that are given."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import NEWEST, last_json

PROGRAM = Path(__file__).with_name("validated_trainings.py")
#: One lucky epoch, then a slow rise that upstream does not wait for, and a fall.
NOISY = [0.2, 0.5, 0.3, 0.32, 0.34, 0.4, 0.45, 0.1, 0.1, 0.1, 0.1, 0.1]
#: Means of the last three.
MEANS = [0.2, 0.35, 1 / 3, 1.12 / 3, 0.32, 1.06 / 3, 1.19 / 3, 0.95 / 3, 0.65 / 3, 0.1]


@pytest.fixture
def trainings(python, release, digits, tmp_path):
    def make(version, *arguments):
        common = {"data": digits("detect", 4, 4), "epochs": 12, "patience": 3, "plots": False, "imgsz": 32, "batch": 4}
        common |= {"fitness": NOISY, "project": str(tmp_path)}
        runs = [{**common, "name": str(index), **one} for index, one in enumerate(arguments)]
        return last_json(python(PROGRAM, json.dumps(runs), timeout=900, **release(version)))

    return make


@pytest.mark.parametrize("version", ["8.0.200", NEWEST])
def test_early_stopping_by_a_mean(version, trainings):
    upstream, smooth, both, skip = trainings(
        version,
        {"patches": "none"},
        {"patches": "best:smooth=3"},
        {"patches": "best:smooth=3:best_pt=true"},
        {"patches": "best:skip=2:metric=mAP50-95*0.5+recall*0.5", "epochs": 3},
    )
    assert len(upstream["results"]) == 5  # three epochs after the lucky one
    assert len(smooth["results"]) == len(both["results"]) == 10  # three after the best mean
    assert smooth["weights"][:5] == upstream["weights"]
    assert smooth["best"] == upstream["best"] == upstream["weights"][1]
    assert both["best"] == both["weights"][6]
    assert [float(row["best/smoothed"]) for row in smooth["table"]] == pytest.approx(MEANS)
    assert [float(row["best/fitness"]) for row in smooth["table"]] == pytest.approx(NOISY[:10])
    assert smooth["fitness"][:10] == pytest.approx(NOISY[:10])
    assert both["fitness"][:10] == pytest.approx(MEANS)
    assert [float(row["metrics/mAP50-95(B)"]) for row in both["results"]] == pytest.approx(NOISY[:10])  # stay raw
    assert skip["best"] == skip["weights"][2] and "best.pt" in skip["files"]
    assert skip["fitness"][:3] == pytest.approx([0.5] * 3)
    for run in (smooth, both, skip):
        assert (run["plan"]["best"]["status"], run["plan"]["best"]["verified"]) == ("active", True)
        assert run["left"] == []


@pytest.mark.parametrize("version", ["8.3.253", NEWEST])
def test_resumed(version, trainings, tmp_path):
    """A run that was interrupted after its lucky epochs stops where the whole one does, and keeps the best checkpoints.

    8.3.253 forgets early stopping's state when it resumes.
    """
    spec = "best:smooth=3:keep=2"
    whole, first, resumed = trainings(
        version,
        {"patches": spec},
        {"patches": spec, "name": "again", "interrupt": 7},
        {"model": str(tmp_path / "again/weights/last.pt"), "resume": True},
    )
    assert len(whole["results"]) == 10
    assert first["interrupted"] and len(first["results"]) == 8
    assert [row["epoch"] for row in resumed["results"]] == [row["epoch"] for row in whole["results"]]
    assert resumed["table"] == whole["table"]
    for run in (whole, resumed):
        assert [name for name in run["files"] if name.startswith("epoch")] == ["epoch1.pt", "epoch6.pt", "epoch9.pt"]
        assert ["save_period=1" in note for note in run["plan"]["best"].get("notes", [])] == [True] * (run is whole)
        assert run["plan"]["best"]["verified"] is True
    assert resumed["best"] == first["weights"][1]
