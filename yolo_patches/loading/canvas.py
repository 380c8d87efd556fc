"""A mosaic that is painted only where the warp that follows looks at it.

It has a fourth channel, which nobody reads: OpenCV's operations on four are more than twice as fast as on three.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

#: What upstream paints where no image lies.
GREY = 114
#: Pixels around what the corners of the warped image show: interpolation looks at one more, rounding is far below one.
AROUND = 3
#: One canvas a thread, painted again for every sample.
_kept = threading.local()


@dataclass(frozen=True)
class Tile:
    """A part of an image on the canvas.

    Attributes:
        image: [H, W, C].
        left: Of the part on the canvas, in pixels; so `top`.
        top: See `left`.
        width: Of the part; so `height`.
        height: See `width`.
        x: Where in the image the part begins; so `y`.
        y: See `x`.
    """

    image: Any
    left: int
    top: int
    width: int
    height: int
    x: int
    y: int


@dataclass
class Canvas:
    """What upstream's canvas would hold, with the shape that everything else asks for.

    Attributes:
        shape: Height, width and channels.
        tiles: In the order in which they are painted.
        pasted: Masks, each [H, W]: where one is not 0, what is on the mirrored canvas is painted over it.
        whole: The canvas as upstream has painted it, where both are compared.
    """

    shape: tuple[int, int, int]
    tiles: list[Tile]
    pasted: list[Any] = field(default_factory=list)
    whole: Any = None

    def painted(self) -> Any:
        """Return the whole canvas, [H, W, 3]."""
        if self.whole is not None:
            return self.whole
        image = np.empty((*self.shape[:2], 4), np.uint8)
        self._paint(image, (0, 0, self.shape[1], self.shape[0]))
        for mask in self.pasted:
            cv2.copyTo(cv2.flip(image, 1), mask, image)
        return cv2.cvtColor(image, cv2.COLOR_BGRA2BGR)

    def seen(self, window: tuple[int, int, int, int]) -> Any:
        """Return an array, [H, W, 4], that holds what is on the canvas within a window, and anything outside.

        Args:
            window: Left, top, right and bottom, within the canvas.
        """
        image = getattr(_kept, "image", None)
        if image is None or image.shape[:2] != self.shape[:2]:
            image = _kept.image = np.empty((*self.shape[:2], 4), np.uint8)
        self._paint(image, window)
        self._paste(image, window)
        return image

    def cut(self, window: tuple[int, int, int, int]) -> Any:
        """Return what is within a window, [H, W, 3], which may reach beyond the canvas.

        Args:
            window: Left, top, right and bottom.
        """
        left, top, right, bottom = window
        image = np.empty((bottom - top, right - left, 3), np.uint8)
        self._paint(image, window, (left, top))
        within = max(left, 0), max(top, 0), min(right, self.shape[1]), min(bottom, self.shape[0])
        self._paste(image, within, (left, top))
        return image

    def _paste(self, image: Any, window: tuple[int, int, int, int], origin: tuple[int, int] = (0, 0)) -> None:
        """Paint what is pasted within a window of the canvas; see `_paint`."""
        left, top, right, bottom = window
        for mask in self.pasted if left < right and top < bottom else ():
            x, y, width, height = cv2.boundingRect(mask[top:bottom, left:right])
            if width:
                x, y, mirrored = x + left, y + top, self.shape[1] - x - left - width
                behind = np.empty((height, width, image.shape[2]), np.uint8)
                self._paint(behind, (mirrored, y, mirrored + width, y + height), (mirrored, y))
                place = image[y - origin[1] : y - origin[1] + height, x - origin[0] : x - origin[0] + width]
                cv2.copyTo(cv2.flip(behind, 1), mask[y : y + height, x : x + width], place)

    def _paint(self, image: Any, window: tuple[int, int, int, int], origin: tuple[int, int] = (0, 0)) -> None:
        """Paint a window of the canvas onto an image whose first pixel is the canvas's at `origin`."""
        left, top, right, bottom = window
        parts = []
        for tile in self.tiles:
            x1, x2 = max(tile.left, left), min(tile.left + tile.width, right)
            y1, y2 = max(tile.top, top), min(tile.top + tile.height, bottom)
            if x1 < x2 and y1 < y2:
                parts.append((tile, x1, y1, x2, y2))
        if sum((x2 - x1) * (y2 - y1) for _, x1, y1, x2, y2 in parts) < (right - left) * (bottom - top):
            image[top - origin[1] : bottom - origin[1], left - origin[0] : right - origin[0]] = GREY
        for tile, x1, y1, x2, y2 in parts:
            y, x = y1 - tile.top + tile.y, x1 - tile.left + tile.x
            place = image[y1 - origin[1] : y2 - origin[1], x1 - origin[0] : x2 - origin[0]]
            part = tile.image[y : y + y2 - y1, x : x + x2 - x1]
            if image.shape[2] == 3:
                place[:] = part
            else:
                cv2.cvtColor(part, cv2.COLOR_BGR2BGRA, dst=place)


def warped(canvas: Canvas, matrix: Any, size: tuple[int, int]) -> Any:
    """Warp a canvas of which no more is painted than the result shows.

    Args:
        canvas: Of bytes.
        matrix: Affine, [2, 3], from the canvas to the result.
        size: Width and height of the result.

    Returns:
        [H, W, 3]; None where the matrix is none that can be looked through backwards.
    """
    window = shown(matrix, size, canvas.shape)
    if window is None or any(tile.image.dtype != np.uint8 or tile.image.shape[2:] != (3,) for tile in canvas.tiles):
        return None
    image = cv2.warpAffine(canvas.seen(window), matrix, dsize=size, borderValue=(GREY,) * 4)
    return cv2.cvtColor(image, cv2.COLOR_BGRA2BGR)


def shown(matrix: Any, size: tuple[int, int], shape: tuple[int, ...]) -> tuple[int, int, int, int] | None:
    """Return the window of a canvas that a warp's result shows: left, top, right, bottom, all within the canvas."""
    inverse = cv2.invertAffineTransform(np.asarray(matrix, np.float64))
    corners = np.array([(x, y, 1) for x in (0, size[0] - 1) for y in (0, size[1] - 1)], np.float64)
    places = corners @ inverse.T
    if not np.isfinite(places).all() or not inverse[:, :2].any():
        return None
    low, high = np.floor(places.min(0)) - AROUND, np.ceil(places.max(0)) + AROUND + 1
    (left, top), (right, bottom) = (np.clip(ends, 0, (shape[1], shape[0])).astype(int).tolist() for ends in (low, high))
    return left, top, right, bottom


#: The one way of all releases.
WAYS = (warped,)
