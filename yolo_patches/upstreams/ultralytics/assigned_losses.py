"""The normalisers of one criterion call: fired as one seam, and back in what upstream divides by.

Upstream asks `if fg_mask.sum():` before it computes the losses of boxes, masks and keypoints. One process answers for
the whole batch, so every rank must: YOLO26's semantic loss looks at background images, too, and a head that one rank
leaves out of its graph is a BatchNorm layer whose backward pass the other ranks wait for (8.4.0 to 8.4.120, and pose
before). Where upstream's code for foreground cannot do without labels, it is not called.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Optional

from yolo_patches.seams import Normaliser
from yolo_patches.upstreams import normaliser_calls
from yolo_patches.upstreams.normaliser_calls import listening, zero

if TYPE_CHECKING:
    from yolo_patches.lifecycle import Run

Wrapped = Callable[..., Any]
Args = tuple[Any, ...]
Kwargs = dict[str, Any]

#: While a criterion runs that fires its normalisers itself, at its end: what its assigner leaves for it.
deferred: ContextVar[Optional[dict[str, Any]]] = ContextVar("deferred", default=None)
#: While a loss runs that may only be told of this rank's foreground.
_own: ContextVar[bool] = ContextVar("own", default=False)
#: While a criterion runs that may return before it assigns: the seams that have been fired.
_fired: ContextVar[Optional[list[Normaliser]]] = ContextVar("fired", default=None)


def fire(run: Run, like: Any, *values: Any) -> Normaliser:
    """Fire one criterion call's normalisers, and note it for the criterion that may return before it does."""
    seam = normaliser_calls.fire(run, like, *values)
    fired = _fired.get()
    if fired is not None:
        fired.append(seam)
    return seam


def assign(wrapped: Wrapped, assigner: Any, args: Args, kwargs: Kwargs) -> Any:
    """Return target scores and foreground mask whose sums are those of the whole batch."""
    result = wrapped(*args, **kwargs)
    run = listening()
    if run is None:
        return result
    from yolo_patches.nn.shards import Shard

    labels, boxes, scores, mask, *rest = result
    total, foreground = scores.sum(), mask.sum()
    later = deferred.get()
    if later is not None:
        later.update(scores=total, foreground=foreground)
        return result
    seam = fire(run, scores, total, foreground)
    if seam.ranks == 1:
        return result
    return (
        labels,
        boxes,
        Shard.of(scores, seam.values[0], seam.ranks, truth=total),
        # Through 8.4.120 the mask of a rank without labels is a float tensor, which can select nothing.
        Shard.of(mask.bool(), seam.values[1], seam.ranks, truth=foreground if _own.get() else seam.values[1]),
        *rest,
    )


def segment(wrapped: Wrapped, criterion: Any, args: Args, kwargs: Kwargs) -> Any:
    """Through 8.3 upstream keeps all heads in the graph itself, and resizes masks that a rank without labels lacks."""
    token = _own.set(True)
    try:
        return wrapped(*args, **kwargs)
    finally:
        _own.reset(token)


def masks(wrapped: Wrapped, criterion: Any, args: Args, kwargs: Kwargs) -> Any:
    """Without foreground, return a zero that keeps both mask branches in the graph: upstream may find no image."""
    call = inspect.signature(wrapped).bind(*args, **kwargs).arguments
    return zero(call["proto"], call["pred_masks"]) if empty(call["fg_mask"]) else wrapped(*args, **kwargs)


def empty(mask: Any) -> bool:
    """Return whether upstream has been told of foreground that other ranks have and this one does not."""
    from yolo_patches.nn.shards import Shard

    return isinstance(mask, Shard) and not mask.any()


def prompted(wrapped: Wrapped, criterion: Any, args: Args, kwargs: Kwargs) -> Any:
    """Fire for YOLOE's prompt losses where they return early: whether they do depends on the rank's own batch."""
    if _fired.get() is not None:  # `__call__` has come to `loss`
        return wrapped(*args, **kwargs)
    fired: list[Normaliser] = []
    token = _fired.set(fired)
    try:
        result = wrapped(*args, **kwargs)
    finally:
        _fired.reset(token)
    run = listening()
    if run is not None and not fired:
        import torch

        fire(run, torch.zeros((), device=criterion.vp_criterion.device), 0.0, 0.0)
    return result
