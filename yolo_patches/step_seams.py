"""Seams of a training step: the targets of its loss, the rates of its warm-up, how many batches make one."""

from __future__ import annotations

from collections.abc import Callable
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


def untold() -> bool | None:
    """Return nothing: it cannot be told."""
    return None


@dataclass
class Accumulation(Seam):
    """Upstream has computed how many micro-steps it adds up to one optimizer step; comes again for another batch.

    Where it is replaced, so is what upstream derives from it: the ramp of its warm-up, the weight decay, which it
    multiplies by effective batch / nbs, and the optimizer steps by which `optimizer=auto` chooses. nbs stays.

    Attributes:
        batch: The global batch.
        accumulate: Micro-steps of an optimizer step once the run is warm; a patch may replace it.
        micro_steps: Of the whole training, which is the most that can be added up; 0 where they are not known.
        carried: Returns whether an accumulation that the end of an epoch cuts off goes on in the next epoch. False:
            its gradients are dropped, and its batches count all the same. None: it cannot be told.
    """

    batch: int
    accumulate: int
    micro_steps: int = 0
    carried: Callable[[], bool | None] = untold


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
