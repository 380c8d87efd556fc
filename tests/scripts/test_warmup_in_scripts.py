"""warmup in checkouts: every step of the scripts is made at the formula's rates and momentum."""

from __future__ import annotations

import pytest

from tests.conftest import entry
from tests.scripts.conftest import arguments, plan, run

#: Notes what each step is made with.
RECORD = """
from torch.optim.optimizer import register_optimizer_step_pre_hook
def record(optimizer, args, kwargs):
    run.setdefault("made", []).append([[float(g["lr"]), float(g["momentum"]), g["initial_lr"]]
                                       for g in optimizer.param_groups])
hook = register_optimizer_step_pre_hook(record)
"""


def test_every_step_is_the_formulas(drive, yolov9, models, data, tmp_path):
    """16 images, 4 a batch, 2 epochs: 8 iterations, of which half are warm-up, where upstream makes 100 at least."""
    spec = "compat,warmup:share=0.5:shape=exponential"
    words = (
        *arguments(models / "dual.yaml", data("detect"), models / "hyp9.yaml", tmp_path, "w", epochs=2),
        "--noplots",
    )
    done = drive([run("w", yolov9, "train_dual.py", words, spec, before=RECORD)])["w"]
    assert "error" not in done, done["log"][-3000:]
    state = entry(plan(tmp_path / "w"), "warmup")
    assert (state["status"], state["verified"]) == ("active", True), state
    assert {"what": "warm-up iterations", "upstream": 100, "patched": 4} in state["changes"]
    decay = [1.0] * 4 + [(1 - 1 / 2) * (1 - 0.01) + 0.01] * 4  # of each epoch's iterations, lrf=0.01
    steps = [
        0,
        1,
        2,
        3,
        5,
        7,
    ]  # the scripts accumulate by their own, longer warm-up: what it is they keep to themselves
    assert len(done["made"]) == len(steps)
    for iteration, groups in zip(steps, done["made"]):
        passed = 1.0 if iteration >= 4 else 10 ** (iteration / 4 - 1)
        for number, (rate, momentum, initial) in enumerate(groups):
            start, target = 0.1 if number == 0 else 0.0, initial * decay[iteration]
            assert rate == pytest.approx(start + (target - start) * passed), (iteration, number)
            assert momentum == pytest.approx(0.8 + (0.937 - 0.8) * passed)
