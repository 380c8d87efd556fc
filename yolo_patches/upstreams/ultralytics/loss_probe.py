"""The probe of a live Ultralytics model's loss: three synthetic images, in this process, before the first step.

The model predicts once, and the loss is computed for its images in several compositions. So a probe takes little more
than one forward pass, and no kernel's rounding at another batch size is taken for an error of the loss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from yolo_patches.seams import LossProof
from yolo_patches.upstreams import loss_proof, target_scores
from yolo_patches.upstreams.loss_proof import Loss
from yolo_patches.upstreams.synthetic_images import Objects, objects, overlapping, owners, pixels, predicted
from yolo_patches.upstreams.ultralytics.loss_wrappers import unwrapped
from yolo_patches.upstreams.undisturbed import settle, undisturbed

#: Part of each image's keypoints that is visible.
VISIBLE = (0.9, 0.3, 0.6, 0.0)
#: The class of pixels that count for nothing in semantic segmentation.
IGNORED = 255


def prove(model: Any, task: str, device: Any = None) -> LossProof:
    """Prove the loss of a live training model, and leave no trace in the training.

    Args:
        model: As the trainer has it, in DistributedDataParallel or compiled, too.
        task: Upstream's name of the task.
        device: Where to compute; the model's own device by default.
    """
    try:
        model = unwrapped(model)
        with undisturbed(model), torch.no_grad():
            settle(model)
            return loss_proof.prove(_Probe(model, task, device))
    except Exception as error:
        return LossProof(None, None, f"the loss could not be probed: {loss_proof.told(error)}")


def reaction(model: Any, task: str, change: Callable[[Any], Any]) -> float | None:
    """Return how far the gradient of a live model's loss moves whose target scores are replaced, and leave no trace.

    Args:
        model: As the trainer has it.
        task: Upstream's name of the task.
        change: Target scores -> what takes their place.
    """
    model = unwrapped(model)
    with undisturbed(model), torch.no_grad():
        settle(model)
        probe = _Probe(model, task, None)
        return target_scores.reaction(probe, probe.predictions, change)


class _Probe:
    """Computes the loss of synthetic images."""

    def __init__(self, model: Any, task: str, device: Any) -> None:
        parameter = next(model.parameters())
        self._model, self._task = model, task
        self._device = parameter.device if device is None else torch.device(device)
        self._head = getattr(model, "student_model", model).model[-1]
        self._size = self._smallest()
        self._objects = objects(getattr(self._head, "nc", 1))
        channels = next(weight.shape[1] for weight in model.parameters() if weight.dim() == 4)
        if hasattr(self._head, "num_denoising"):
            self._head.num_denoising = 0  # RT-DETR draws its noise anew at each call, and for a batch as a whole
        self._pixels = pixels(channels, self._size).to(self._device, parameter.dtype)
        # Distillation computes its loss from features, which are not among the predictions.
        self.predictions: Any = None if hasattr(model, "student_model") else model(self._pixels)

    def __call__(self, images: Sequence[int]) -> Loss:
        """Compute the loss of these images; one without objects has the pixels of the first."""
        seen = torch.tensor([max(image, 0) for image in images], device=self._device)
        batch = {"img": self._pixels[seen], **self._labels([self._objects[image] for image in images])}
        if self.predictions is None:
            value, items = self._model.loss(batch)
        else:
            layered = hasattr(self._head, "decoder")
            value, items = self._model.loss(batch, predicted(self.predictions, seen, layered))
        if isinstance(items, dict):
            items = torch.stack([torch.as_tensor(item).to(value).reshape(()) for item in items.values()])
        return Loss(value, items)

    def _smallest(self) -> int:
        """Return a size at which every level has cells, and RT-DETR as many as it has queries."""
        step = max(32, *(int(stride) for stride in getattr(self._model, "stride", ())))
        size = 2 * step
        while sum((size // stride) ** 2 for stride in (8, 16, 32)) < getattr(self._head, "num_queries", 0):
            size += step
        return size

    def _labels(self, images: list[Objects]) -> dict[str, Any]:
        """Return these images' labels as upstream's loader collates them, and as its trainer moves them."""
        labels = {
            "batch_idx": owners(images).float(),
            "cls": torch.cat([image.classes for image in images]).float()[:, None],
            "bboxes": torch.cat([image.boxes for image in images]),
        }
        kind = getattr(self, f"_{self._task}", None)
        labels.update(kind(images) if kind else {})
        moved = {name: label.to(self._device) for name, label in labels.items()}
        return {**moved, "resized_shape": [(self._size, self._size)] * len(images)}

    def _classify(self, images: list[Objects]) -> dict[str, Tensor]:
        return {"cls": torch.tensor([image.seed for image in images]) % self.predictions.shape[-1]}

    def _obb(self, images: list[Objects]) -> dict[str, Tensor]:
        turned = [torch.cat((image.boxes, image.random(1) * 1.5), 1) for image in images]
        return {"bboxes": torch.cat(turned)}

    def _pose(self, images: list[Objects]) -> dict[str, Tensor]:
        number, dimensions = self._head.kpt_shape
        places = [
            image.boxes[:, None, :2] + (image.random(number, 2) - 0.5) * image.boxes[:, None, 2:] for image in images
        ]
        # Of keypoints, too, images must have different numbers, and in other proportions than of objects.
        visible = [2.0 * (image.random(number, 3)[..., 2:] < VISIBLE[image.seed]) for image in images]
        return {"keypoints": torch.cat((torch.cat(places), torch.cat(visible)), 2)[..., :dimensions]}

    def _segment(self, images: list[Objects]) -> dict[str, Tensor]:
        cells = self._size // 4
        masks = overlapping(images, cells)
        classes = [torch.cat((torch.zeros(1, dtype=torch.long), image.classes)) for image in images]
        labels = {"sem_masks": torch.stack([of[mask.long()] for of, mask in zip(classes, masks)])}
        single = torch.cat([image.masks(cells) for image in images])
        overlap = getattr(self._model.args, "overlap_mask", True)
        return {**labels, "masks": masks if overlap else single}

    def _semantic(self, images: list[Objects]) -> dict[str, Tensor]:
        covered = overlapping(images, self._size).long()
        return {"semantic_mask": torch.where(covered > 0, covered % self._head.nc, IGNORED)}

    def _depth(self, images: list[Objects]) -> dict[str, Tensor]:
        return {"depth": 1.0 + overlapping(images, self._size)}
