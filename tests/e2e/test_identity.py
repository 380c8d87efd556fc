"""`patches=none`, and defaults with nothing to do, are upstream to the last bit; so are weights under val-batch."""

from __future__ import annotations

import json

import pytest

from tests.conftest import NEWEST, OLDEST, ROOT, last_json

SCRIPT = ROOT / "tests" / "e2e" / "train.py"


def trained(python, jobs, **how):
    return last_json(python(SCRIPT, *map(json.dumps, jobs), **how))


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_bit_identity(version, release, digits, python, tmp_path):
    def job(task, name, **more):
        model = {"detect": "yolov8n.yaml", "obb": "yolov8n-obb.yaml"}[task]
        common = {"epochs": 2, "batch": 8, "deterministic": True, "project": str(tmp_path / name)}
        return {"model": model, "data": digits(task), "seed": 3, **common, **more}

    where = release(version)
    upstream = trained(python, [job("detect", "u"), job("obb", "u"), job("detect", "u", seed=4)], absent=True, **where)
    ours = trained(python, [job("detect", "o", patches="none"), job("obb", "o"), job("detect", "o")], **where)
    assert [run["loaded"] for run in upstream] == [False] * 3
    assert [run["loaded"] for run in ours] == [True] * 3
    detect, obb, other_seed = upstream
    none, inert, default = ours
    for seen, expected in ((none, detect), (inert, obb)):
        for what in ("model", "ema", "metrics", "val"):
            assert seen[what] == expected[what], what
    # val-batch is active in the last one: another validation batch, the same weights.
    assert (default["model"], default["ema"]) == (detect["model"], detect["ema"])
    assert (default["val"], detect["val"]) == ([8] * 3, [12] * 3)  # upstream's 16, but 12 images are all there are
    assert other_seed["model"] != detect["model"]  # so the comparison can fail
