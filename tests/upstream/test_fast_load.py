"""fast-load: samples and trainings with and without it are the same, in every task and at every age of upstream."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import MODELS, NEWEST, ROOT, last_json

TRAININGS = Path(__file__).with_name("validated_trainings.py")
SAMPLES = ROOT / "benchmarks" / "loading.py"
SAME = ("weights", "random", "fitness", "results", "best", "last")
#: Case of the benchmark -> the parts that must have stood in.
STOOD_IN = {
    "segment": {"planes", "polygons", "masks"},
    "separate masks": {"planes", "polygons", "separate masks"},
    "pose": {"planes"},
    "obb": {"planes", "polygons"},
    "rect": {"planes"},
    "ram": {"planes"},
    "single class": {"planes", "blend", "polygons", "masks"},
}


@pytest.mark.parametrize("version", ["8.0.200", "8.3.253", NEWEST])
def test_samples(version, python, release):
    """Every byte of images and labels, and what the generators have come to."""
    size = ["--images", "10", "--imgsz", "96", "--compare", "50"]
    done = python(SAMPLES, *size, "--cases", ",".join(STOOD_IN), timeout=900, **release(version))
    cases = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"case"')]
    assert [one["case"] for one in cases] == list(STOOD_IN)
    for one in cases:
        assert (one["different"], one["trouble"]) == ([], []), one
        assert {part for part, calls in one["stood in"].items() if calls} >= STOOD_IN[one["case"]], one


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


@pytest.mark.parametrize(("version", "processes"), [("8.0.200", [2]), (NEWEST, [0, 2])])
def test_trainings(version, processes, trainings):
    """Seeded trainings have the same weights to the last bit, with and without loader workers, past the last mosaic."""
    specs = [{"patches": patches, "workers": workers} for workers in processes for patches in ("none", "fast-load")]
    found, _ = trainings(version, {"patches": "none"}, *specs)
    for theirs, ours in zip(found[1::2], found[2::2]):
        assert {key: ours[key] for key in SAME} == {key: theirs[key] for key in SAME}
        item = ours["plan"]["fast-load"]
        assert (item["status"], item["verified"]) == ("active", True), item
        assert "masks where their objects are" in item["reason"]


#: What of ours goes wrong -> what is said of it.
WRONG = {
    "masks.OVERLAPPING = (lambda *_: 1 / 0,)": "masks failed, and is upstream's",
    "masks.OVERLAPPING = (lambda size, segments, ratio: masks.separate(size, segments, ratio),)": "masks had",
    "planes.WAYS = (lambda image, swapped: planes.planes(image, not swapped),)": "planes had another result",
}


def test_what_goes_wrong_is_upstreams(trainings):
    """A part that differs or raises is upstream's: the weights are the same, and the plan tells."""
    broken = [{"patches": "fast-load", "wrong": wrong} for wrong in WRONG]
    found, log = trainings(NEWEST, {"patches": "none"}, {"patches": "none"}, *broken)
    _, theirs, *ours = found
    for run, words in zip(ours, WRONG.values()):
        assert {key: run[key] for key in SAME} == {key: theirs[key] for key in SAME}, words
        item = run["plan"]["fast-load"]
        assert item["verified"] is False, item
        assert words in item["reason"]
        assert words in log
