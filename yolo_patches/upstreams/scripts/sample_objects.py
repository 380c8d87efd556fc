"""The boxes that YOLOv9's and YOLOv5's warp leaves of polygons, all at once."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import numpy as np

from yolo_patches.loading.part import Part
from yolo_patches.upstreams.stack import KeepingOverlay

#: What upstream warps to no effect, where the box is known.
NOTHING = np.zeros((0, 2))


class _Warp:
    """What one call of upstream's warp comes by.

    Attributes:
        matrix: Of the warp, [2, 3], and the width and height of its result; None before it has warped the image.
        polygons: Those of which it wants boxes, and with how many points; None where it does not ask for them.
        boxes: What it is given for them; None where it computes them itself.
        found: The boxes it has computed.
    """

    def __init__(self) -> None:
        self.matrix: tuple[Any, tuple[int, int]] | None = None
        self.polygons: tuple[list[Any], int] | None = None
        self.boxes: Iterator[Any] | None = None
        self.found: list[Any] = []


class Boxes:
    """The boxes of one training's warped polygons, in one process.

    Args:
        part: Computes them.
    """

    def __init__(self, part: Part) -> None:
        self._part = part
        self._local = threading.local()

    def warp(self, theirs: Callable[..., Any]) -> Callable[..., Any]:
        """Return `random_perspective`, which computes no box of its own."""

        @wraps(theirs)
        def random_perspective(im: Any, targets: Any = (), segments: Any = (), *args: Any, **kwargs: Any) -> Any:
            if self._part.off or not self._part.ways or not len(targets) or not len(segments):
                return theirs(im, targets, segments, *args, **kwargs)
            before = random.getstate()
            self._local.warp = warp = _Warp()
            try:
                result = theirs(im, targets, list(segments), *args, **kwargs)
                self._check(warp)
            except Exception:  # upstream's own error shows below, where there is one
                self._local.warp = None
                random.setstate(before)
                result = theirs(im, targets, segments, *args, **kwargs)
                self._part.failed()
            finally:
                self._local.warp = None
            return result

        return random_perspective

    def _check(self, warp: _Warp) -> None:
        """Compare what upstream has computed, or see that it has taken what it was given.

        Raises:
            LookupError: It has not.
        """
        if warp.boxes is not None:
            if next(warp.boxes, None) is not None:
                raise LookupError("upstream has not asked for every box")
        elif warp.polygons is not None and warp.matrix is not None and len(warp.found) == len(warp.polygons[0]):
            self._part(lambda *_: np.concatenate(warp.found), *warp.polygons, *warp.matrix)

    def resample(self, theirs: Callable[..., Any]) -> Callable[..., Any]:
        """Return `resample_segments`, which leaves nothing to be warped where the boxes are known."""

        @wraps(theirs)
        def resample_segments(segments: Any, n: int = 1000) -> Any:
            warp = self._warp
            if warp is None or warp.matrix is None:
                return theirs(segments, n)
            warp.polygons = list(segments), n
            boxes = self._part(lambda *_: None, *warp.polygons, *warp.matrix) if self._part.believed else None
            if boxes is None:
                return theirs(segments, n)
            warp.boxes = iter(boxes)
            return [NOTHING] * len(segments)

        return resample_segments

    def box(self, theirs: Callable[..., Any]) -> Callable[..., Any]:
        """Return `segment2box`, which knows the box."""

        @wraps(theirs)
        def segment2box(segment: Any, width: int = 640, height: int = 640) -> Any:
            warp = self._warp
            if warp is not None and warp.boxes is not None:
                return next(warp.boxes)
            box = theirs(segment, width, height)
            if warp is not None:
                warp.found.append(np.reshape(box, (1, 4)))
            return box

        return segment2box

    def opencv(self, library: Any) -> KeepingOverlay:
        """Return OpenCV, which tells how an image has been warped."""

        def warpAffine(*args: Any, **kwargs: Any) -> Any:  # noqa: N802 - their name
            warp = self._warp
            if warp is not None and len(args) == 2 and "dsize" in kwargs:
                warp.matrix = args[1], tuple(kwargs["dsize"])
            return library.warpAffine(*args, **kwargs)

        return KeepingOverlay(library, warpAffine=warpAffine)

    @property
    def _warp(self) -> _Warp | None:
        return getattr(self._local, "warp", None)
