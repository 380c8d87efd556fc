"""Trainings whose allocator fails, against the same trainings without failures."""

import json
from pathlib import Path

import pytest

from tests.conftest import NEWEST, OLDEST, last_json

RUNS = Path(__file__).with_name("oom_runs.py")
SHORT = {"epochs": 1, "batch": 5, "nbs": 10}
#: One failure in each place, in one run.
POINTS = [
    ["prepare", 0.4],
    ["forward", 0.95],
    ["backward", 0.2],
    ["step", 0.5],
    ["ema", 0.5],
    ["validation", 0.4],
    ["save", 0.5],
]


def runs(python, release, digits, tmp_path, version, *jobs):
    done = python(RUNS, digits(train=10, val=6), tmp_path, json.dumps({"runs": jobs}), **release(version))
    return done, last_json(done)


def run(patches, *points, **more):
    return {"arguments": {**SHORT, "patches": patches}, "points": points, **more}


@pytest.mark.parametrize("version", [OLDEST, "8.3.253", NEWEST])
def test_a_training_ends_as_without_failures(python, release, digits, tmp_path, version):
    jobs = [
        run("compat"),
        run("compat,oom-guard", *POINTS),
        run("compat,oom-guard:micro=3", limit=2),  # parts of 2 and 3 images, then of 2 and 1
    ]
    if version == NEWEST:
        jobs.append(run("compat,oom-guard"))
    done, (reference, failing, limited, *quiet) = runs(python, release, digits, tmp_path, version, *jobs)
    assert "died" not in failing, failing
    assert {where for where, _ in failing["fired"]} == {where for where, _ in POINTS}
    assert limited["fired"]
    for result in (failing, limited, *quiet):
        assert "died" not in result, result
        assert max(result[name] for name in ("end", "ema", "optimizer")) < 1e-10
        assert (result["batch"], result["random"], result["names"]) == (5, reference["random"], [])
        assert (result["notes"]["status"], result["notes"]["verified"]) == ("active", True)
    for result in quiet:
        assert result["end"] == result["ema"] == result["optimizer"] == 0
        assert not any("parts of at most" in note for note in result["notes"]["notes"])
    assert any("parts of at most" in note for note in failing["notes"]["notes"])
    assert sum("parts of at most 2" in note for note in limited["notes"]["notes"]) == 1
    assert "asked for 1.50 GiB" in done.stdout + done.stderr


def test_one_image_that_does_not_fit_says_what_to_change(python, release, digits, tmp_path):
    job = run("oom-guard", limit=0.5)  # a release without a retry of its own
    done, (result,) = runs(python, release, digits, tmp_path, "8.3.253", job)
    assert result["died"].startswith("OutOfMemoryError")
    assert "a single image of 64 x 64 pixels does not fit" in done.stdout + done.stderr
