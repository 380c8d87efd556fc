"""Functions of Ultralytics' that transforms call by name, with ours in their place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from importlib import import_module
from typing import Any

import numpy as np

from yolo_patches.loading.part import COMPARED, Part
from yolo_patches.upstreams.ultralytics.origin import is_upstreams

#: Part -> upstream's function, and the modules that call it by name.
FUNCTIONS = {
    "polygons": ("resample_segments", ("ultralytics.data.dataset", "ultralytics.utils.instance")),
    "masks": ("polygons2masks_overlap", ("ultralytics.data.augment",)),
    "separate masks": ("polygons2masks", ("ultralytics.data.augment",)),
}


def settle_polygons(part: Part) -> None:
    """Find the way of this release where it can be told from the others: with fewer corners than points."""
    name, modules = FUNCTIONS["polygons"]
    ours = _resample(part, vars(functions(name, modules)[0])[name])
    for corners in range(3, 3 + COMPARED):
        ours([np.linspace(0, 1, 2 * corners, dtype=np.float32).reshape(corners, 2) ** 2], n=20)


def _resample(part: Part, theirs: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(theirs)
    def resample_segments(segments: Any, n: int = 1000) -> Any:
        if not isinstance(segments, list):
            return theirs(segments, n)
        segments[:] = part(lambda segments, n: theirs(list(segments), n), segments, n)
        return segments

    return resample_segments


def _overlap(part: Part, theirs: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(theirs)
    def polygons2masks_overlap(imgsz: Any, segments: Any, downsample_ratio: int = 1) -> Any:
        return part(theirs, imgsz, segments, downsample_ratio)

    return polygons2masks_overlap


def _separate(part: Part, theirs: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(theirs)
    def polygons2masks(imgsz: Any, polygons: Any, color: int, downsample_ratio: int = 1) -> Any:
        if color != 1:
            return theirs(imgsz, polygons, color, downsample_ratio)
        return part(lambda size, segments, ratio: theirs(size, segments, 1, ratio), imgsz, polygons, downsample_ratio)

    return polygons2masks


CALLS = {"polygons": _resample, "masks": _overlap, "separate masks": _separate}


def functions(name: str, modules: Sequence[str]) -> list[Any]:
    """Return the modules that have upstream's own function under a name."""
    found = [import_module(module) for module in modules]
    return [module for module in found if is_upstreams(vars(module).get(name))]
