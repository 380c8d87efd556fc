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

from yolo_patches.nn.shards import Shard, Whole
from yolo_patches.upstreams import target_scores
from yolo_patches.upstreams.normaliser_calls import Listener, familiar, fire, listening, zero

Wrapped = Callable[..., Any]
Arguments = tuple[Any, ...]
Keywords = dict[str, Any]

#: The branches of the criterion call that is under way.
_branches: ContextVar[Optional[Branches]] = ContextVar("branches", default=None)


class Branches:
    """The target scores of one criterion call."""

    def __init__(self, listener: Listener) -> None:
        self.listener = listener
        self.ranks: float = 1
        self._open: list[_Branch] = []

    def add(self, own: Tensor) -> _Branch:
        """Take this rank's sum of one branch."""
        branch = _Branch(self, own)
        self._open.append(branch)
        return branch

    def settle(self) -> None:
        """Fire the sums of all branches that have none yet as one seam."""
        settled, self._open = self._open, []
        if not settled:
            return
        seam = fire(self.listener, settled[0].average, *(branch.average for branch in settled))
        self.ranks = seam.ranks
        for branch, mean in zip(settled, seam.values):
            branch.ranks = seam.ranks
            branch.average = mean if mean or not seam.instead else torch.full_like(mean, seam.instead / seam.ranks)


class _Branch(Whole):
    """What the whole batch has of one branch's target scores: this rank's own until somebody asks for it."""

    def __init__(self, branches: Branches, own: Tensor) -> None:
        super().__init__(own, ranks=1, together=False)
        self._branches = branches

    def known(self) -> Whole:
        """Let all branches that have been assigned come by one collective."""
        self._branches.settle()
        return self


def assign(wrapped: Wrapped, assigner: Any, args: Arguments, kwargs: Keywords) -> Any:
    """Return target scores whose sum is that of the whole batch.

    A result of another form is left alone, and counts as nothing in a collective that other ranks may make.
    """
    predicted = args[0] if args else kwargs.get("pd_scores")
    result, branches = target_scores.shown(wrapped(*args, **kwargs), predicted), _branches.get()
    if branches is None:
        return result
    if not familiar(result, predicted):
        branches.add(torch.zeros((), device=getattr(predicted, "device", None)))
        return result
    labels, boxes, scores, *rest = result
    return (labels, boxes, Shard.of(scores, branches.add(scores.sum())), *rest)


def compute(wrapped: Wrapped, criterion: Any, args: Arguments, kwargs: Keywords) -> Any:
    """Compute the losses of a criterion whose branches come from `assign`."""
    listener = listening()
    if listener is None:
        return wrapped(*args, **kwargs)
    branches = Branches(listener)
    token = _branches.set(branches)
    try:
        loss, items = wrapped(*args, **kwargs)
        branches.settle()  # of a criterion that has not asked: other ranks may have
    finally:
        _branches.reset(token)
    return (loss + zero(args[0] if args else kwargs["p"]) if branches.ranks > 1 else loss), items
