"""Scripts that run out of memory in a step and in a validation, against the same scripts that do not."""

from __future__ import annotations

import pytest

from tests.conftest import entry
from tests.scripts.conftest import arguments, plan, run, statuses

#: BatchNorm frozen, so that parts have the gradient of the whole; what has more images than the limit fails.
BEFORE = """
import torch
from torch import nn

nn.BatchNorm2d.training = property(lambda self: False, lambda self, value: None)
for handle in getattr(nn, "handles", ()):
    handle.remove()
run["fired"] = []

def fail(where):
    run["fired"].append(where)
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.50 GiB.")

def called(module, args, output):
    if type(module) is not nn.Conv2d:
        return
    if not torch.is_grad_enabled():
        if run["limits"].get("prediction", 99) < len(output) and len(output) != 3:  # the probe's
            fail("prediction")
    elif len(output) > run["limits"].get("forward", 99):
        fail("forward")
    elif len(output) > run["limits"].get("backward", 99) and output.requires_grad:
        output.register_hook(lambda gradient: fail("backward"))

nn.handles = [nn.modules.module.register_module_forward_hook(called)]
"""
CASES = {"yolov9": ("train_dual.py", "dual", "hyp9.yaml"), "yolov5": ("train.py", "v5-detect", "hyp5.yaml")}


@pytest.mark.parametrize("name", CASES)
def test_a_script_ends_as_without_failures(name, request, drive, models, data, tmp_path):
    root = request.getfixturevalue(name)
    script, model, hyp = CASES[name]
    limits = {"plain": {}, "quiet": {}, "forward": {"forward": 2, "prediction": 4}, "backward": {"backward": 2}}
    runs = [
        run(
            case,
            root,
            script,
            (*arguments(models / f"{model}.yaml", data("detect"), models / hyp, tmp_path, name=case), "--noplots"),
            "compat" if case == "plain" else "compat,oom-guard",
            before=BEFORE,
            limits=given,
        )
        for case, given in limits.items()
    ]
    done = drive(runs)
    for case, seen in done.items():
        assert "error" not in seen, (case, seen["error"], seen["log"][-3000:])
        assert set(seen["fired"]) == set(limits[case])
        assert seen["left"] == [] and "did not take effect" not in seen["log"]
        assert seen["norms"] == pytest.approx(done["plain"]["norms"], rel=1e-4)
        assert case == "plain" or statuses(tmp_path / case)["oom-guard"] == ("active", True)
    assert done["quiet"]["digest"] == done["plain"]["digest"]
    assert done["quiet"]["norms"] == done["plain"]["norms"]
    for case in ("forward", "backward"):
        notes = entry(plan(tmp_path / case), "oom-guard")["notes"]
        assert sum("parts of at most 2" in note for note in notes) == 1, notes
    assert "it predicts at most 4 images at a time" in done["forward"]["log"]
