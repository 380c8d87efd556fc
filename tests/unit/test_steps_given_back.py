"""linear-lr on a plain optimizer: whose steps nobody announces are upstream's, rate by rate."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from yolo_patches import facts
from yolo_patches.patches.linear_lr import LinearLr
from yolo_patches.seams import Live, LossProof, OptimizerBuilt, OptimizerStep, WarmUp

#: Upstream's arguments, and a training of four epochs of three batches that warms up in the first half.
BIAS, LR0, EPOCHS, BATCHES, WARM = 0.1, 0.01, 4, 3, 6


def known(batch, ranks=1):
    optimization = facts.Optimization("SGD", LR0, epochs=EPOCHS)
    return facts.Facts(
        "ultralytics", "0", "detect", facts.Batch(batch), optimization=optimization, devices=facts.Devices(ranks)
    )


def build(batch, groups=(LR0, LR0, LR0)):
    """Return a patch and the optimizer that it has scaled; its first group has the biases."""
    patch = LinearLr(base_batch=64)
    patch.decide(known(batch))
    parameters = [torch.nn.Parameter(torch.ones(1)) for _ in groups]
    optimizer = torch.optim.SGD([{"params": [p], "lr": lr} for p, lr in zip(parameters, groups)], lr=LR0)
    patch.handlers()[OptimizerBuilt](OptimizerBuilt(optimizer, batch, 1, loss=lambda: LossProof(error=0.0, growth=2.0)))
    return patch, optimizer


def rates(patch, optimizer, announced=lambda step: False):
    """Return the rates of every step of a training, in upstream's words."""
    seen = []

    def lf(epoch):
        return (1 - epoch / EPOCHS) * 0.99 + 0.01

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lf)
    optimizer.register_step_pre_hook(lambda *_: seen.append([group["lr"] for group in optimizer.param_groups]))
    for epoch in range(EPOCHS):
        for i in range(BATCHES):
            ni = i + BATCHES * epoch
            if ni <= WARM:
                for j, x in enumerate(optimizer.param_groups):
                    x["lr"] = np.interp(ni, [0, WARM], [BIAS if j == 0 else 0.0, x["initial_lr"] * lf(epoch)])
            for group in optimizer.param_groups:
                group["params"][0].grad = torch.ones(1)
            if patch is not None and announced(ni):
                patch.handlers()[OptimizerStep](OptimizerStep(optimizer))
            optimizer.step()
        scheduler.step()
    return np.array(seen)


def upstream(groups=(LR0, LR0, LR0)):
    parameters = [{"params": [torch.nn.Parameter(torch.ones(1))], "lr": lr} for lr in groups]
    return rates(None, torch.optim.SGD(parameters, lr=LR0))


@pytest.mark.parametrize("batch", [32, 128, 512, 4096])
@pytest.mark.parametrize("groups", [(LR0, LR0, LR0), (LR0, 3 * LR0, 0.0)])
def test_every_step_that_nobody_announces_is_upstreams(batch, groups):
    """The bias group's warm-up starts from a rate that was never ours."""
    patch, optimizer = build(batch, groups)
    seen = rates(patch, optimizer)
    assert seen == pytest.approx(upstream(groups), rel=1e-12, abs=1e-15)
    assert seen[0][0] == BIAS
    assert patch.verify(Live(optimizer=optimizer)) is False
    assert "weight decay are upstream's again" in patch.trouble
    assert "warm-up" not in patch.trouble


def test_from_the_step_on_at_which_it_is_noticed():
    patch, optimizer = build(128)
    seen = rates(patch, optimizer, announced=lambda step: step < 2)
    assert seen[2:] == pytest.approx(upstream()[2:], rel=1e-12)
    assert seen[:2, 1] == pytest.approx(2 * upstream()[:2, 1])


def test_a_longer_warm_up_stays_and_that_is_said():
    """Upstream computes its length once. Ranks of which one has dropped the patch before must not go on like that."""
    patch, optimizer = build(128)
    assert patch.undo() is True
    patch, optimizer = build(128)
    seam = WarmUp(iterations=300, per_epoch=100, epochs=100)
    patch.handlers()[WarmUp](seam)
    assert seam.iterations == 500
    assert patch.undo() is False
    patch, optimizer = build(128)
    patch.handlers()[WarmUp](seam := WarmUp(iterations=300, per_epoch=100, epochs=100))
    rates(patch, optimizer)
    assert patch.verify(Live(optimizer=optimizer)) is False
    assert "the warm-up is as long as ours" in patch.trouble
