"""feeding: workers by the cores that there are; what a training draws is untouched unless that is asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import NEWEST, last_json

MEMORY = ("images of a batch", "in shared memory of its own", "in memory that batches use again")
TRAININGS = Path(__file__).with_name("fed_trainings.py")
SAME = ("weights", "random", "fitness", "results", "best", "last")


@pytest.mark.parametrize("version", ["8.0.200", NEWEST])
def test_trainings(version, python, release, digits, tmp_path):
    """Workers of both loaders, as upstream has them and as the plan says; and what came of the training."""
    common = {"data": digits("detect", 16, 20), "epochs": 2, "batch": 4, "nbs": 4, "close_mosaic": 0, "plots": False}
    common = {**common, "project": str(tmp_path), "processes": 1, "val": False, "warmup_epochs": 0}
    runs = {
        "upstream": {"patches": "none"},
        "usual": {"patches": "feeding"},
        "beside others": {"patches": "feeding,fast-load,fast-val,oom-guard"},
        "cores": {"patches": "feeding:workers=cores:reuse=false", "cores": 4},
    }
    specs = [{**common, **run, "name": str(number)} for number, run in enumerate(runs.values())]
    done = python(TRAININGS, json.dumps(specs), timeout=600, **release(version))
    found, threads = last_json(done)
    seen = dict(zip(runs, found))
    assert all(one["kept"] for one in found)  # the workers of an epoch are those of the next
    assert max(max(max(row) for row in batch) for batch in threads) == 1  # N workers use N cores
    assert seen["upstream"]["workers"] == [1, 2]

    def plan(name):
        item = seen[name]["plan"]["feeding"]
        return item["status"], item["verified"], [(c["what"], c["upstream"], c["patched"]) for c in item["changes"]]

    assert seen["usual"]["workers"] == [1, 1]
    assert plan("usual") == ("active", True, [("validation loader workers", 2, 1), MEMORY])
    for name in ("usual", "beside others"):
        assert {key: seen[name][key] for key in SAME} == {key: seen["upstream"][key] for key in SAME}, name
        assert MEMORY in plan(name)[2] and plan(name)[1] is True, name
    assert seen["cores"]["workers"] == [3, 2]
    assert plan("cores") == ("active", True, [("loader workers", 1, 3)])
    assert seen["cores"]["weights"] != seen["upstream"]["weights"]  # each worker draws its own numbers
