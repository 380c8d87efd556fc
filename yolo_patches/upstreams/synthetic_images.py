"""Three images with objects for a probe of a loss: one crowded, and two with less and less."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

#: Stands among the images for one without objects.
EMPTY = -1
#: Sides of each image's objects, as a part of the image's. At its first weights a head predicts boxes larger than a
#: small image, by distributions or without; only objects of all sizes overlap them for certain, and have target scores.
SIDES = ([0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.2, 3.0] * 3, [0.3, 0.6, 1.2, 1.8, 2.6], [0.4, 2.0])


@dataclass(frozen=True)
class Objects:
    """The objects of one image.

    Attributes:
        classes: Class of each object, [objects].
        boxes: Centre and sides as parts of the image, [objects, 4].
        seed: Seeds what else is drawn for them.
    """

    classes: Tensor
    boxes: Tensor
    seed: int = 0

    def __len__(self) -> int:
        return len(self.classes)

    def masks(self, cells: int) -> Tensor:
        """Return each object's mask, its box on a grid of cells, [objects, cells, cells]."""
        masks = torch.zeros(len(self), cells, cells)
        for mask, (x, y, w, h) in zip(masks, (self.boxes * cells).tolist()):
            rows, columns = ((max(round(c - s / 2), 0), max(round(c + s / 2), 0)) for c, s in ((y, h), (x, w)))
            mask[slice(*rows), slice(*columns)] = 1
        return masks

    def random(self, *shape: int) -> Tensor:
        """Return numbers between 0 and 1 for each object: always the same for the same image."""
        return torch.rand(len(self), *shape, generator=torch.Generator().manual_seed(self.seed))


def objects(classes: int) -> list[Objects]:
    """Return the objects of the images 0, 1 and 2; the last one of the list, at `EMPTY`, has none."""
    generator = torch.Generator().manual_seed(0)
    images = []
    for seed, sides in enumerate(SIDES):
        centres = torch.rand(len(sides), 2, generator=generator) * 0.8 + 0.1
        shape = torch.rand(len(sides), generator=generator) * 0.5 + 0.75
        boxes = torch.stack((torch.tensor(sides) * shape, torch.tensor(sides) / shape), 1)
        drawn = torch.randint(max(classes, 1), (len(sides),), generator=generator)
        images.append(Objects(drawn, torch.cat((centres, boxes), 1), seed))
    return [*images, Objects(torch.zeros(0, dtype=torch.long), torch.zeros(0, 4), seed=EMPTY)]


def pixels(channels: int, size: int) -> Tensor:
    """Return the images, [3, channels, size, size]: noise, darker to the lower right and from image to image."""
    ramp = torch.linspace(1, 0.3, size)
    noise = torch.rand(len(SIDES), channels, size, size, generator=torch.Generator().manual_seed(1))
    return noise * ramp * ramp[:, None] * torch.linspace(1, 0.2, len(SIDES))[:, None, None, None]


def owners(images: Sequence[Objects]) -> Tensor:
    """Return the number of its image for each object of a batch."""
    return torch.repeat_interleave(torch.arange(len(images)), torch.tensor([len(image) for image in images]))


def overlapping(images: Sequence[Objects], cells: int) -> Tensor:
    """Return one mask for each image, in which the number of an object, from 1, covers those before it."""
    numbers = [image.masks(cells) * torch.arange(1, len(image) + 1)[:, None, None] for image in images]
    return torch.stack([each.max(0).values if len(each) else torch.zeros(cells, cells) for each in numbers])


def predicted(predictions: Any, images: Tensor, layered: bool = False) -> Any:
    """Return the predictions for some images, of all that lie in tuples, lists and dictionaries.

    Args:
        predictions: Those for the images 0, 1 and 2.
        images: Numbers of images.
        layered: Whether tensors of four dimensions are RT-DETR's [layers, images, queries, values].
    """
    if isinstance(predictions, dict):
        return {name: predicted(part, images, layered) for name, part in predictions.items()}
    if isinstance(predictions, (tuple, list)):
        return type(predictions)(predicted(part, images, layered) for part in predictions)
    if not isinstance(predictions, Tensor) or not predictions.dim():
        return predictions
    return predictions.index_select(1 if layered and predictions.dim() == 4 else 0, images)
