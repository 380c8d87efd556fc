"""What today's stack has taken from YOLOv9 and YOLOv5: failing without compat, working with it, for them alone."""

from __future__ import annotations

import shutil

import pytest

from tests.conftest import last_json
from tests.scripts.conftest import arguments
from tests.scripts.test_training import OLD_SETUPTOOLS, plan


def test_upstream_alone(script, yolov9, models, data, tmp_path):
    """It does not start; with an older setuptools, it dies after the last epoch, and its plots are lost."""
    words = arguments(models / "dual.yaml", data("detect"), models / "hyp9.yaml", tmp_path)
    done = script(yolov9, "train_dual.py", *words, YOLO_PATCHES="none", check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "ModuleNotFoundError: No module named 'pkg_resources'"
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "pkg_resources.py").write_text(OLD_SETUPTOOLS)
    old = {"PYTHONPATH": str(tmp_path / "old"), "YOLO_PATCHES": "all,-compat"}
    done, seen = script(yolov9, "train_dual.py", *words, **old, check=False, observed=True)
    assert done.returncode == 1
    assert "UnpicklingError: Weights only load failed" in done.stderr
    assert "in strip_optimizer" in done.stderr
    assert "AttributeError: 'FreeTypeFont' object has no attribute 'getsize'" in done.stderr
    assert "FutureWarning: `torch.cuda.amp" in done.stderr
    # The other patches act without it, and say what came of the run so far.
    assert seen["loaders"] == [[True, 16, 4], [False, 12, 4]]
    assert seen["validations"] == [4]
    assert plan(tmp_path / "run")["selection"] == "all,-compat"


LIBRARIES = """
import json, sys
import numpy, torch
load, trapz, modules = torch.load, hasattr(numpy, "trapz"), set(sys.modules)
from {root}utils import general, metrics
found = {{}}
try:
    found["ap"] = metrics.compute_ap([0.1, 0.9], [0.9, 0.5])[0]
except AttributeError as error:
    found["ap"] = str(error)
found["untouched"] = [torch.load is load, hasattr(numpy, "trapz") is trapz, "pkg_resources" not in sys.modules]
print(json.dumps(found))
"""


@pytest.mark.parametrize("layout", ["yolov9", "yolov5", "package"])
def test_libraries_are_replaced_in_upstream_alone(python, layout, yolov9, yolov5, package5, tmp_path):
    home = {"yolov9": yolov9, "yolov5": yolov5, "package": package5}[layout]
    code = LIBRARIES.format(root="yolov5." if layout == "package" else "")
    found = last_json(python("-c", code, YOLO_PATCHES="all", PYTHONPATH=str(home)))
    assert found == {"ap": pytest.approx(0.5, abs=0.5), "untouched": [True, True, True]}
    if layout == "package":  # the same source as the checkout
        return
    (tmp_path / "pkg_resources.py").write_text(OLD_SETUPTOOLS)
    bare = python("-c", code, YOLO_PATCHES="none", PYTHONPATH=f"{home}:{tmp_path}")
    assert "has no attribute 'trapz'" in last_json(bare)["ap"]


LOADING = """
import json, pickle, sys, torch
from models.experimental import attempt_load
from models.yolo import Model
torch.save({"model": Model(sys.argv[1], ch=3, nc=10), "ema": None}, "mine.pt")
torch.save({"model": Model(sys.argv[1], ch=3, nc=10), "ema": None}, "other.pt")
result = {}
for name in ("mine.pt", "other.pt", "sub/../mine.pt"):
    try:
        result[name] = type(attempt_load(name)).__name__
    except pickle.UnpicklingError:
        result[name] = "refused"
print(json.dumps(result))
"""


def test_only_files_that_the_user_named_are_unpickled(python, yolov9, models, tmp_path):
    (tmp_path / "sub").mkdir()
    words = ("-c", LOADING, models / "single.yaml", "--weights", "mine.pt")
    found = last_json(python(*words, YOLO_PATCHES="compat", PYTHONPATH=str(yolov9)))
    assert found == {"mine.pt": "DetectionModel", "other.pt": "refused", "sub/../mine.pt": "DetectionModel"}


def test_resume(script, yolov9, models, data, tmp_path):
    """From weights/last.pt, with another selection: values of the checkpoint do not stand against this run's."""
    words = arguments(models / "single.yaml", data("detect"), models / "hyp9.yaml", tmp_path)
    script(yolov9, "train.py", *words, "--noplots", "--patches", "compat,val-batch:batch=3")
    run = tmp_path / "run"
    options = (run / "opt.yaml").read_text()
    (run / "opt.yaml").write_text(options.replace("epochs: 1\n", "epochs: 2\n"))
    # train.py strips into another file: last.pt still has its optimizer.
    selection = "compat,linear-lr:base_batch=32"
    done = script(yolov9, "train.py", "--resume", run / "weights" / "last.pt", "--patches", selection)
    assert "Resuming training from" in done.stderr + done.stdout
    assert plan(run)["selection"] == selection
    linear = next(item for item in plan(run)["patches"] if item["name"] == "linear-lr")
    assert (linear["status"], linear["verified"]) == ("active", True)


def test_a_project_that_only_looks_alike_is_untouched(python, yolov9, tmp_path):
    """Same module names, same files beside it but one: nothing is wrapped, and its flag stays its own."""
    for name in ("utils/dataloaders.py", "utils/general.py", "utils/torch_utils.py", "models/yolo.py", "train_dual.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("import torch\nimport numpy as np\ndef create_dataloader(): ...\n")
    (tmp_path / "utils" / "__init__.py").write_text("")
    (tmp_path / "models" / "__init__.py").write_text("")
    (tmp_path / "train.py").write_text(
        "import json, sys, types, torch, numpy\n"
        "from utils import dataloaders, general, torch_utils\nfrom models import yolo\n"
        "same = [m.torch is torch and m.np is numpy for m in (dataloaders, general, torch_utils, yolo)]\n"
        "plain = type(dataloaders.create_dataloader) is types.FunctionType\n"
        "builtin = type(torch.load) is types.FunctionType and torch.load.__module__ == 'torch.serialization'\n"
        "print(json.dumps([*same, plain, builtin, sys.argv[1:], 'wrapt' in sys.modules]))\n"
    )
    found = last_json(python(tmp_path / "train.py", "--patches", "all", YOLO_PATCHES="all"))
    assert found == [True] * 6 + [["--patches", "all"], False]
    # What makes the difference is content: with these files it is a checkout, whatever its name.
    for name in ("utils/loss_tal_dual.py", "utils/tal/assigner.py", "utils/torch_utils.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(yolov9 / name, tmp_path / name)
    code = "from yolo_patches.upstreams.scripts.recognition import find; print(find('.'))"
    assert python("-c", code).stdout.strip() == "yolov9"
