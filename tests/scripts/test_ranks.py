"""Two ranks train to the end under the defaults, whatever rank 0 does on its own account between two steps."""

from __future__ import annotations

import pytest

from tests.conftest import ROOT
from tests.scripts.conftest import arguments, plan, statuses

RANK = ROOT / "tests" / "scripts" / "cpu_rank.py"
#: By upstream's defaults rank 0 traces the training-mode model for TensorBoard after the first batch; in the second
#: run it also calls it in every callback. Scripts for masks have their callbacks commented out.
RUNS = {
    "yolov9": {
        "as it is": ("train", "single", "detect", "compat,default", False),
        "meddled with": ("train", "single", "detect", "compat,default", True),
        "dual": ("train_dual", "dual", "detect", "all,linear-lr:base_batch=32", False),
        "masks": ("segment.train", "segment", "segment", "all", False),
        "panoptic": ("panoptic.train", "panoptic", "panoptic", "all", False),
    },
    "yolov5": {
        "as it is": ("train", "v5-detect", "detect", "compat,default", False),
        "meddled with": ("train", "v5-detect", "detect", "compat,default", True),
        "masks": ("segment.train", "v5-segment", "segment", "all,linear-lr:base_batch=32", False),
    },
}


@pytest.mark.parametrize("name", list(RUNS))
def test_two_ranks_train_on(name, ranks, yolov9, yolov5, models, data, tmp_path):
    root, hyp = {"yolov9": (yolov9, "hyp9.yaml"), "yolov5": (yolov5, "hyp5.yaml")}[name]
    runs = []
    for what, (module, model, task, patches, meddles) in RUNS[name].items():
        words = arguments(models / f"{model}.yaml", data(task), models / hyp, tmp_path, what.replace(" ", "-"), batch=2)
        plots = "default" in patches  # rank 0 traces the model where it plots
        runs.append([what, module, patches, [*map(str, words), *([] if plots else ["--noplots"])], meddles])
    first, second = ranks(root, runs, RANK)
    for what, (_, _, _, patches, meddles) in RUNS[name].items():
        folder = tmp_path / what.replace(" ", "-")
        assert (folder / "weights" / "best.pt").is_file()
        assert first[what]["digest"] == second[what]["digest"], f"{what}: ranks have gone apart"
        assert first[what]["passes"] == second[what]["passes"] > 0
        assert first[what]["calls"] >= (8 if meddles else 0), "one between any two steps, most of which clip nothing"
        found = statuses(folder)
        assert plan(folder)["world_size"] == 2
        for patch in ("sync-bn", "loss-norm", "val-batch", *(["linear-lr"] if "linear-lr" in patches else [])):
            assert found[patch] == ("active", True), (what, patch)
    assert first["as it is"]["digest"] == first["meddled with"]["digest"]
