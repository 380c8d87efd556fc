"""The scripts' criteria: what they divide by comes to the seam, in one collective a criterion call.

`TaskAlignedAssigner.forward` returns target scores whose sum normalises the losses of one branch; dual and triple heads
have two and three. The sums are taken when all branches are assigned, so the first one asked for settles them all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextvars import ContextVar
from types import ModuleType
from typing import Any, Optional

import torch
from torch import Tensor

from yolo_patches.nn.normaliser import Shard
from yolo_patches.run import Run
from yolo_patches.runtime import runtime
from yolo_patches.seams import Normaliser
from yolo_patches.wrapping import Wrapping

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
        seam = fire(self.run, [shard.truth for shard in self._open])
        self.ranks = seam.ranks
        for shard, mean in zip(self._open, seam.values):
            shard.average = mean if mean or not seam.instead else torch.full_like(mean, seam.instead / seam.ranks)
            shard.ranks = seam.ranks
        self._open = []


def listening() -> Run | None:
    """Return the run whose training step is under way, if an active patch of it waits for normalisers."""
    run: Run | None = runtime.current
    return run if run is not None and torch.is_grad_enabled() and run.listens(Normaliser) else None


def fire(run: Run, values: list[Tensor]) -> Normaliser:
    """Fire one criterion call's normalisers, as one vector of the same type on every rank."""
    dtype = torch.promote_types(torch.get_default_dtype(), torch.float32)  # under AMP a rank without labels has half
    return run.fire(Normaliser(torch.stack([value.detach().to(dtype) for value in values])))


def install(module: ModuleType, wrapping: Wrapping, call: Any, started: Any) -> None:
    """Wrap every criterion of a module.

    Args:
        module: The module.
        wrapping: Records what is replaced.
        call: Wrapper of `__call__`.
        started: Wrapper of `__init__`.
    """
    for name, cls in list(vars(module).items()):
        if name.startswith("ComputeLoss") and isinstance(cls, type) and cls.__module__ == module.__name__:
            wrapping.wrap(cls, "__init__", started)
            wrapping.wrap(cls, "__call__", call)


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


def zero(predictions: Any) -> Any:
    """Return a zero that depends on every prediction.

    A rank without objects leaves boxes and masks out of its graph, and the others would wait for its backward pass.
    """
    return sum(tensor[..., :0].sum() for tensor in _tensors(predictions))


def _tensors(predictions: Any) -> Iterator[Tensor]:
    if isinstance(predictions, Tensor):
        yield predictions
    else:
        for part in predictions:
            yield from _tensors(part)


def floored(cls: type) -> bool:
    """Return whether a criterion keeps its normaliser away from zero: it does so with the builtin `max`, or not."""
    function = getattr(cls.__call__, "__wrapped__", cls.__call__)
    return "max" in function.__code__.co_names
