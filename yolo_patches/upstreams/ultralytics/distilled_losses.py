"""Distillation's normaliser: the sum of the teacher's scores on each level, by which distances are weighted."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any, Optional

from yolo_patches.upstreams.normaliser_calls import arguments, listening
from yolo_patches.upstreams.ultralytics.assigned_losses import Args, Kwargs, Wrapped, fire

#: While a loss runs: its teacher scores as shards of the whole batch's, one for each level, once they are known.
_shards: ContextVar[Optional[list[Any]]] = ContextVar("shards", default=None)


def loss(wrapped: Wrapped, model: Any, args: Args, kwargs: Kwargs) -> Any:
    """Let the levels of one loss share a collective."""
    token = _shards.set([])
    try:
        return wrapped(*args, **kwargs)
    finally:
        _shards.reset(token)


def distance(wrapped: Wrapped, model: Any, args: Args, kwargs: Kwargs) -> Any:
    """Divide a level's weighted distances by the teacher's scores of the whole batch."""
    listener, shards = listening(), _shards.get()
    call = {} if listener is None else arguments(wrapped, args, kwargs)
    if listener is None or shards is None or not {"student_feat", "teacher_feat", "teacher_scores"} <= call.keys():
        return wrapped(*args, **kwargs)
    from yolo_patches.nn.shards import Shard, Whole

    scores = call["teacher_scores"]
    if not shards:
        seam = fire(listener, scores, *(level.sum() for level in scores))
        shards += [Shard.of(level, Whole(mean, seam.ranks)) for level, mean in zip(scores, seam.values)]
    return wrapped(**{**call, "teacher_scores": tuple(shards)})
