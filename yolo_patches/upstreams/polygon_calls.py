"""Functions on polygons that Ultralytics, YOLOv9 and YOLOv5 have under one name, with ours in their place."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any

from yolo_patches.loading.part import Part


def resample(part: Part, theirs: Callable[..., Any]) -> Callable[..., Any]:
    """Return `resample_segments`, which replaces the entries of the list that it is given, by a part."""

    @wraps(theirs)
    def resample_segments(segments: Any, n: int = 1000) -> Any:
        if not isinstance(segments, list):
            return theirs(segments, n)
        segments[:] = part(lambda segments, n: theirs(list(segments), n), segments, n)
        return segments

    return resample_segments


def overlap(part: Part, theirs: Callable[..., Any]) -> Callable[..., Any]:
    """Return `polygons2masks_overlap` by a part."""
    signature = inspect.signature(theirs)

    @wraps(theirs)
    def polygons2masks_overlap(*args: Any, **kwargs: Any) -> Any:
        call = signature.bind(*args, **kwargs)
        call.apply_defaults()
        return part(theirs, *call.args)

    return polygons2masks_overlap


def separate(part: Part, theirs: Callable[..., Any]) -> Callable[..., Any]:
    """Return `polygons2masks` by a part, which draws in colour 1."""
    signature = inspect.signature(theirs)

    @wraps(theirs)
    def polygons2masks(*args: Any, **kwargs: Any) -> Any:
        call = signature.bind(*args, **kwargs)
        call.apply_defaults()
        if len(call.args) != 4 or call.args[2] != 1:  # another colour, or a release that takes something else
            return theirs(*args, **kwargs)
        size, polygons, _, ratio = call.args
        return part(lambda size, polygons, ratio: theirs(size, polygons, 1, ratio), size, polygons, ratio)

    return polygons2masks
