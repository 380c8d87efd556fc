"""RT-DETR's normaliser: the number of ground truths, as a Python int in the middle of each term."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

from yolo_patches.upstreams.normaliser_calls import arguments, listening
from yolo_patches.upstreams.ultralytics.assigned_losses import Args, Kwargs, Wrapped, fire

#: Set while a loss runs to whose whole batch any rank contributes a ground truth.
_any_rank: ContextVar[bool] = ContextVar("any_rank", default=False)


def forward(wrapped: Wrapped, criterion: Any, args: Args, kwargs: Kwargs) -> Any:
    """Multiply every term, each 1 / max(own, 1) of a sum, by max(own, 1) over the whole batch's normaliser.

    A term of denoising is a mean over ground truths that stand in several groups, in more where a rank's images hold
    fewer of them: it is the ground truths that are counted, as one process has as many groups for all images.
    """
    listener = listening()
    call = {} if listener is None else arguments(wrapped, args, kwargs)
    if listener is None or not {"preds", "batch"} <= call.keys():
        return wrapped(*args, **kwargs)
    denoising = call.get("dn_meta")
    denoised = sum(map(len, denoising["dn_pos_idx"])) / denoising["dn_num_group"] if denoising else 0
    own = (sum(call["batch"]["gt_groups"]), denoised)
    seam = fire(listener, call["preds"], *own)
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
        if "num_gts" in kwargs:
            kwargs = {**kwargs, "num_gts": max(kwargs["num_gts"], 1)}
        elif len(args) > 3:
            args = (*args[:3], max(args[3], 1), *args[4:])
    return wrapped(*args, **kwargs)
