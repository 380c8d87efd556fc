"""Every training script, on real images: to the end, with what the patches promise, beside upstream alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import entry
from tests.scripts.conftest import arguments

SCRIPTS9 = {
    "train_dual.py": ("dual", "detect"),
    "train.py": ("single", "detect"),
    "train_triple.py": ("triple", "detect"),
    "segment/train.py": ("segment", "segment"),
    "segment/train_dual.py": ("dual-segment", "segment"),
    "panoptic/train.py": ("panoptic", "panoptic"),
}
SCRIPTS5 = {"train.py": ("v5-detect", "detect"), "segment/train.py": ("v5-segment", "segment")}
#: A stand-in for setuptools 80, so that upstream alone comes as far as its next failure.
OLD_SETUPTOOLS = "from packaging.version import parse as parse_version\n"


def plan(folder):
    return json.loads((Path(folder) / "patches.json").read_text())


def check(run, seen, name, task):
    """Check one finished training's run directory, its plan, and what was seen of its loaders."""
    assert (run / "weights" / "best.pt").is_file()
    written = plan(run)
    assert (written["upstream"]["name"], written["global_batch"], written["world_size"]) == (name, 4, 1)
    assert written["selection"] == "all"
    status = {item["name"]: (item["status"], item["verified"]) for item in written["patches"]}
    assert status["val-batch"] == status["compat"] == ("active", True)
    # Segment and panoptic losses divide by a sum that may be zero; elsewhere one rank leaves nothing to normalise.
    unfloored = name == "yolov9" and task != "detect"
    assert status["loss-norm"] == (("active", True) if unfloored else ("inert", None))
    assert {status[patch] for patch in ("linear-lr", "sync-bn", "torchrun")} == {("inert", None)}
    assert entry(written)["changes"] == [{"what": "val batch per rank", "upstream": 8, "patched": 4}]
    assert {change["what"] for change in entry(written, "compat")["changes"]} >= {"pkg_resources", "torch.load"}
    assert seen["loaders"] == [[True, 16, 4], [False, 12, 4]]
    assert set(seen["validations"]) == {4}
    assert seen["load"] is True, "torch.load itself is nobody's to replace"


@pytest.mark.parametrize(("name", "plots"), [(name, name == "train_dual.py") for name in SCRIPTS9])
def test_yolov9(script, python, yolov9, models, data, tmp_path, name, plots):
    model, task = SCRIPTS9[name]
    words = arguments(models / f"{model}.yaml", data(task), models / "hyp9.yaml", tmp_path)
    words += ("--patches", "all", *(() if plots else ("--noplots",)))
    done, seen = script(yolov9, name, *words, observed=True)
    check(tmp_path / "run", seen, "yolov9", task)
    # panoptic/train.py validates in its last epochs only, where its run is longer than twice --close-mosaic.
    assert len(seen["validations"]) == (1 if task == "panoptic" else 2)
    log = done.stdout + done.stderr
    assert log.count("yolo-patches 0.") == 1
    assert "Traceback" not in log
    assert "FutureWarning" not in log
    assert "--patches" not in (tmp_path / "run" / "opt.yaml").read_text()
    if plots:  # the checkpoint is upstream's own: it loads where yolo-patches cannot be imported
        (tmp_path / "pkg_resources.py").write_text(OLD_SETUPTOOLS)
        code = "import sys, torch; print(type(torch.load(sys.argv[1], weights_only=False)['model']))"
        best = tmp_path / "run" / "weights" / "best.pt"
        loaded = python("-c", code, best, absent=True, PYTHONPATH=f"{yolov9}:{tmp_path}")
        assert "models.yolo.DetectionModel" in loaded.stdout


@pytest.mark.parametrize("name", SCRIPTS5)
def test_yolov5(script, yolov5, models, data, tmp_path, name):
    model, task = SCRIPTS5[name]
    words = arguments(models / f"{model}.yaml", data(task), models / "hyp5.yaml", tmp_path)
    done, seen = script(yolov5, name, *words, "--patches=all", "--noplots", observed=True)
    check(tmp_path / "run", seen, "yolov5", task)
    assert "Traceback" not in done.stdout + done.stderr


def test_yolov5_package(script, package5, models, data, tmp_path):
    words = arguments(models / "v5-detect.yaml", data("detect"), models / "hyp5.yaml", tmp_path)
    script(package5, "-m", "yolov5.train", *words, "--noplots", "--patches", "all", PYTHONPATH=str(package5))
    assert plan(tmp_path / "run")["upstream"] == {"name": "yolov5", "version": "7.0.14"}
    assert entry(plan(tmp_path / "run"))["verified"] is True
