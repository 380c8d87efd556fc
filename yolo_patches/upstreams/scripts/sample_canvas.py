"""YOLOv9's and YOLOv5's mosaic, letterbox and warp, on a canvas that is painted only where the warp looks at it.

Upstream's own code lays the images out and warps: its names of NumPy and OpenCV give it a
canvas that notes what would be painted. Whatever else it does with one is an error, and the sample is upstream's.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from functools import wraps
from typing import Any

import cv2
import numpy as np

from yolo_patches.loading.canvas import GREY, Canvas, Tile
from yolo_patches.loading.part import Part
from yolo_patches.upstreams.stack import KeepingOverlay

#: What upstream fills a polygon with on the mask of what is pasted.
FILLED = 1


class Painting:
    """What upstream takes for an image with one byte a channel, [H, W, 3], and paints parts of images on.

    Args:
        shape: Height, width and channels.
        whole: The same as upstream has it, where both are compared; None where they are not.
    """

    def __init__(self, shape: tuple[int, int, int], whole: Any) -> None:
        self.shape = shape
        self.canvas = Canvas(shape, [], whole=whole)

    def __setitem__(self, place: tuple[slice, slice], image: Any) -> None:
        rows, columns = place
        height, width = rows.stop - rows.start, columns.stop - columns.start
        if image.shape != (height, width, 3) or min(rows.start, columns.start) < 0 or image.dtype != np.uint8:
            raise ValueError("this is no part of an image")
        if self.canvas.whole is not None:
            self.canvas.whole[place] = image
        self.canvas.tiles.append(Tile(image, columns.start, rows.start, width, height, 0, 0))


class Canvases:
    """The canvases of one training's samples, in one process.

    Args:
        part: Warps them.
    """

    def __init__(self, part: Part) -> None:
        self._part = part
        self._local = threading.local()

    def samples(self, theirs: Callable[..., Any]) -> Callable[..., Any]:
        """Return a data set's `__getitem__`, in which upstream is given canvases."""

        @wraps(theirs)
        def __getitem__(dataset: Any, index: int) -> Any:  # noqa: N807 - what it is
            if self._part.off or not self._part.ways or not getattr(dataset, "augment", False):
                return theirs(dataset, index)
            before = random.getstate(), np.random.get_state()
            self._local.painting = True
            try:
                return theirs(dataset, index)
            except Exception:  # upstream's own error shows below, where there is one
                self._local.painting = False
                random.setstate(before[0])
                np.random.set_state(before[1])
                sample = theirs(dataset, index)
                self._part.failed()
                return sample
            finally:
                self._local.painting = False

        return __getitem__

    def numpy(self, library: Any) -> KeepingOverlay:
        """Return NumPy, whose `full` makes a canvas where upstream would fill one with grey."""

        def full(*args: Any, **kwargs: Any) -> Any:
            known = self._painting and len(args) == 2 and isinstance(args[0], tuple) and kwargs == {"dtype": np.uint8}
            if not (known and args[0][2:] == (3,) and isinstance(args[1], int) and args[1] == GREY):
                return library.full(*args, **kwargs)
            return Painting(args[0], None if self._part.believed else library.full(*args, **kwargs))

        return KeepingOverlay(library, full=full)

    def opencv(self, library: Any) -> KeepingOverlay:
        """Return OpenCV, whose borders are a canvas, and which warps canvases."""

        def copyMakeBorder(*args: Any, **kwargs: Any) -> Any:  # noqa: N802 - their name
            made = self._bordered(*args, **kwargs) if self._painting and set(kwargs) == {"value"} else None
            return library.copyMakeBorder(*args, **kwargs) if made is None else made

        def warpAffine(*args: Any, **kwargs: Any) -> Any:  # noqa: N802
            if not (args and isinstance(args[0], Painting)):
                return library.warpAffine(*args, **kwargs)

            def upstream(canvas: Canvas, *_: Any) -> Any:
                return library.warpAffine(canvas.painted(), *args[1:], **kwargs)

            canvas = args[0].canvas
            known = len(args) == 2 and set(kwargs) == {"dsize", "borderValue"}
            if not known or kwargs["borderValue"] != (GREY, GREY, GREY):
                return upstream(canvas)
            return self._part(upstream, canvas, args[1], tuple(kwargs["dsize"]))

        def warpPerspective(*args: Any, **kwargs: Any) -> Any:  # noqa: N802
            whole = (one.canvas.painted() if isinstance(one, Painting) else one for one in args)
            return library.warpPerspective(*whole, **kwargs)

        return KeepingOverlay(
            library, copyMakeBorder=copyMakeBorder, warpAffine=warpAffine, warpPerspective=warpPerspective
        )

    def _bordered(
        self, image: Any, top: int, bottom: int, left: int, right: int, kind: int, *, value: Any
    ) -> Painting | None:
        if kind != cv2.BORDER_CONSTANT or tuple(value) != (GREY, GREY, GREY):
            return None
        if image.dtype != np.uint8 or image.shape[2:] != (3,) or min(top, bottom, left, right) < 0:
            return None
        height, width = image.shape[:2]
        whole = None if self._part.believed else cv2.copyMakeBorder(image, top, bottom, left, right, kind, value=value)
        made = Painting((top + height + bottom, left + width + right, 3), whole)
        made.canvas.tiles.append(Tile(image, left, top, width, height, 0, 0))
        return made

    @property
    def _painting(self) -> bool:
        return getattr(self._local, "painting", False)


def paste(painting: Painting, outlines: Any, upstream: Callable[..., Any]) -> Painting:
    """Note on a canvas what is pasted on its other side.

    Args:
        painting: The canvas.
        outlines: Of what is pasted, in whole pixels, before they are mirrored.
        upstream: Pastes on a whole canvas.
    """
    canvas = painting.canvas
    if canvas.whole is not None:
        canvas.whole = upstream(canvas.whole, outlines)
    if outlines:
        mask = np.zeros(canvas.shape[:2], np.uint8)
        for outline in outlines:
            cv2.drawContours(mask, [outline], -1, FILLED, cv2.FILLED)
        canvas.pasted.append(cv2.flip(mask, 1))
    return painting
