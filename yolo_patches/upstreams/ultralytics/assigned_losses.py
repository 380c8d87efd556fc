"""The normalisers of one criterion call: fired as one seam, and back in what upstream divides by.

Upstream asks `if fg_mask.sum():` before it computes the losses of boxes, masks and keypoints. One process answers for
the whole batch, so every rank must: YOLO26's semantic loss looks at background images, too, and a head that one rank
leaves out of its graph is a BatchNorm layer whose backward pass the other ranks wait for (8.4.0 to 8.4.120, and pose
before). Where upstream's code for foreground cannot do without labels, it is not called.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Optional

from yolo_patches.seams import Normaliser
from yolo_patches.upstreams import normaliser_calls, target_scores
from yolo_patches.upstreams.normaliser_calls import Listener, arguments, familiar, listening, zero

Wrapped = Callable[..., Any]
Args = tuple[Any, ...]
Kwargs = dict[str, Any]

#: While a criterion runs that fires its normalisers itself, at its end: what its assigner leaves for it.
deferred: ContextVar[Optional[dict[str, Any]]] = ContextVar("deferred", default=None)
#: While a loss runs that may only be told of this rank's foreground.
_own: ContextVar[bool] = ContextVar("own", default=False)
#: While a criterion runs that may return before it assigns: the seams that have been fired.
_fired: ContextVar[Optional[list[Normaliser]]] = ContextVar("fired", default=None)


def fire(listener: Listener, like: Any, *values: Any) -> Normaliser:
    """Fire one criterion call's normalisers, and note it for the criterion that may return before it does."""
    seam = normaliser_calls.fire(listener, like, *values)
    fired = _fired.get()
    if fired is not None:
        fired.append(seam)
    return seam


def assign(wrapped: Wrapped, assigner: Any, args: Args, kwargs: Kwargs) -> Any:
    """Return target scores and foreground mask whose sums are those of the whole batch.

    A result of another form is left alone. The seam is fired all the same: whether it has another form may depend on
    the rank's own images, and the other ranks would wait.
    """
    predicted = args[0] if args else kwargs.get("pd_scores")
    result = target_scores.shown(wrapped(*args, **kwargs), predicted)
    listener = listening()
    if listener is None:
        return result
    from yolo_patches.nn.shards import Shard, Whole

    known = familiar(result, predicted)
    total, foreground = (result[2].sum(), result[3].sum()) if known else (0.0, 0.0)
    later = deferred.get()
    if later is not None:
        later.update({"scores": total, "foreground": foreground} if known else {"unknown": True})
        return result
    seam = fire(listener, result[2] if known else predicted, total, foreground)
    if not known or seam.ranks == 1:
        return result
    labels, boxes, scores, mask, *rest = result
    return (
        labels,
        boxes,
        Shard.of(scores, Whole(seam.values[0], seam.ranks)),
        # Through 8.4.120 the mask of a rank without labels is a float tensor, which can select nothing.
        Shard.of(mask.bool(), Whole(seam.values[1], seam.ranks, together=not _own.get())),
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
    call = arguments(wrapped, args, kwargs)
    if empty(call.get("fg_mask")) and {"proto", "pred_masks"} <= call.keys():
        return zero(call["proto"], call["pred_masks"])
    return wrapped(*args, **kwargs)


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
    listener = listening()
    if listener is not None and not fired:
        fire(listener, result[0], 0.0, 0.0)
    return result
