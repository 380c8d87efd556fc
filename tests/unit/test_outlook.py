"""What doctor tells of a measured training, and with which arguments it measures."""

from __future__ import annotations

import pytest

from yolo_patches.doctor.measurement import Largest, Measured, outlook
from yolo_patches.doctor.subject import Machine, Settings
from yolo_patches.errors import PatchesError
from yolo_patches.facts import Batch, Facts, Optimization
from yolo_patches.forecast import Foreseen
from yolo_patches.plan import Plan

NOW = Measured(8, 10, 0.1, 0.0, 1.0, 2, 1 << 30)
MOST = Measured(40, 2, 0.25, 0.0, 0.5, 2, 3 << 30)
WHY = "tried: 40 fits into 4 GiB"


def told(largest, batch=8, measured=NOW):
    """Return the outlook of a training of 7,200 epochs, and the changes that it was measured with."""
    facts = Facts("ultralytics", "8.4.190", "detect", Batch(batch), optimization=Optimization(epochs=7200))
    foreseen = Foreseen(Plan("ultralytics", "8.4.190", 1, batch, "none", []), facts, Settings(workers=1), lambda: None)
    asked = []

    def measure(changes):
        asked.append(changes)
        return measured

    return outlook(foreseen, Machine(2, 1 << 34), measure, lambda: largest), asked


def test_the_largest_batch_has_its_hours_and_its_memory():
    found, _ = told(Largest(WHY, MOST))
    lines = str(found).splitlines()
    assert lines[0].startswith("measured: 2 h for 7200 epochs of 1 s")
    assert lines[2] == "largest batch that fits: 40 (tried: 40 fits into 4 GiB), 160 images/s"
    assert lines[3].startswith("  measured with it: 1 h for 7200 epochs of 0.5 s")
    assert lines[4] == "  memory: 3 GiB in training"
    answer = found.to_dict()
    assert (answer["hours"], answer["largest"]["hours"]) == (2, 1)
    assert answer["largest"]["measured"]["batch"] == 40


def test_what_stood_in_the_way_is_told_and_all_else_measured():
    found, _ = told(Largest("a trial with batch=8 failed: no such file"))
    assert "largest batch that fits: not found: a trial with batch=8 failed: no such file" in str(found).splitlines()
    assert found.to_dict()["largest"] == {"why": "a trial with batch=8 failed: no such file", "measured": None}
    assert "change" in str(found)
    assert "largest batch" not in str(told(None)[0])


def test_a_batch_that_upstream_finds_is_found_once_for_all_changes():
    assert all("batch" not in changes for changes in told(None)[1] if "workers" in changes)
    asked = told(None, batch=-1)[1]
    assert asked[:2] == [{}, {"batch": 8, "workers": 2}]


def test_a_training_that_does_not_run_is_an_error():
    with pytest.raises(PatchesError, match="ends before it can be measured"):
        told(None, measured=None)
