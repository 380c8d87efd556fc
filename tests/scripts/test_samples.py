"""fast-load and feeding in checkouts: seeded trainings have the same weights, with loader workers and without."""

from __future__ import annotations

import json

import pytest
import yaml

from tests.conftest import ROOT
from tests.scripts.conftest import arguments, plan, run

#: The parts that stand in, in all cases together.
PARTS = {"canvas", "colours", "planes", "blend", "even polygons", "boxes around polygons", "masks", "separate masks"}


@pytest.mark.parametrize("upstream", ["yolov5", "yolov9"])
def test_the_same_samples(request, python, models, upstream):
    """Every byte, with mosaics, letterboxes, pastes, turns and odd images; nothing has failed or differed."""
    root, published = request.getfixturevalue(upstream), models / f"hyp{upstream[-1]}.yaml"
    words = ("--compare", 20, "--images", 6, "--imgsz", 96)
    lines = python(ROOT / "benchmarks/script_loading.py", root, published, *words).stdout.splitlines()
    cases = [json.loads(line) for line in lines if line.startswith("{")]
    assert len(cases) == 14
    for case in cases:
        assert (case["different"], case["trouble"]) == ([], []), case
    assert {name for case in cases for name, times in case["stood in"].items() if times} == PARTS


def test_the_same_training(drive, yolov9, yolov5, models, data, tmp_path):
    """Two epochs of polygons that are pasted, mixed and resampled."""
    jobs = {
        "yolov9": (yolov9, "train.py", models / "single.yaml", "hyp9.yaml", 1),
        "yolov5": (yolov5, "segment/train.py", models / "v5-segment.yaml", "hyp5.yaml", 0),
    }
    for upstream, (root, script, model, published, workers) in jobs.items():
        hyp = {**yaml.safe_load((models / published).read_text()), "copy_paste": 0.6, "mixup": 0.6, "lr0": 0.1}
        (tmp_path / published).write_text(yaml.safe_dump(hyp))
        runs = []
        for spec in ("compat", "compat,fast-load,feeding"):
            name = f"{upstream} {spec}"
            words = arguments(model, data("segment"), tmp_path / published, tmp_path, name, epochs=2)
            words = (
                *words,
                "--workers",
                workers,
                *(("--noplots", "--noval") if upstream == "yolov9" else ("--noval",)),
            )
            runs.append(run(name, root, script, words, spec))
        theirs, ours = drive(runs).values()
        for done in (theirs, ours):
            assert "error" not in done, done["log"][-3000:]
        assert ours["digest"] == theirs["digest"] and ours["left"] == []
        items = {one["name"]: one for one in plan(tmp_path / runs[1]["name"])["patches"]}
        item = items["fast-load"]
        assert (item["status"], item["verified"]) == ("active", True), item
        assert "a mosaic painted where it is seen" in item["reason"]
        fed = items["feeding"]
        changes = [(one["what"], one["upstream"], one["patched"]) for one in fed["changes"]]
        memory = ("images of a batch", "in shared memory of its own", "in memory that batches use again")
        assert changes == ([("validation loader workers", 2, 1), memory] if workers else [])
        assert (fed["status"], fed["verified"]) == (("active", True) if workers else ("inert", None)), fed
