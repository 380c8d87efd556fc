"""fast-load:level=device: what a training sees is upstream's, whoever reads its batches and whatever goes wrong."""

from __future__ import annotations

import json
import socket
import subprocess
from pathlib import Path

import pytest

from tests.conftest import NEWEST, last_json

TRAININGS = Path(__file__).with_name("finished_trainings.py")
DEVICE = {"patches": "fast-load:level=device"}
#: Each of its trainings -> how many batches came with pixels left undone (at least one: True), `verified`, and words of
#: the plan. There are 15 batches, three of which a callback reads; the last mosaic's end has new transforms, without
#: the user's.
RUNS = [
    ({}, 12, True, "on the device"),
    ({"patches": "all,fast-load:level=device", "val": True}, 12, True, "on the device"),
    ({"noted": True}, 4, True, "their pipeline does not end as upstream's does"),
    ({"own": "whole"}, 0, True, "batches are prepared by a trainer of your own"),
    ({"own": "late"}, 0, True, "on the device"),
    ({"broken": "swaps"}, 0, False, "last pixels had another result"),
    ({"broken": "raises late"}, True, False, "last pixels failed"),
    ({"undone": True}, True, True, "on the device"),
    ({"processes": 0}, 0, True, "the training's own process makes its batches"),
    ({"multi_scale": 0.5}, 12, True, "on the device"),
]


@pytest.mark.parametrize("version", ["8.4.60", NEWEST])
def test_trainings(version, python, release, digits, tmp_path):
    """Labels are upstream's and pixels nearly, in every batch that models and callbacks see."""
    common = {"data": digits(), "project": str(tmp_path)}
    runs = RUNS if version == NEWEST else RUNS[:1]
    asked = []
    for run, *_ in runs:
        same = {name: run[name] for name in ("noted", "processes", "multi_scale") if name in run}
        if (plain := {**common, **same, "patches": "none"}) not in asked:
            asked.append(plain)
        asked.append({**common, **DEVICE, **run})
    done = python(TRAININGS, json.dumps(asked), timeout=900, YOLO_PATCHES="none", **release(version))
    found = last_json(done)
    assert sum(one["plan"] is None for one in found) + len(runs) == len(asked)
    for (run, left, verified, words), one in zip(runs, [one for one in found if one["plan"]]):
        assert (one["batches"], one["labels"], one["others"]) == (15, True, {}), (run, one)
        assert one["mean"] <= 1, (run, one)
        assert one["left"] > 0 if left is True else one["left"] == left, (run, one)
        said = one["plan"]["reason"] + "".join(one["plan"]["notes"])
        assert (one["plan"]["status"], one["plan"]["verified"]) == ("active", verified), (run, one)
        assert words in said, (run, one)


def test_ranks(environment, interpreter, release, digits, tmp_path):
    """Each of two ranks does its own, beside every other patch."""
    common = {"data": digits(), "project": str(tmp_path), "val": True}
    asked = [{**common, "patches": "torchrun"}, {**common, "patches": "all,fast-load:level=device"}]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    done = subprocess.run(
        [*(interpreter, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port)),
         TRAININGS, json.dumps(asked), tmp_path],
        cwd=tmp_path, env={**environment, **release(NEWEST), "YOLO_PATCHES": "none"}, capture_output=True, text=True,
        timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    for rank in range(2):
        _, one = json.loads((tmp_path / f"{rank}.json").read_text())
        assert (one["batches"], one["left"], one["labels"], one["others"]) == (15, 12, True, {}), (rank, one)
        assert one["mean"] <= 1, (rank, one)
    assert one["plan"]["verified"] is True
