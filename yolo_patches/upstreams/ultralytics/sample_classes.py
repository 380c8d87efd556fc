"""Ultralytics' classification samples: torchvision's transforms, whose last numbers are made by a part."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from yolo_patches.loading.part import Part
from yolo_patches.upstreams.ultralytics.origin import is_upstreams

#: The name of the part.
NUMBERS = "numbers"
#: Set on a tensor whose numbers are normalised already.
DONE = "_yolo_patches_normalised"


def chain(dataset: Any) -> list[Any]:
    """Return the steps of a data set's transforms; empty where they are none of torchvision's."""
    found = getattr(dataset, "torch_transforms", None) if is_upstreams(dataset) else None
    return found.transforms if found is not None and _is(found, "Compose") else []


def last_steps(steps: list[Any]) -> tuple[Any, Any] | None:
    """Return of some steps the two that make numbers of an image and normalise them, where they follow each other."""
    for one, two in zip(steps, steps[1:]):
        if _is(one, "ToTensor") and _is(two, "Normalize"):
            return one, two
    return None


def place(dataset: Any, part: Part) -> None:
    """Have a part make the numbers of a data set's samples."""
    steps = chain(dataset)
    found = last_steps(steps)
    if found is not None:
        first, second = found
        numbers = Numbers(first, second, steps, part)
        second.forward = Normalised(second)
        steps[steps.index(first)] = numbers


def _is(value: Any, name: str) -> bool:
    """Return whether something is torchvision's own, of that name."""
    return type(value).__name__ == name and type(value).__module__.startswith("torchvision.transforms.")


class Numbers:
    """torchvision's `ToTensor`, which normalises, too, as long as the step that does so follows.

    Args:
        upstreams: torchvision's.
        following: Its `Normalize`.
        steps: Of which it is one.
        part: Does the work.
    """

    def __init__(self, upstreams: Any, following: Any, steps: list[Any], part: Part) -> None:
        self.upstreams = upstreams
        self.following = following
        self._steps = steps
        self._part = part

    def __call__(self, picture: Any) -> Any:
        """Return a picture as a tensor, [3, H, W]."""
        upcoming = [two for one, two in zip(self._steps, self._steps[1:]) if one is self]
        if upcoming != [self.following] or self._part.off or "forward" not in vars(self.following):
            return self.upstreams(picture)

        def upstream(*_: Any) -> Any:
            return type(self.following).forward(self.following, self.upstreams(picture)).numpy()

        values = ([float(value) for value in getattr(self.following, name)] for name in ("mean", "std"))
        tensor = torch.from_numpy(self._part(upstream, np.asarray(picture), *values))
        setattr(tensor, DONE, True)
        return tensor

    def __repr__(self) -> str:
        return repr(self.upstreams)


class Normalised:
    """torchvision's `Normalize`, which leaves alone what has been normalised.

    Args:
        upstreams: torchvision's.
    """

    def __init__(self, upstreams: Any) -> None:
        self._upstreams = upstreams

    def __call__(self, tensor: Any) -> Any:
        """Normalise a tensor."""
        if vars(tensor).pop(DONE, False):
            return tensor
        return type(self._upstreams).forward(self._upstreams, tensor)
