"""fast-load: samples and trainings with and without it are the same, in every task and at every age of upstream."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import MODELS, NEWEST, ROOT, last_json

TRAININGS = Path(__file__).with_name("validated_trainings.py")
SAMPLES = ROOT / "benchmarks" / "loading.py"
CHANGED = Path(__file__).with_name("changed_pipelines.py")
SAME = ("weights", "random", "fitness", "results", "best", "last")
#: Case of the benchmark -> the parts that must have stood in, in every release.
STOOD_IN = {
    "segment": {"planes", "polygons", "masks"},
    "separate masks": {"planes", "polygons", "separate masks"},
    "pose": {"planes"},
    "obb": {"planes", "polygons"},
    "rect": {"planes"},
    "single class": {"planes", "blend", "polygons", "masks"},
}
OBJECTS = {"boxes on the mosaic", "objects after the warp", "shares"}
#: The same, in the newest release alone.
NEW = {
    "segment": {"canvas", "colours", "outlines", *OBJECTS},
    "pose": {"canvas", "colours"},
    "obb": {"canvas", "colours"},
    "rect": {"canvas", "colours", "objects after the warp", "shares"},
    "ram": {"canvas", "colours", *OBJECTS},
    "odd boxes": {"canvas", "colours", *OBJECTS},
    "odd polygons": {"canvas", "colours", "outlines", *OBJECTS},
    "odd segments": {"canvas", "colours", "outlines", *OBJECTS},
    "turned segments": {"colours", "boxes on the mosaic", "shares"},
    "pasted later": {"canvas", "colours", "outlines", *OBJECTS},
    "pasted seldom": {"canvas", "colours", "outlines", *OBJECTS},
}


@pytest.mark.parametrize("version", ["8.0.200", "8.3.253", NEWEST])
def test_samples(version, python, release):
    """Every byte of images and labels, and what the generators have come to."""
    classes = {} if version == "8.0.200" else {"classes": {"numbers"}}
    expected = {**STOOD_IN, **classes, **(NEW if version == NEWEST else {})}
    size = ["--images", "10", "--imgsz", "96", "--compare", "20"]
    done = python(SAMPLES, *size, "--cases", ",".join(expected), timeout=900, **release(version))
    cases = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"case"')]
    assert [one["case"] for one in cases] == list(expected)
    for one in cases:
        assert (one["different"], one["trouble"]) == ([], []), one
        assert {part for part, calls in one["stood in"].items() if calls} >= expected[one["case"]], one


@pytest.mark.parametrize("version", ["8.0.200", NEWEST])
def test_near(version, python, release):
    """Labels and random numbers are upstream's, and pixels nearly; in an old release most of them are the same."""
    size = ["--images", "10", "--imgsz", "96", "--compare", "20", "--cases", "segment,odd boxes"]
    done = python(SAMPLES, *size, timeout=900, FAST_LOAD_LEVEL="near", **release(version))
    cases = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"case"')]
    assert [one["case"] for one in cases] == ["segment", "odd boxes"]
    for one in cases:
        assert (one["different"], one["trouble"]) == ([], []), one
        assert one["pixels"]["mean"] <= 1, one
        assert version != NEWEST or one["pixels"]["most"] > 0, one


@pytest.mark.parametrize("version", ["8.4.60", NEWEST])
def test_device(version, python, release):
    """Labels, masks and random numbers are upstream's, and pixels nearly, once what is left undone is done."""
    expected = ("segment", "pose", "obb", "odd boxes")[: 4 if version == NEWEST else 1]
    size = ["--images", "10", "--imgsz", "96", "--compare", "20", "--cases", ",".join(expected)]
    done = python(SAMPLES, *size, timeout=900, FAST_LOAD_LEVEL="device", **release(version))
    cases = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"case"')]
    assert [one["case"] for one in cases] == list(expected)
    for one in cases:
        assert (one["different"], one["trouble"]) == ([], []), one
        assert 0 < one["pixels"]["mean"] <= 1, one
        assert one["stood in"]["last pixels"] >= 20, one
        assert one["stood in"]["last pixels that workers have done"] == 0, one


def test_changed_pipelines(python, release, digits):
    """What a user puts into a pipeline sees upstream's images and objects, also in a worker that was spawned."""
    found = last_json(python(CHANGED, digits("segment"), timeout=300, **release(NEWEST)))
    assert found == {name: [] for name in ("as it is", "spawned", "between", "at the end", "instead", "closed")}


@pytest.fixture
def trainings(python, release, digits, tmp_path):
    """Return a function that makes trainings of segments in one release and returns what it has seen of each."""

    def make(version, *arguments):
        common = {"model": MODELS["segment"], "data": digits("segment"), "epochs": 2, "close_mosaic": 1, "plots": False}
        common = {**common, "mixup": 0.5, "copy_paste": 0.5, "project": str(tmp_path)}
        runs = [{**common, "name": str(index), **one} for index, one in enumerate(arguments)]
        done = python(TRAININGS, json.dumps(runs), timeout=900, **release(version))
        return last_json(done), done.stderr

    return make


#: What of ours goes wrong -> what is said of it.
WRONG = {
    "masks.OVERLAPPING = (lambda *_: 1 / 0,)": "masks failed, and is upstream's",
    "masks.OVERLAPPING = (lambda size, segments, ratio: masks.separate(size, segments, ratio),)": "masks had",
    "planes.WAYS = (lambda image, swapped: planes.planes(image, not swapped),)": "planes had another result",
    "canvas.AROUND = -9": "canvas had another result",
}


def test_trainings(trainings, digits):
    """Seeded trainings have the same weights to the last bit, with and without loader workers, past the last mosaic.

    A part that differs or raises is upstream's: the weights are the same, and the plan tells.
    """
    specs = [{"patches": patches, "workers": workers} for workers in (2, 0) for patches in ("none", "fast-load")]
    broken = [{"patches": "fast-load", "workers": 0, "wrong": wrong} for wrong in WRONG]
    classes = {"model": MODELS["classify"], "data": digits("classify"), "workers": 2}
    classified = [{**classes, "patches": patches} for patches in ("none", "fast-load")]
    found, log = trainings(NEWEST, {"patches": "none", "epochs": 1}, *specs, *broken, *classified)
    *found, one, other = found
    assert {key: other[key] for key in SAME} == {key: one[key] for key in SAME}, other["plan"]["fast-load"]
    item = other["plan"]["fast-load"]
    assert (item["status"], item["verified"]) == ("active", True) and "numbers by tables" in item["reason"], item
    theirs, ours = (found[1], found[3]), (found[2], found[4])
    for one, other in zip((*theirs, *[theirs[1]] * len(WRONG)), (*ours, *found[5:])):
        assert {key: other[key] for key in SAME} == {key: one[key] for key in SAME}, other["plan"]["fast-load"]
    for run in ours:
        item = run["plan"]["fast-load"]
        assert (item["status"], item["verified"]) == ("active", True), item
        assert "masks where their objects are" in item["reason"]
    for run, words in zip(found[5:], WRONG.values()):
        item = run["plan"]["fast-load"]
        assert item["verified"] is False, item
        assert words in item["reason"]
        assert words in log
