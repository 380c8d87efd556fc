"""Sums over a batch that is spread over ranks, as tensors that a loss can divide by without knowing.

One process divides by `max(total, floor)`. With N ranks whose loss is multiplied by N and whose gradients are averaged,
each rank must divide by `max(total, floor) / N = max(mean, floor / N)`, where `mean` is that of the ranks' own sums.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from yolo_patches.nn import common_step

__all__ = ["Shard", "ShardSum", "Unfloored", "rank_mean"]


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
    dist.all_reduce(values)
    return values / ranks, ranks


class Plain(Tensor):
    """A view whose operations give plain tensors, except the few that a subclass replaces."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]


class ShardSum(Plain):
    """The mean of the ranks' sums, behaving towards a floor and a condition as the whole batch's total does.

    Attributes:
        ranks: Number of ranks.
        truth: What `if total:` asks.
    """

    ranks: int
    truth: Tensor

    def clamp(self, min: float) -> Tensor:  # type: ignore[override]
        """Return `max(total, min) / ranks`."""
        return torch.clamp(self.as_subclass(Tensor), min=min / self.ranks)

    clamp_ = clamp_min = clamp_min_ = clamp  # type: ignore[assignment]

    def __lt__(self, floor: float) -> bool:  # type: ignore[override]
        """Apply the floor here and answer no, so that the builtin `max(total, floor)` returns this tensor."""
        self.as_subclass(Tensor).clamp_(min=floor / self.ranks)
        return False

    def __bool__(self) -> bool:
        return bool(self.truth)


class Shard(Plain):
    """One rank's part of a batch; `sum()` stands for the sum over the whole batch, everything else for this part.

    Attributes:
        average: Mean over ranks of the sum.
        ranks: Number of ranks.
        truth: What `if shard.sum():` asks.
    """

    average: Tensor
    ranks: int
    truth: Tensor

    @classmethod
    def of(cls, part: Tensor, average: Tensor, ranks: int, truth: Tensor) -> Shard:
        """Return `part` itself, seen as a shard."""
        shard = part.as_subclass(cls)
        shard.average, shard.ranks, shard.truth = average, ranks, truth
        return shard

    def sum(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the whole batch's sum as a `ShardSum`; over given dimensions, this part's sum."""
        if args or kwargs:
            return super().sum(*args, **kwargs)
        total = self.average.clone().as_subclass(ShardSum)
        total.ranks, total.truth = self.ranks, self.truth
        return total

    @property
    def share(self) -> Tensor:
        """The part's sum over the average: what turns a mean over the part into its share of the batch's mean."""
        return super().sum() / self.average.clamp(min=1 / self.ranks)


class Unfloored(Plain):
    """A loss term that ignores a floor and remembers it: only all ranks together know whether it applies.

    Attributes:
        floored: Whether the floor was asked for.
    """

    floored = False

    def clamp(self, min: float) -> Tensor:  # type: ignore[override]
        """Return the term without a floor."""
        self.floored = True
        return self.as_subclass(Tensor)
