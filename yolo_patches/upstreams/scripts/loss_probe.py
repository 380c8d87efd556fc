"""The probe of a live criterion of YOLOv9 or YOLOv5: three synthetic images, in this process, before the first step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from yolo_patches.seams import LossProof
from yolo_patches.upstreams import loss_proof, target_scores
from yolo_patches.upstreams.loss_proof import Loss
from yolo_patches.upstreams.synthetic_images import objects, overlapping, owners, pixels, predicted
from yolo_patches.upstreams.undisturbed import settle, undisturbed


def prove(model: Any, criterion: Any, task: str) -> LossProof:
    """Prove the loss of a live criterion, and leave no trace in the training.

    Args:
        model: As the script trains it, in DistributedDataParallel, too.
        criterion: The script's `compute_loss`.
        task: "detect", "segment" or "panoptic".
    """
    try:
        model = model.module if hasattr(model, "module") else model
        with undisturbed(model, criterion), torch.no_grad():
            settle(model)
            return loss_proof.prove(_Probe(model, criterion, task))
    except Exception as error:
        return LossProof(None, None, f"the loss could not be probed: {loss_proof.told(error)}")


def reaction(model: Any, criterion: Any, task: str, change: Callable[[Any], Any]) -> float | None:
    """Return how far the gradient of a live loss moves whose target scores are replaced, and leave no trace.

    Args:
        model: As the script trains it.
        criterion: The script's `compute_loss`.
        task: "detect", "segment" or "panoptic".
        change: Target scores -> what takes their place.
    """
    model = model.module if hasattr(model, "module") else model
    with undisturbed(model, criterion), torch.no_grad():
        settle(model)
        probe = _Probe(model, criterion, task)
        return target_scores.reaction(probe, probe.predictions, change)


class _Probe:
    """Computes the loss of synthetic images, for which the model predicts once."""

    def __init__(self, model: Any, criterion: Any, task: str) -> None:
        parameter = next(model.parameters())
        head = model.model[-1]
        self._criterion, self._task = criterion, task
        self._device = parameter.device
        self._size = 2 * max(32, *(int(stride) for stride in head.stride))
        self._objects = objects(head.nc)
        channels = next(weight.shape[1] for weight in model.parameters() if weight.dim() == 4)
        self.predictions = model(pixels(channels, self._size).to(parameter))

    def __call__(self, images: Sequence[int]) -> Loss:
        """Compute the loss of these images; one without objects has the pixels of the first."""
        chosen = [self._objects[image] for image in images]
        seen = torch.tensor([max(image, 0) for image in images], device=self._device)
        predictions = predicted(self.predictions, seen)
        classes, boxes = torch.cat([image.classes for image in chosen]), torch.cat([image.boxes for image in chosen])
        targets = torch.cat((torch.stack((owners(chosen), classes), 1).to(boxes), boxes), 1).to(self._device)
        labels = {}
        if self._task != "detect":
            cells = self._size // 4
            single = torch.cat([image.masks(cells) for image in chosen])
            masks = overlapping(chosen, cells) if self._criterion.overlap else single
            labels["masks"] = masks.to(self._device)
        if self._task == "panoptic":
            labels["semasks"] = torch.zeros_like(predictions[-1])
        value, items = self._criterion(predictions, targets, **labels)
        if self._task == "panoptic":  # its last term, the dice loss of stuff, has no normaliser that could be shared
            value, items = value - items[-1] * len(images), items[:-1]
        return Loss(value, items)
