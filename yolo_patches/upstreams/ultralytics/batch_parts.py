"""A part of one of Ultralytics' micro-batches: some of its images, with their labels."""

from __future__ import annotations

from typing import Any

from torch import Tensor

#: What has a row for every object; `batch_idx` says whose each is.
OF_OBJECTS = ("batch_idx", "cls", "bboxes", "keypoints", "segments")
#: One mask an image where masks overlap, one an object otherwise.
MASKS = "masks"


def images(batch: Any) -> int:
    """Return how many images a batch has; 0 where it is none that we know."""
    # Not `batch.get`: a batch may be one whose images are done when they are asked for, and only their number is.
    pixels = dict.get(batch, "img") if isinstance(batch, dict) else None
    return len(pixels) if isinstance(pixels, Tensor) and pixels.dim() == 4 else 0


def part(batch: dict[str, Any], start: int, stop: int, overlap: bool) -> dict[str, Any]:
    """Return the images from `start` to `stop` of a batch, and what belongs to them.

    Args:
        batch: As the trainer's preprocessing returns it.
        start: Number of the first image.
        stop: Number of the one after the last.
        overlap: Whether masks are one an image.

    Raises:
        ValueError: Something in the batch belongs neither to images nor to objects.
    """
    number, owner = images(batch), batch.get("batch_idx")
    mine = None if owner is None else (owner >= start) & (owner < stop)
    made = {}
    for name, value in batch.items():
        of_objects = mine is not None and (name in OF_OBJECTS or (name == MASKS and not overlap))
        if mine is not None and name == "batch_idx":
            made[name] = value[mine] - start
        elif mine is not None and of_objects and isinstance(value, Tensor) and len(value) == len(mine):
            made[name] = value[mine.to(value.device)]
        elif value is None or isinstance(value, (str, int, float)):
            made[name] = value
        elif not of_objects and _length(value) == number:
            made[name] = value[start:stop]
        else:
            raise ValueError(f"batch[{name!r}] belongs neither to the {number} images nor to their objects")
    return made


def _length(value: Any) -> int:
    if isinstance(value, Tensor):
        return len(value) if value.dim() else -1
    return len(value) if isinstance(value, (list, tuple)) else -1


def shape(batch: dict[str, Any]) -> str:
    """Return the size of a batch's images, as text."""
    height, width = batch["img"].shape[-2:]
    return f"{height} x {width} pixels"


def same_batch(arguments: tuple[Any, ...], batch: Any) -> bool:
    """Return whether a model is called with this batch, or DistributedDataParallel's copy of it, and nothing else."""
    if len(arguments) != 1 or not isinstance(arguments[0], dict):
        return False
    return arguments[0] is batch or arguments[0].get("img") is batch["img"]
