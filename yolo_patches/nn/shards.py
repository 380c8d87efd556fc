"""Sums over a batch that is spread over ranks, as tensors that a loss can divide by without knowing.

One process divides by `max(total, floor)`. With N ranks whose loss is multiplied by N and whose gradients are averaged,
each rank must divide by `max(total, floor) / N = max(mean, floor / N)`, where `mean` is that of the ranks' own sums.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from yolo_patches.nn import common_step, waits

__all__ = ["Plain", "Shard", "ShardMean", "ShardSum", "Unfloored", "Whole", "rank_mean"]


def rank_mean(values: Tensor) -> tuple[Tensor, int]:
    """Return the mean of a vector over all ranks and the number of ranks; the vector itself and 1 where none train.

    What MMDetection and Detectron2 call reduce_mean, for several values in one collective. There is none outside of a
    step that every rank makes, and none without gradients: whoever computes a loss there may be the only one.

    Args:
        values: Detached; the same length, dtype and kind of device on every rank.
    """
    if not (torch.is_grad_enabled() and common_step.inside() and dist.is_available() and dist.is_initialized()):
        return values, 1
    ranks = dist.get_world_size()
    if ranks == 1:
        return values, 1
    values = values.clone()
    if values.device.type == "cpu":
        waits.timed(lambda: dist.all_reduce(values))
    else:
        dist.all_reduce(values)
    return values / ranks, ranks


class Plain(Tensor):
    """A view whose operations give plain tensors, except the few that a subclass replaces."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]


class Unfloored(Tensor):
    """A loss term that ignores a floor at zero and remembers it: only all ranks together know whether it applies.

    Attributes:
        floored: Whether the floor was asked for.
    """

    floored = False

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        floors = [*args[1:], *(kwargs or {}).values()]
        at_zero = _name(func) in _FLOORS and all(_constant(floor) and floor == 0 for floor in floors)
        if at_zero and "max" not in (kwargs or {}) and len(floors) < 2 and isinstance(args[0], Unfloored):
            args[0].floored = True
            return args[0].as_subclass(Tensor)
        return _plainly(func, args, kwargs or {})

    def __lt__(self, floor: Any) -> Any:
        """Answer the builtin `max(term, 0)`: it is not lower."""
        self.floored = _constant(floor) and floor == 0
        return not self.floored and self.as_subclass(Tensor) < floor

    def __gt__(self, floor: Any) -> Any:
        """Answer the builtin `max(0, term)`: it is greater."""
        self.floored = _constant(floor) and floor == 0
        return self.floored or self.as_subclass(Tensor) > floor


#: Operations that may be a floor.
_FLOORS = {"clamp", "clamp_min", "clip", "maximum", "relu"}
#: Operations of torch, without underscores. What changes neither a part's sum nor the number of its elements:
_SHAPES = {"clone", "contiguous", "detach", "flatten", "reshape", "squeeze", "unsqueeze", "view"}
_SAME = {*_SHAPES, "double", "float", "half", "to", "type"}
#: Where a constant is shared as the total is: max(total, 1) / N = max(total / N, 1 / N).
_SHARED = {"add", "clamp", "clamp_max", "clamp_min", "clip", "maximum", "minimum", "rsub", "sub"}
#: Where a constant is a factor: k * total / N.
_SCALED = {"div", "divide", "mul", "multiply", "true_divide"}
#: Where something is divided by the total.
_DIVIDED = {"div", "divide", "rdiv", "reciprocal", "true_divide"}
#: What conditions ask.
_ASKED = {"bool", "eq", "ge", "gt", "le", "logical_not", "lt", "ne"}


class ShardSum(Tensor):
    """What a rank divides by in place of the whole batch's total: `total / ranks`, known from all of them.

    A loss may cast it, floor or cap it in any way, add constants and multiply by them, ask whether there is anything,
    and divide by it: each time it gets what one process would, for the whole batch. All other operations, and all that
    leave torch (`int(total)`, `total.item()`, a shape), get this rank's own total, as if nobody had shared it. Such a
    loss is upstream's own, and a probe tells it from the one that is wanted.

    Attributes:
        own: This rank's own total, as upstream would have it.
        ranks: Number of ranks; for parts of one batch, what they are a part of it as: its images over theirs.
        together: Whether a condition asks the whole batch, or this rank alone.
    """

    own: Tensor
    ranks: float
    together: bool

    @classmethod
    def of(cls, value: Tensor, own: Tensor, ranks: float, together: bool) -> ShardSum:
        """Return `value` itself, to be divided by."""
        total = value.as_subclass(cls)
        total.own, total.ranks, total.together = own, ranks, together
        return total

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if _is_kernel(func):
            return _plainly(func, args, kwargs or {})
        name, kwargs = _name(func), kwargs or {}
        first = args[0] if args and isinstance(args[0], ShardSum) else None
        sums = [value for value in args if isinstance(value, ShardSum)]
        others = [value for value in (*args, *kwargs.values()) if not isinstance(value, ShardSum)]
        constants = all(map(_constant, others)) and "alpha" not in kwargs
        pair = name in ("max", "min") and len(args) == 2 and isinstance(args[1], Tensor)  # and no dimension
        if sums and (name in _SHARED or pair) and constants:
            return sums[0]._with(func, args, kwargs, sums[0].ranks)
        if first is not None and name in _SAME:
            return first._with(func, args, kwargs)
        if len(sums) == 1 and name in _SCALED and constants and (first is not None or name not in _DIVIDED):
            return sums[0]._with(func, args, kwargs)
        if name in _DIVIDED and (first is None or name.startswith("r") or len(sums) == 2):
            return _plainly(func, args, kwargs)
        see = ShardSum._asked if name in _ASKED else ShardSum._alone
        return _plainly(func, _each(see, args), dict(zip(kwargs, _each(see, kwargs.values()))))

    def _with(
        self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], ranks: float | None = None
    ) -> ShardSum:
        """Apply an operation to both this rank's total and what stands for it, for which constants are shared, too."""

        def shared(value: Any) -> Any:
            return value if ranks is None or value is None or isinstance(value, ShardSum) else value / ranks

        own = _plainly(func, _each(ShardSum._alone, args), dict(zip(kwargs, _each(ShardSum._alone, kwargs.values()))))
        value = _plainly(func, [*map(shared, args)], {key: shared(value) for key, value in kwargs.items()})
        return value if isinstance(value, ShardSum) else ShardSum.of(value, own, self.ranks, self.together)

    def _alone(self) -> Tensor:
        return self.own

    def _asked(self) -> Tensor:
        return self.as_subclass(Tensor) * self.ranks if self.together else self.own

    def _floored(self, floor: Any, answer: bool) -> Tensor:
        """Apply a floor here, so that the builtin `max`, which compares, may return this tensor."""
        self.own = self.own.clamp(min=float(floor))
        value = self.as_subclass(Tensor).clamp_(min=float(floor) / self.ranks)
        return torch.full_like(value, answer, dtype=torch.bool)

    def __lt__(self, other: Any) -> Tensor:
        """Answer `max(total, floor)`: no, it is not lower, since the floor has been applied; else a condition."""
        if _constant(other) and other > 0:
            return self._floored(other, answer=False)
        return torch.lt(self, other)

    def __gt__(self, other: Any) -> Tensor:
        """Answer `max(floor, total)`: yes, it is greater, since the floor has been applied; else a condition."""
        if _constant(other) and other > 0:
            return self._floored(other, answer=True)
        return torch.gt(self, other)

    def __bool__(self) -> bool:
        return bool(self._asked())


class ShardMean(Tensor):
    """The mean over the whole batch, which times the number of this rank's elements is what it divides by.

    Attributes:
        total: What the rank divides by.
        elements: Number of this rank's elements.
    """

    total: ShardSum
    elements: int

    @classmethod
    def of(cls, total: ShardSum, elements: int) -> ShardMean:
        """Return the mean of a total over so many elements."""
        mean = (total.as_subclass(Tensor) / elements).as_subclass(cls)
        mean.total, mean.elements = total, elements
        return mean

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        factors = [value for value in args if not isinstance(value, ShardMean)]
        if _name(func) in ("mul", "multiply") and len(factors) == 1 and isinstance(factors[0], (int, float)):
            mean = next(value for value in args if isinstance(value, ShardMean))
            return mean.total * (factors[0] / mean.elements)
        return _plainly(func, args, kwargs or {})


@dataclass
class Whole:
    """What is known of the whole batch of which a rank has a part.

    Attributes:
        average: Mean over ranks of the parts' sums.
        ranks: Number of ranks; for parts of one batch, what they are a part of it as: its images over theirs.
        together: Whether `if part.sum():` asks the whole batch, or this rank alone.
    """

    average: Tensor
    ranks: float
    together: bool = True

    def known(self) -> Whole:
        """Return this once its values are known: those of several parts may come by one collective."""
        return self


class Shard(Tensor):
    """One rank's part of a batch: sum and mean over all of it are the whole batch's, everything else is the part's.

    Attributes:
        whole: What is known of the whole batch.
    """

    whole: Whole

    @classmethod
    def of(cls, part: Tensor, whole: Whole) -> Shard:
        """Return `part` itself, seen as a shard."""
        shard = part.as_subclass(cls)
        shard.whole = whole
        return shard

    @property
    def share(self) -> Tensor:
        """The part's sum over the average: what turns a mean over the part into its share of the batch's mean."""
        whole = self.whole.known()
        return self.as_subclass(Tensor).sum() / whole.average.clamp(min=1 / whole.ranks)

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if _is_kernel(func):
            return _plainly(func, args, kwargs or {})
        name, kwargs = _name(func), kwargs or {}
        part = args[0] if args else kwargs.get("input")
        result = _plainly(func, args, kwargs)
        if not isinstance(part, Shard) or not isinstance(result, Tensor):
            return result
        counts = part.dtype == torch.bool and name == "count_nonzero"
        if (name in ("sum", "mean") or counts) and _everything(part, args[1:], kwargs):
            whole = part.whole.known()
            own = result * part.numel() if name == "mean" else result
            total = ShardSum.of(whole.average.reshape(result.shape).clone(), own, whole.ranks, whole.together)
            return ShardMean.of(total, part.numel()) if name == "mean" else total
        exact = result.is_floating_point() or not part.is_floating_point()
        return Shard.of(result, part.whole) if name in _SAME and exact else result


def _plainly(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Call a function of torch as if no argument were of a class of ours."""
    return torch._C._disabled_torch_function_impl(function, (), tuple(args), dict(kwargs))


def _is_kernel(function: Callable[..., Any]) -> bool:
    """Return whether this is torch's own, below autograd: what a loss has asked for is answered by then.

    A dispatch mode, such as torch's FlopCounterMode, calls the kernels of the backward pass with what was saved for it.
    """
    return isinstance(function, torch._ops.OpOverload)


def _name(function: Callable[..., Any]) -> str:
    """Return an operation's name: one for `add`, `add_` and `__add__`, but not for `float` and `__float__`."""
    name = getattr(function, "__name__", "")
    return name if name == "__float__" else name.strip("_")


def _each(see: Callable[[ShardSum], Any], values: Any) -> list[Any]:
    return [see(value) if isinstance(value, ShardSum) else value for value in values]


def _constant(value: Any) -> bool:
    """Return whether a value is one number, and nothing that is trained."""
    if isinstance(value, Tensor):
        return value.dim() == 0 and not value.requires_grad and not isinstance(value, ShardSum)
    return value is None or isinstance(value, (int, float))


def _everything(part: Tensor, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Return whether a reduction with these arguments is over all dimensions."""
    dims = args[0] if args else kwargs.get("dim", kwargs.get("axis"))
    if dims is None:
        return True
    chosen = {dim % part.dim() for dim in ([dims] if isinstance(dims, int) else dims)}
    return chosen == set(range(part.dim())) or not chosen
