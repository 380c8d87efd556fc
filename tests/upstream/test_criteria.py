"""The wrappers of loss-norm in every supported release: in place, silent unless asked, proven, gone after revert."""

from __future__ import annotations

import pytest

from tests.conftest import NEWEST, OLDEST, RELEASES, ROOT, last_json
from yolo_patches.upstreams.ultralytics import HOOKS, loss_wrappers

#: Of each release's criteria, the methods that bring normalisers to the seam: a change in number is worth a look.
METHODS = {"8.2.103": 6, "8.3.0": 6, "8.3.253": 8, "8.4.0": 11, "8.4.60": 11, "8.4.190": 11}
#: What has no normaliser that ranks could share, but a loss that grows with the batch in its own way.
WITHOUT = {"yolov8n-cls": 1, "yolo26n-sem": 2, "yolo26n-depth": 2}
HEADS = ("yolov8n", "yolov8n-seg", "yolov8n-pose", "yolov8n-obb", "yolov10n", "yolo11n", "yolo26n", "yolo26n-seg",
         "yolo26n-pose", "yolo26n-obb", *WITHOUT)  # fmt: skip


def test_every_module_is_waited_for():
    assert set(loss_wrappers.MODULES) <= set(HOOKS)


@pytest.mark.parametrize("version", RELEASES)
def test_wrappers(version, release, python):
    heads = (*HEADS, "rtdetr-l") if version in (OLDEST, NEWEST) else HEADS
    seen = last_json(python(ROOT / "tests/upstream/criteria.py", *heads, **release(version)))
    assert seen["present"] == seen["wrapped"] == METHODS[version]
    assert seen["types"] == [["Tensor", "Tensor"], ["Tensor", "Tensor"], ["Shard", "Shard"], ["Tensor", "Tensor"]]
    assert seen["equal"]
    assert len(seen["seams"]) == 1, "one for each assignment, none outside of a common step, none without gradients"
    assert seen["seams"][0] == pytest.approx(seen["expected"])
    assert seen["divisor"] == pytest.approx([max(seen["expected"][0], 0.5), seen["expected"][1]])
    assert seen["pickled"] == [False, False]
    assert seen["early return"] in (None, [[0.0, 0.0]])
    assert all(seen["reverted"])
    check_probes(seen)


def check_probes(seen):
    """Each head's loss is proven with shared normalisers, in no time, and no trace of it is left."""
    assert len(seen["probes"]) >= 6
    for name, found in seen["probes"].items():
        assert found["undisturbed"], name
        assert found["growth"] == pytest.approx(WITHOUT.get(name, 1 if name.startswith("rtdetr") else 2), rel=2e-3), (
            name
        )
        if name in WITHOUT:
            assert (found["error"], found["why"]) == (None, "no normaliser has come to the seam"), name
        else:
            assert found["error"] <= 1e-6, name
            assert not found["why"], name
        assert found["seconds"] < (8 if name.startswith("rtdetr") else 2), name
        assert seen["normalises"][name] is (name not in WITHOUT), name
    normalises, error, growth, why, undisturbed, nothing = seen["raising"]
    assert (normalises, error, growth, nothing, undisturbed) == (False, None, None, None, True)
    assert "ZeroDivisionError" in why
    assert seen["after"] is False
    assert seen["probe after"]["error"] is None, "without the wrappers nothing is proven"
    assert seen["probe after"]["growth"] == pytest.approx(2)
