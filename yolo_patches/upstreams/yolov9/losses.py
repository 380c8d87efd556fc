"""YOLOv9's criteria: one normaliser a branch, all of a criterion call in one collective.

`TaskAlignedAssigner.forward` returns target scores whose sum normalises the losses of one branch; dual and triple heads
have two and three. The sums are taken when all branches are assigned, so the first one asked for settles them all.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Optional

import torch
from torch import Tensor

from yolo_patches.lifecycle import Run
from yolo_patches.nn.shards import Shard
from yolo_patches.upstreams.normaliser_calls import fire, listening, zero

Wrapped = Callable[..., Any]
Arguments = tuple[Any, ...]
Keywords = dict[str, Any]

#: The branches of the criterion call that is under way.
_branches: ContextVar[Optional[Branches]] = ContextVar("branches", default=None)


class _Scores(Shard):
    """Target scores of one branch, whose sum is that of the whole batch once somebody asks for it."""

    branches: Branches

    def sum(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the whole batch's sum; over given dimensions, this part's."""
        if not args and not kwargs:
            self.branches.settle()
        return super().sum(*args, **kwargs)


class Branches:
    """The target scores of one criterion call."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.ranks = 1
        self._open: list[_Scores] = []

    def add(self, scores: Tensor) -> Tensor:
        """Return the target scores of one branch, to be divided by the sum of the whole batch's."""
        shard = scores.as_subclass(_Scores)
        shard.truth = scores.sum()
        shard.branches = self
        self._open.append(shard)
        return shard

    def settle(self) -> None:
        """Fire the sums of all branches that have none yet as one seam."""
        if not self._open:
            return
        seam = fire(self.run, self._open[0].truth, *(shard.truth for shard in self._open))
        self.ranks = seam.ranks
        for shard, mean in zip(self._open, seam.values):
            shard.average = mean if mean or not seam.instead else torch.full_like(mean, seam.instead / seam.ranks)
            shard.ranks = seam.ranks
        self._open = []


def assign(wrapped: Wrapped, assigner: Any, args: Arguments, kwargs: Keywords) -> Any:
    """Return target scores whose sum is that of the whole batch."""
    labels, boxes, scores, *rest = wrapped(*args, **kwargs)
    branches = _branches.get()
    return (labels, boxes, scores if branches is None else branches.add(scores), *rest)


def compute(wrapped: Wrapped, criterion: Any, args: Arguments, kwargs: Keywords) -> Any:
    """Compute the losses of a criterion whose branches come from `assign`."""
    run = listening()
    if run is None:
        return wrapped(*args, **kwargs)
    branches = Branches(run)
    token = _branches.set(branches)
    try:
        loss, items = wrapped(*args, **kwargs)
    finally:
        _branches.reset(token)
    return (loss + zero(args[0] if args else kwargs["p"]) if branches.ranks > 1 else loss), items
