"""The flag, the environment variable, and the yolo-patches command, in a checkout."""

from __future__ import annotations

import json

import pytest

from tests.conftest import entry, last_json
from tests.scripts.conftest import arguments
from tests.scripts.test_training import plan

DOCTOR = ("-m", "yolo_patches", "doctor")


@pytest.mark.parametrize(
    ("words", "variable", "message"),
    [
        (("--patches", "val-bach"), None, "argument --patches: unknown patch 'val-bach' in 'val-bach' (did you mean"),
        (("--patches=val-batch:batch=0",), None, "'0' is not valid for val-batch:batch; it must be an int of at least"),
        (("--patches", "--epochs", "1"), None, "argument --patches: expected one argument"),
        ((), "compat:size=1", "YOLO_PATCHES: unknown option 'size'"),
    ],
)
def test_bad_input_is_one_message_before_anything_is_made(script, yolov9, tmp_path, words, variable, message):
    environment = {} if variable is None else {"YOLO_PATCHES": variable}
    done = script(yolov9, "train_dual.py", *words, "--project", tmp_path / "runs", check=False, **environment)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("train_dual.py: error: ")
    assert message in line
    assert not (tmp_path / "runs").exists()


def test_bad_input_of_upstream_stays_upstreams(script, yolov9):
    done = script(yolov9, "train_dual.py", "--patches", "all", "--nonsense", check=False)
    assert done.returncode == 2
    assert "train_dual.py: error: unrecognized arguments: --nonsense" in done.stderr
    assert "--patches" not in done.stderr.split("error:")[1]


def test_the_flag_beats_the_environment(python, yolov9, models, data, tmp_path):
    words = arguments(models / "dual.yaml", data("detect"), models / "hyp9.yaml", tmp_path)
    spec = ("--patches=val-batch", "--patches", "val-batch:batch=3")
    found = json.loads(python(*DOCTOR, "--json", yolov9 / "train_dual.py", *words, *spec, YOLO_PATCHES="all").stdout)
    assert found["selection"] == "val-batch:batch=3"
    assert entry(found)["changes"] == [{"what": "val batch per rank", "upstream": 8, "patched": 3}]
    assert not [path for path in tmp_path.iterdir() if path.name == "run"], "doctor makes nothing"


def test_doctor(python, yolov9, yolov5, models, data, tmp_path):
    words = arguments(models / "segment.yaml", data("segment"), models / "hyp9.yaml", tmp_path)
    ranks = {"WORLD_SIZE": "4", "YOLO_PATCHES": "all"}  # what a launcher would say
    done = python(*DOCTOR, yolov9 / "segment" / "train.py", *words, "--batch-size", 128, "--sync-bn", **ranks)
    assert "yolov9 checkout, batch 128, 4 ranks, patches=all" in done.stdout
    assert "val batch per rank 64 -> 32" in done.stdout
    assert "target score sum each rank's own -> mean of 4 ranks" in done.stdout
    assert "lr0 0.01 -> 0.02" in done.stdout
    assert "sync-bn: inert - --sync-bn was given: upstream converts the layers itself" in done.stdout
    words = arguments(models / "v5-detect.yaml", data("detect"), models / "hyp5.yaml", tmp_path)
    found = json.loads(python(*DOCTOR, "--json", yolov5 / "train.py", *words, "--patches", "all").stdout)
    assert (found["upstream"]["name"], found["global_batch"]) == ("yolov5", 4)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("train_dual.py", "--patches", "nope"), "argument --patches: unknown patch 'nope'"),
        (
            ("train_dual.py", "--data", "no.yaml"),
            "did not come as far as training: AssertionError: File not found: no.yaml",
        ),
        (("val_dual.py",), "is no training script; yolov9 has train_dual.py"),
        (("no.py",), "is no training script of yolov9 or yolov5"),
    ],
)
def test_bad_input_of_doctor(python, yolov9, words, message):
    script = yolov9 / words[0]
    done = python(*DOCTOR, script, *words[1:], check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert message in done.stderr


def test_list(python, yolov9, yolov5):
    code = "import os, runpy, sys; os.chdir(sys.argv.pop(1)); runpy.run_module('yolo_patches', run_name='__main__')"
    for root, name in ((yolov9, "yolov9"), (yolov5, "yolov5")):
        rows = json.loads(python("-c", code, root, "list", "--json").stdout)
        assert rows["upstreams"][name] == "checkout"
        for row in rows["patches"]:
            # Scripts take their ranks from the launcher, and their optimizer from the command line.
            assert row["status"][name] == "available", row["name"]


def test_run_without_the_start_up_hook(python, yolov9, models, data, tmp_path):
    words = arguments(models / "single.yaml", data("detect"), models / "hyp9.yaml", tmp_path)
    run = ("-m", "yolo_patches", "run", "--patches", "all")
    python(*run, yolov9 / "train.py", *words, "--noplots", "--noval", hook=False)
    assert entry(plan(tmp_path / "run"))["verified"] is True


REVERT = """
import inspect, json, sys
import yolo_patches
from yolo_patches.activation import activation
import val_dual, segment.val
from utils import autobatch, dataloaders, general, loss_tal, loss_tal_dual, plots, torch_utils
from utils.segment import dataloaders, loss_tal as segment_loss
finders = len(sys.meta_path)
handles = [h for w in activation._wrappings.values() for h in w._handles]
wrapped = sorted({f"{owner.__name__}.{name}" for owner, name, _, _ in handles})
same = all(inspect.signature(w) == inspect.signature(o) for _, _, o, w in handles if inspect.isfunction(o))
yolo_patches.revert()
restored = all(vars(owner)[name] is original for owner, name, original, _ in handles)
print(json.dumps([wrapped, same, restored, finders - len(sys.meta_path)]))
"""


def test_signatures_and_revert(python, yolov9):
    wrapped, same, restored, finders = last_json(python("-c", REVERT, YOLO_PATCHES="all", PYTHONPATH=str(yolov9)))
    for name in ("utils.torch_utils.select_device", "utils.dataloaders.create_dataloader", "utils.general.torch",
                 "utils.metrics.np", "utils.plots.check_pil_font", "ComputeLoss.__call__",
                 "utils.torch_utils.smart_optimizer", "TaskAlignedAssigner.forward"):  # fmt: skip
        assert name in wrapped
    assert same
    assert restored
    assert finders == 1
