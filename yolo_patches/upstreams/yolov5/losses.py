"""YOLOv5's criteria: boxes and classes are means over the matched targets of each layer.

Every rank takes them over its own. On N ranks the mean of n targets must be weighted with n over the ranks' mean of n,
and then the gradient is that of one process. Objectness and masks need nothing: they are means over the grid and sums
over images, of which ranks have equally many.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Optional

import torch
from torch import Tensor

from yolo_patches.nn.shards import Plain
from yolo_patches.upstreams.normaliser_calls import Listener, fire, listening, zero

Wrapped = Callable[..., Any]
Arguments = tuple[Any, ...]
Keywords = dict[str, Any]

#: The layers of the criterion call that is under way.
_layers: ContextVar[Optional[Layers]] = ContextVar("layers", default=None)


class Layers:
    """The weights of one criterion call's means, and how far it has come: objectness is the last term of a layer."""

    def __init__(self, listener: Listener) -> None:
        self.listener = listener
        self.ranks: float = 1
        self._weights: list[Tensor] = []
        self._layer = 0

    def matched(self, counts: list[int], predictions: Any) -> None:
        """Take this rank's matched targets of each layer."""
        seam = fire(self.listener, predictions, *counts)
        self.ranks = seam.ranks
        self._weights = [n / mean if n else torch.zeros_like(mean) for n, mean in zip(counts, seam.values)]

    @property
    def weight(self) -> Tensor:
        """The weight of the current layer's means."""
        return self._weights[self._layer]

    def following(self, criterion: Any) -> tuple[Callable[..., Any], Callable[..., Any]]:
        """Return what stands in for a criterion's class and objectness losses."""
        classes, objectness = criterion.BCEcls, criterion.BCEobj

        def weighted(*args: Any) -> Any:
            return classes(*args) * self.weight

        def last(*args: Any) -> Any:
            loss = objectness(*args)
            self._layer += 1
            return loss

        return weighted, last


class _Overlap(Plain):
    """The IoU of matched boxes, to whoever takes `(1.0 - iou).mean()`; everything else is plain."""

    weight: Tensor

    @classmethod
    def of(cls, values: Tensor, weight: Tensor) -> _Overlap:
        """Return `values` themselves, with the weight of their mean."""
        seen = values.as_subclass(cls)
        seen.weight = weight
        return seen

    def squeeze(self, *args: Any) -> Tensor:
        return self.of(super().squeeze(*args), self.weight)

    def __rsub__(self, other: Any) -> Tensor:
        return self.of(other - self.as_subclass(Tensor), self.weight)

    def mean(self, *args: Any, **kwargs: Any) -> Tensor:
        return super().mean(*args, **kwargs) * self.weight


def compute(wrapped: Wrapped, criterion: Any, args: Arguments, kwargs: Keywords) -> Any:
    """Compute the losses of a criterion whose means are over the whole batch."""
    listener = listening()
    if listener is None:
        return wrapped(*args, **kwargs)
    layers, own = Layers(listener), (criterion.BCEcls, criterion.BCEobj)
    token = _layers.set(layers)
    try:
        criterion.BCEcls, criterion.BCEobj = layers.following(criterion)
        loss, items = wrapped(*args, **kwargs)
    finally:
        criterion.BCEcls, criterion.BCEobj = own
        _layers.reset(token)
    return (loss + zero(args[0] if args else kwargs["p"]) if layers.ranks > 1 else loss), items


def build_targets(wrapped: Wrapped, criterion: Any, args: Arguments, kwargs: Keywords) -> Any:
    """Follow how many targets each layer has matched."""
    result = wrapped(*args, **kwargs)
    layers = _layers.get()
    if layers is not None:
        layers.matched([len(images) for images, *_ in result[2]], args[0] if args else kwargs["p"])
    return result


def bbox_iou(wrapped: Wrapped, _: object, args: Arguments, kwargs: Keywords) -> Any:
    """Return overlaps whose mean distance from 1 has the layer's weight."""
    result, layers = wrapped(*args, **kwargs), _layers.get()
    return result if layers is None else _Overlap.of(result, layers.weight)
