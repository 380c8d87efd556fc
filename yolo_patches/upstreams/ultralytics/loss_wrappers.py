"""Ultralytics' criteria: which of them divide by what, and the wrappers that bring it to the seam.

A criterion call is one assignment and the losses that follow from it; E2E heads make two a step. What it divides by is
packed into one vector and fired as one seam, on every rank, whether it has labels or not:

- `TaskAlignedAssigner.forward` returns the target scores and the foreground mask, whose sums normalise the box, class
  and mask losses. Both come back as `Shard`, so that upstream's own division is by the whole batch (assigned_losses).
- The pose losses take means over foreground and visible keypoints (pose_losses).
- RT-DETR divides by its number of ground truths (detr_losses).
- Distillation takes a mean of distances that is weighted by the teacher's scores (distilled_losses).

All wrappers are on classes; nothing is ever put on a model, criterion or assigner, which upstream pickles. Means over
images or pixels need nothing: ranks have equally many, since upstream's sampler pads the last batch.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import wrapt

from yolo_patches.upstreams.ultralytics import assigned_losses, detr_losses, distilled_losses, pose_losses
from yolo_patches.wrapping import Wrapper, Wrapping

#: Where each criterion's normalisers come to the seam: every criterion that has some holds an instance of one of these.
ASSIGNER = ("ultralytics.utils.tal", "TaskAlignedAssigner", "forward", assigned_losses.assign)
DETR = ("ultralytics.models.utils.loss", "RTDETRDetectionLoss", "forward", detr_losses.forward)
#: The model that adds a loss of its own to its student's criterion.
DISTILLED = ("ultralytics.nn.distill_model", "DistillationModel", "loss_sl2", distilled_losses.distance)
#: (module, class, method, wrapper). What the installed release does not have is left out.
WRAPPERS: tuple[tuple[str, str, str, Wrapper], ...] = (
    ASSIGNER,
    ("ultralytics.utils.loss", "v8SegmentationLoss", "__call__", assigned_losses.segment),  # 8.4 on: inherited
    ("ultralytics.utils.loss", "v8SegmentationLoss", "calculate_segmentation_loss", assigned_losses.masks),
    ("ultralytics.utils.loss", "v8PoseLoss", "calculate_keypoints_loss", pose_losses.keypoints),
    ("ultralytics.utils.loss", "PoseLoss26", "loss", pose_losses.pose26),
    ("ultralytics.utils.loss", "RLELoss", "forward", pose_losses.rle),
    # E2E heads call `loss`; earlier releases have `__call__` alone, later ones come from there to `loss`.
    ("ultralytics.utils.loss", "TVPDetectLoss", "loss", assigned_losses.prompted),
    ("ultralytics.utils.loss", "TVPDetectLoss", "__call__", assigned_losses.prompted),
    ("ultralytics.utils.loss", "TVPSegmentLoss", "loss", assigned_losses.prompted),
    ("ultralytics.utils.loss", "TVPSegmentLoss", "__call__", assigned_losses.prompted),
    DETR,
    ("ultralytics.models.utils.loss", "DETRLoss", "_get_loss_class", detr_losses.class_loss),
    ("ultralytics.nn.distill_model", "DistillationModel", "loss", distilled_losses.loss),
    DISTILLED,
)
MODULES = tuple({module: None for module, *_ in WRAPPERS})


def install(module: ModuleType, wrapping: Wrapping) -> None:
    """Wrap the methods of one of `MODULES`."""
    for where, owner, name, wrapper in WRAPPERS:
        cls = getattr(module, owner, None)
        if where == module.__name__ and cls is not None and name in vars(cls):
            wrapping.wrap(cls, name, wrapper)


def defects() -> list[str]:
    """Return why the installed release has no seam, or nothing."""
    from ultralytics.utils import tal

    found = "forward" in vars(getattr(tal, "TaskAlignedAssigner", object))
    return [] if found else ["TaskAlignedAssigner.forward does not exist"]


def normalises(model: Any) -> bool:
    """Return whether the criterion of a live model has normalisers and all of them come to the seam."""
    try:
        return _normalises(unwrapped(model))
    except Exception:  # a user's own model: whatever its criterion does, it does not come to the seam
        return False


def unwrapped(model: Any) -> Any:
    """Return the model within DistributedDataParallel and torch.compile."""
    while hasattr(model, "module") or hasattr(model, "_orig_mod"):
        model = model.module if hasattr(model, "module") else model._orig_mod
    return model


def _normalises(model: Any) -> bool:
    criterion = getattr(model, "criterion", None)
    parts = _parts(model.init_criterion() if criterion is None else criterion, depth=3)
    seams = [_wrapped(module, owner, name, parts) for module, owner, name, _ in (ASSIGNER, DETR)]
    seams.append(_wrapped(*DISTILLED[:3], [model]))
    known = [seam for seam in seams if seam is not None]
    return bool(known) and all(known) and not any(map(pose_losses.unknown_terms, parts))


def _wrapped(module: str, owner: str, name: str, parts: list[Any]) -> bool | None:
    """Return whether a method is wrapped; None where no part is of its class."""
    cls = getattr(sys.modules.get(module), owner, None)
    if cls is None or not any(isinstance(part, cls) for part in parts):
        return None
    return isinstance(vars(cls).get(name), wrapt.FunctionWrapper)


def _parts(criterion: Any, depth: int) -> list[Any]:
    """Return an object and the objects that it holds: E2E criteria hold prompt criteria, which hold assigners."""
    held = getattr(criterion, "__dict__", {}).values() if depth else ()
    return [criterion, *(part for value in held for part in _parts(value, depth - 1))]
