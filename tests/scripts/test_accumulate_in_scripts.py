"""accumulate in checkouts: the steps of the scripts are made of as many batches as upstream's rule has for them."""

from __future__ import annotations

import numpy
import pytest

from tests.conftest import entry
from tests.scripts.conftest import arguments, plan, run

#: Notes of each step its iteration, how many batches' gradients there are, and the weight decay.
RECORD = """
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook
own = torch.Tensor.backward, torch.optim.Optimizer.zero_grad, []
backward, zero_grad, hooks = vars(torch).setdefault("_own", own)
made, state = run.setdefault("made", []), {"iteration": -1, "batches": 0}
def counted(self, *args, **kwargs):
    state["iteration"] += 1
    state["batches"] += 1
    return backward(self, *args, **kwargs)
def zeroed(self, *args, **kwargs):
    state["batches"] = 0
    return zero_grad(self, *args, **kwargs)
def step(optimizer, args, kwargs):
    made.append([state["iteration"], state["batches"], max(g["weight_decay"] for g in optimizer.param_groups)])
torch.Tensor.backward, torch.optim.Optimizer.zero_grad = counted, zeroed
while hooks:  # of the script before this one
    hooks.pop().remove()
hooks.append(register_optimizer_step_pre_hook(step))
"""
EPOCHS, BATCHES = 7, 16  # of one image each: upstream warms up for 100 iterations at least


def by_the_rule(times):
    """Return the iterations of steps and their batches, by upstream's rule with another number of them."""
    steps, last, since = [], -1, 0
    for iteration in range(EPOCHS * BATCHES):
        since = 1 if iteration % BATCHES == 0 else since + 1  # the scripts zero gradients before each epoch
        wanted = max(1, numpy.interp(iteration, [0, 100], [1, times]).round()) if iteration <= 100 else times
        if iteration - last >= wanted:
            steps.append([iteration, since])
            last, since = iteration, 0
    return steps


def test_steps_are_made_by_the_scripts_rule(drive, yolov9, yolov5, models, data, tmp_path):
    def words(model, hyp, name):
        return (
            *arguments(models / model, data("detect"), models / hyp, tmp_path, name, epochs=EPOCHS, batch=1),
            "--noplots", "--nosave", "--optimizer", "SGD",
        )  # fmt: skip

    spec = "compat,accumulate:effective=3"
    done = drive(
        [
            run(
                "v9", yolov9, "train_dual.py", (*words("dual.yaml", "hyp9.yaml", "v9"), "--noval"), spec, before=RECORD
            ),
            run("v5", yolov5, "train.py", words("v5-detect.yaml", "hyp5.yaml", "v5"), spec, before=RECORD),
        ]
    )
    for name in ("v9", "v5"):
        seen = done[name]
        assert "error" not in seen, (seen["error"], seen["log"][-3000:])
        assert not seen["left"]
        assert [made[:2] for made in seen["made"]] == by_the_rule(3)
        assert all(made[2] == pytest.approx(0.0005 * 3 / 64) for made in seen["made"])
        mine = entry(plan(tmp_path / name), "accumulate")
        assert (mine["status"], mine["verified"]) == ("active", True), mine
        assert any("is dropped by upstream" in note for note in mine["notes"])
