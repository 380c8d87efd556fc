"""Every training script, on real images: to the end, with what the patches promise, beside upstream alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import entry, last_json
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


def test_yolov9_package(script, package9, models, data, tmp_path):
    words = arguments(models / "dual.yaml", data("detect"), models / "hyp9.yaml", tmp_path)
    script(package9, "-m", "yolov9.train_dual", *words, "--noplots", "--patches", "all", PYTHONPATH=str(package9))
    assert plan(tmp_path / "run")["upstream"]["name"] == "yolov9"
    for name in ("val-batch", "compat"):
        assert entry(plan(tmp_path / "run"), name)["verified"] is True


def test_yolov5_package(script, package5, models, data, tmp_path):
    words = arguments(models / "v5-detect.yaml", data("detect"), models / "hyp5.yaml", tmp_path)
    script(package5, "-m", "yolov5.train", *words, "--noplots", "--patches", "all", PYTHONPATH=str(package5))
    assert plan(tmp_path / "run")["upstream"] == {"name": "yolov5", "version": "7.0.14"}
    assert entry(plan(tmp_path / "run"))["verified"] is True


#: Stops a training after three optimizer steps; prints the gradient's norms before the clip, and the learning rates.
THREE_STEPS = """
import json, runpy, sys
import torch
clip, seen = torch.nn.utils.clip_grad_norm_, {"norms": [], "rates": []}
def record(parameters, max_norm):
    norm = clip(parameters, max_norm)
    seen["norms"].append(float(norm))
    return norm
torch.nn.utils.clip_grad_norm_ = record
step = torch.optim.SGD.step
def stepped(self, *args, **kwargs):
    seen["rates"].append([self.param_groups[1]["lr"], self.param_groups[1]["weight_decay"]])
    if len(seen["rates"]) == 3:
        print(json.dumps(seen), flush=True)
        raise SystemExit
    return step(self, *args, **kwargs)
torch.optim.SGD.step = stepped
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize(("name", "model", "hyp"), [("train_dual.py", "dual", 9), ("train.py", "v5-detect", 5)])
def test_linear_lr(python, yolov9, yolov5, models, data, tmp_path, name, model, hyp):
    """At twice the base batch: half the gradient before the clip, twice the rate, twice the warm-up."""
    root = yolov9 if hyp == 9 else yolov5
    words = arguments(models / f"{model}.yaml", data("detect"), models / f"hyp{hyp}.yaml", tmp_path, epochs=80)
    code = ("-c", THREE_STEPS, root / name, *words, "--noplots", "--patches")
    alone, patched = (
        last_json(python(*code, spec, PYTHONPATH=str(root))) for spec in ("compat", "compat,linear-lr:base_batch=32")
    )
    assert patched["norms"][0] == pytest.approx(alone["norms"][0] / 2, rel=1e-4)
    # 0.01 / 100 an iteration, and 0.02 / 200.
    assert [rate for rate, _ in alone["rates"]] == pytest.approx([0, 1e-4, 2e-4])
    assert [rate for rate, _ in patched["rates"]] == pytest.approx([0, 1e-4, 2e-4])
    assert {decay for _, decay in alone["rates"]} == {0.0005}
    assert {decay for _, decay in patched["rates"]} == {0.00025}
    changes = {change["what"]: change["patched"] for change in entry(plan(tmp_path / "run"), "linear-lr")["changes"]}
    assert changes == {
        "lr0": 0.02, "weight decay": 0.00025, "gradient before the clip": "x0.5", "warm-up iterations": 200
    }  # fmt: skip
    assert "warmup_epochs: 3.0" in (tmp_path / "run" / "hyp.yaml").read_text()
