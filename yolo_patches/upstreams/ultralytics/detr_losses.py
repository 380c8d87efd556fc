"""RT-DETR's normaliser: the number of ground truths, as a Python int in the middle of each term."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

from yolo_patches.upstreams.normaliser_calls import listening
from yolo_patches.upstreams.ultralytics.assigned_losses import Args, Kwargs, Wrapped, fire

#: Set while a loss runs to whose whole batch any rank contributes a ground truth.
_any_rank: ContextVar[bool] = ContextVar("any_rank", default=False)


def forward(wrapped: Wrapped, criterion: Any, args: Args, kwargs: Kwargs) -> Any:
    """Multiply every term, each 1 / max(own, 1) of a sum, by max(own, 1) over the whole batch's normaliser."""
    run = listening()
    if run is None:
        return wrapped(*args, **kwargs)
    batch = args[1] if len(args) > 1 else kwargs["batch"]
    denoising = args[4] if len(args) > 4 else kwargs.get("dn_meta")
    own = (sum(batch["gt_groups"]), sum(map(len, denoising["dn_pos_idx"])) if denoising else 0)
    boxes, _ = args[0] if args else kwargs["preds"]
    seam = fire(run, boxes, *own)
    if seam.ranks == 1:
        return wrapped(*args, **kwargs)
    matched, denoised = (max(n, 1) / mean.clamp(min=1 / seam.ranks) for n, mean in zip(own, seam.values))
    token = _any_rank.set(bool(seam.values[0]))
    try:
        terms = wrapped(*args, **kwargs)
    finally:
        _any_rank.reset(token)
    return {name: term * (denoised if name.endswith("_dn") else matched) for name, term in terms.items()}


def class_loss(wrapped: Wrapped, criterion: Any, args: Args, kwargs: Kwargs) -> Any:
    """Without ground truths upstream takes another loss function: the whole batch must agree on one."""
    if _any_rank.get():
        if len(args) > 3:
            args = (*args[:3], max(args[3], 1), *args[4:])
        else:
            kwargs = {**kwargs, "num_gts": max(kwargs["num_gts"], 1)}
    return wrapped(*args, **kwargs)
