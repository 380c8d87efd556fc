"""Operations on the pixels of one transform of Ultralytics', with ours in their place."""

from __future__ import annotations

import random
from copy import copy
from functools import partial
from typing import Any

import numpy as np
import torch

from yolo_patches.loading.part import Part
from yolo_patches.upstreams.ultralytics.origin import is_upstreams


class Standing:
    """What stands in for a method of one transform.

    Args:
        transform: Whose method it is.
        method: Its name.
        part: Does the work.
    """

    def __init__(self, transform: Any, method: str, part: Part) -> None:
        self._transform = transform
        self._method = method
        self._part = part


class Planes(Standing):
    """Upstream's `_format_img`, with our operation on the pixels."""

    def __init__(self, transform: Any, method: str, part: Part) -> None:
        super().__init__(transform, method, part)
        before = random.getstate()
        self._upstream(np.zeros((1, 1, 3), np.uint8))
        self._draws = random.getstate() != before  # whether the order of channels is left to chance
        random.setstate(before)

    def __call__(self, image: Any) -> Any:
        """Return the image as a tensor [C, H, W]."""
        if self._part.off or image.ndim != 3 or image.shape[2] != 3:
            return self._upstream(image)
        before = random.getstate() if self._draws else None

        def upstream(image: Any, _: bool) -> Any:
            if before is not None:
                random.setstate(before)
            return self._upstream(image).numpy()

        swapped = not self._draws or random.uniform(0, 1) > self._transform.bgr
        return torch.from_numpy(self._part(upstream, image, swapped))

    def _upstream(self, image: Any) -> Any:
        return type(self._transform)._format_img(self._transform, image)


class Blend(Standing):
    """Upstream's step of a transform that blends two images, with our operation on the pixels.

    The step is `apply_image`, or before 8.4.100 or so `_mix_transform`, which draws and joins labels, too.
    """

    def __call__(self, labels: Any, *params: Any) -> Any:
        """Blend `labels["img"]` with the image that is to be mixed in."""
        whole = partial(getattr(type(self._transform), self._method), self._transform)
        if self._part.off:
            return whole(labels, *params)
        others = labels["mix_labels"]
        image, other = labels["img"], others[0]["img"]
        before = np.random.get_state()

        def upstream(image: Any, other: Any, _: float) -> Any:
            np.random.set_state(before)
            return whole({**labels, "mix_labels": [{**others[0], "img": other}]}, *params)["img"]

        share = params[0]["r"] if params else np.random.beta(32.0, 32.0)
        blended = self._part(upstream, image, other, share)
        if not params:  # labels are joined, and numbers drawn, where no pixel is computed
            np.random.set_state(before)
            nothing = image[:0]
            labels["img"], others[0]["img"] = nothing, nothing
            labels = whole(labels)
        labels["img"] = blended
        return labels


class Colours(Standing):
    """Upstream's `apply_image` of the transform that changes colours, with our operation on the pixels."""

    def __call__(self, labels: Any, params: Any = None) -> Any:
        """Change the colours of `labels["img"]`."""
        one = self._transform
        whole = partial(type(one).apply_image, one)
        if self._part.off:
            return whole(labels, params)
        image, gains = labels["img"], [one.hgain, one.sgain, one.vgain]
        if image.shape[-1] != 3 or not any(gains):
            return whole(labels, params)
        before = np.random.get_state()

        def upstream(image: Any, _: Any) -> Any:
            np.random.set_state(before)
            return whole({**labels, "img": image.copy()}, params)["img"]

        labels["img"] = self._part(upstream, image, np.random.uniform(-1, 1, 3) * gains)
        return labels


class Shares(Standing):
    """Upstream's `apply_instances` of the last transform, with our operation on its boxes."""

    def __call__(self, labels: Any, params: Any = None) -> Any:
        """Make tensors of the objects."""
        one = self._transform
        if self._part.off or not one.normalize or one.return_keypoint or one.return_obb or not params["nl"]:
            return type(one).apply_instances(one, labels, params)
        pixels = copy(one)  # not the transform itself: another thread may be using it
        pixels.normalize = False
        labels = type(one).apply_instances(pixels, labels, params)

        def upstream(boxes: Any, width: int, height: int) -> Any:
            found = torch.from_numpy(boxes.copy())
            found[:, [0, 2]] /= width
            found[:, [1, 3]] /= height
            return found.numpy()

        boxes = self._part(upstream, labels["bboxes"].numpy(), params["w"], params["h"])
        labels["bboxes"] = torch.from_numpy(boxes)
        return labels


#: Part, the class of upstream's transform that has it, the names of the method in releases, and what stands in.
OPERATIONS = (
    ("planes", "Format", ("_format_img",), Planes),
    ("blend", "MixUp", ("apply_image", "_mix_transform"), Blend),
    ("colours", "RandomHSV", ("apply_image",), Colours),
    ("shares", "Format", ("apply_instances",), Shares),
)
#: Methods of transforms that must be upstream's own for it to be known.
METHODS = (
    *("__call__", "get_params", "apply_image", "apply_instances", "apply_bboxes", "apply_segments"),
    *("_format_img", "_mix_transform", "_cat_labels", "_update_labels"),
)


def is_known(transform: Any) -> bool:
    """Return whether a transform is upstream's own, and nobody has replaced its methods."""
    kind = type(transform)
    return kind.__module__ == "ultralytics.data.augment" and all(
        is_upstreams(getattr(kind, name)) and name not in vars(transform) for name in METHODS if hasattr(kind, name)
    )
