"""What an assigner's target scores do on their way to the `TargetScores` seam, and how much a loss makes of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from yolo_patches.activation import activation
from yolo_patches.nn import common_step
from yolo_patches.seams import Seam
from yolo_patches.step_seams import TargetScores
from yolo_patches.upstreams import normaliser_calls
from yolo_patches.upstreams.loss_proof import LAYOUTS, Compute
from yolo_patches.upstreams.normaliser_calls import familiar, probing, tensors


def shown(result: Any, predicted: Any) -> Any:
    """Return an assigner's result with the target scores that patches make of its own.

    In a step that every rank makes, and in a probe; a validation has upstream's targets. A result of another form is
    left alone.

    Args:
        result: What the assigner has returned.
        predicted: The scores that it was given [images, anchors, classes].
    """
    listener = _listening()
    if listener is None or not familiar(result, predicted):
        return result
    labels, boxes, scores, *rest = result
    values = listener.fire(TargetScores(scores)).values
    return result if values is scores else (labels, boxes, values, *rest)


def _listening() -> Any:
    listener: Any = normaliser_calls.probe()
    if listener is None and torch.is_grad_enabled() and common_step.inside():
        listener = activation.current
    return listener if listener is not None and listener.listens(TargetScores) else None


class _Changing:
    """Stands for a training whose target scores are replaced, and nothing else."""

    def __init__(self, change: Callable[[Any], Any]) -> None:
        self._change = change

    def listens(self, seam: type[Seam]) -> bool:
        """Return whether this is what is replaced."""
        return seam is TargetScores

    def fire(self, seam: Any) -> Any:
        """Replace it."""
        seam.values = self._change(seam.values)
        return seam


def reaction(compute: Compute, predictions: Any, change: Callable[[Any], Any]) -> float | None:
    """Return how far a loss's gradient moves where target scores are replaced, relative to it; 0 if it knows none.

    The gradient, because at a model's first weights all classes have the same logit: what one gives to the others then
    leaves the loss as it is. And every object's scores, which are next to nothing then, are brought to a sum of 1.

    Args:
        compute: Computes the loss of images, as for `loss_proof.prove`.
        predictions: What it computes it from: tensors that need no gradient, or lists and dictionaries of them; None
            where there are none, and nothing can be measured.
        change: Target scores -> what takes their place.
    """
    leaves = [leaf for leaf in tensors(predictions) if leaf.is_floating_point()]
    if not leaves:
        return None

    def gradient(change: Callable[[Any], Any]) -> Any:
        with torch.enable_grad(), probing(_Changing(change)):
            for leaf in leaves:
                leaf.requires_grad_(True)
            found = torch.autograd.grad(compute(LAYOUTS[0]).value.sum(), leaves, allow_unused=True)
        return torch.cat([part.double().flatten() for part in found if part is not None])

    before, after = gradient(_whole), gradient(lambda scores: change(_whole(scores)))
    return float((after - before).norm() / before.norm())


def _whole(scores: Any) -> Any:
    total = scores.sum(-1, keepdim=True)
    return scores / torch.where(total > 0, total, torch.ones_like(total))
