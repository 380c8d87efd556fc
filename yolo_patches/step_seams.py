"""Seams within a training step: the targets of its loss, and the rates at which it will be made in the warm-up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from yolo_patches.seams import Seam


@dataclass
class TargetScores(Seam):
    """An assigner has given predictions their targets, in a step that every rank makes; losses and sums come of them.

    Attributes:
        values: Target scores [images, anchors, classes], zero where there is no object; a patch may replace them.
    """

    values: Any


@dataclass(frozen=True)
class Ramp:
    """What upstream takes a value through in its warm-up: from `start` to `target`, evenly."""

    start: float
    target: float

    def at(self, share: float) -> float:
        """Return the value at a share of the way, from 0 to 1."""
        return self.start + (self.target - self.start) * share


@dataclass
class WarmUpStep(Seam):
    """Upstream has just set this iteration's rates, by its warm-up; the forward pass comes next, or the step.

    Attributes:
        optimizer: A torch optimizer; a patch may change "lr" and "momentum" of its groups.
        iteration: Number of the iteration, from 0.
        length: Iterations of the warm-up as `WarmUp` has settled them; upstream's own may be longer (`WarmUp.least`).
        rates: What each group's learning rate is taken through.
        momentum: What momentum is taken through, in the groups that have it.
        accumulate: Micro-steps to an optimizer step; a patch may replace it. None where it cannot be replaced.
        warm_accumulate: The same once upstream is warm.
        strange: Why upstream's warm-up is not what we know; empty where it is. Then `rates` is empty.
    """

    optimizer: Any
    iteration: int
    length: int
    rates: tuple[Ramp, ...]
    momentum: Ramp
    accumulate: float | None = None
    warm_accumulate: int = 1
    strange: str = ""
