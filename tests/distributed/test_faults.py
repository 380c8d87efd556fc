"""What ranks do when one is killed, raises, or stands still: they end together, or go on. faults.py has the matrix."""

from __future__ import annotations

import csv
import json
import sys

import pytest

from tests.distributed.fault_rank import STOP
from tests.distributed.faults import inject

#: One of each fault, at moments at which the other rank waits in a collective of ours or of upstream's.
CASES = [
    ("killed", "mid-epoch", 0),
    ("raising", "first step", 1),
    ("raising", "validation", 0),
    ("stopped", "mid-epoch", 1),
]


@pytest.mark.parametrize(("fault", "moment", "rank"), CASES)
def test_a_rank(fault, moment, rank, environment, digits, tmp_path):
    seen = inject(digits(), tmp_path, "all", fault, moment, rank, epochs=2, environment=environment)
    if fault == "stopped":
        assert seen["status"] == 0, seen["log"][-4000:]
        assert seen["last.pt"] is True
        plan = json.loads((tmp_path / "run" / "patches.json").read_text())
        with (tmp_path / "run" / "patches.csv").open() as file:
            (_, row) = csv.DictReader(file)
        # Rank 1 has stood still before the last step, and rank 0 has waited for it.
        assert STOP - 0.5 <= float(row["ranks/longest_wait_s"]) <= float(row["time/epoch_s"])
        assert {item["name"]: item["verified"] for item in plan["patches"] if item["status"] == "active"} == {
            "fast-load": True, "fast-val": True, "loss-norm": True, "monitor": True, "oom-guard": True, "sync-bn": True,
            "torchrun": True, "val-batch": True,
        }  # fmt: skip
    else:
        assert seen["status"] not in (0, "hangs"), seen["log"][-4000:]
        assert seen["last.pt"] in (True, False)  # never half a file


def test_a_patch_of_ours_that_fails_on_one_rank(environment, digits, tmp_path):
    """Before the first step both ranks drop it and train on; in the middle of the training all end by one message."""
    broken = """
import os
from yolo_patches.patches.loss_norm import LossNorm
prove, average = LossNorm.prove, LossNorm._average
def broken(self, *args):
    if os.environ["RANK"] == "1":
        raise RuntimeError("only here")
    return {where}(self, *args)
LossNorm.{name} = broken
"""
    for where, name in (("prove", "prove"), ("average", "_average")):
        folder = tmp_path / where
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(broken.format(where=where, name=name))
        # Ranks from their start: those that begin elsewhere do not look for sitecustomize.
        variables = {**environment, "PYTHONPATH": str(folder), "PYTHON_EXEC": sys.executable}
        seen = inject(digits(), folder, "all", "", "", 0, epochs=1, environment=variables)
        if where == "prove":
            assert seen["status"] == 0, seen["log"][-4000:]
            plan = json.loads((folder / "run" / "patches.json").read_text())
            found = next(item for item in plan["patches"] if item["name"] == "loss-norm")
            assert found["status"] == "failed"
            assert "dropped on rank 1" in found["reason"]
            assert "only here" in found["reason"]
        else:
            assert seen["status"] not in (0, "hangs"), seen["log"][-4000:]
            assert "loss-norm failed on this rank alone" in seen["log"]
            assert "patches=all,-loss-norm" in seen["log"]
