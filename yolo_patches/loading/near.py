"""Pixels within a rounding or so of upstream's, for less work: a warp that only scales, colours and blends at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np

from yolo_patches.loading import blend as blends
from yolo_patches.loading import canvas as canvases
from yolo_patches.loading import colours
from yolo_patches.loading.canvas import GREY, Canvas
from yolo_patches.loading.colours import CUT, ROWS

#: Columns (or rows) more than the result has, among which one is looked for that lies where `cv2.resize` has its first.
EXTRA = 64
#: Pixels of the canvas by which the first that is found may lie beside, and by which the best may.
BESIDE, MOST = 1 / 64, 1 / 48
#: Pixels of the canvas beyond the last one that is shown: the last of all is what `cv2.resize` repeats.
BEYOND = 3
#: Sectors of hues, of 180, that a table may turn by.
HUES = 60


def scaled(canvas: Canvas, matrix: Any, size: tuple[int, int]) -> Any:
    """Warp a canvas by scaling a cut-out of it, as `canvas.warped` does with any matrix.

    Args:
        canvas: Of bytes.
        matrix: Affine, [2, 3], from the canvas to the result.
        size: Width and height of the result.

    Returns:
        [H, W, 3]; None where the matrix does more than scale and move, or nothing of the scaled lies where it should.
    """
    if matrix[0][1] or matrix[1][0]:
        return None
    if any(tile.image.dtype != np.uint8 or tile.image.shape[2:] != (3,) for tile in canvas.tiles):
        return None
    across, down = (_axis(matrix[i][i], matrix[i][2], size[i], canvas.shape[1 - i]) for i in (0, 1))
    if across is None or down is None:
        return None
    (left, width, x, right), (top, height, y, bottom) = across, down
    if (round(width * matrix[0][0]), round(height * matrix[1][1])) == (width, height):
        return None  # `cv2.resize` would copy, whatever the scale
    cut = canvas.cut((left, top, left + width, top + height))
    whole = cv2.resize(cut, None, fx=matrix[0][0], fy=matrix[1][1], interpolation=cv2.INTER_LINEAR)
    covered = slice(max(y, 0), bottom), slice(max(x, 0), right)
    shown = whole[covered[0].start - y : bottom - y, covered[1].start - x : right - x]
    if shown.shape[:2] == (size[1], size[0]):
        return shown
    result = np.empty((size[1], size[0], 3), np.uint8)
    result[:] = GREY
    result[covered] = shown
    return result


def _axis(scale: float, move: float, length: int, extent: int) -> tuple[int, int, int, int] | None:
    """Return what is cut out and where it comes to lie, along one axis.

    Args:
        scale: Pixels of the result for one of the canvas.
        move: Where in the result the canvas begins.
        length: Of the result.
        extent: Of the canvas.

    Returns:
        Where on the canvas the cut-out begins, its length, where in the result it begins, and where it ends there: it
        holds all of the canvas that is seen, and a little grey around. None where there is none to be had.
    """
    if not scale > 0:
        return None
    first = int(np.floor(np.clip(move - BEYOND * scale, 0, length)))
    last = int(np.ceil(np.clip(move + (extent + BEYOND) * scale, 0, length)))
    if first >= last:
        return None
    starts = first - np.arange(EXTRA)
    places = (starts - move) / scale + 0.5 - 0.5 / scale
    beside = np.abs(places - np.rint(places))
    best = int((beside <= BESIDE).argmax())
    best = best if beside[best] <= BESIDE else int(beside.argmin())
    if beside[best] > MOST:
        return None
    start = int(starts[best])
    return int(np.rint(places[best])), int(np.ceil((last - start) / scale)) + BEYOND, start, last


def recoloured(image: Any, gains: Any) -> Any:
    """Change an image as `colours.recoloured` does, all three channels in one operation.

    Args:
        image: Bytes, [H, W, 3], blue first.
        gains: Of hue (a part of the whole circle), saturation and value, between -1 and 1.

    Returns:
        Bytes, [H, W, 3]; None where the image is none that can be changed.
    """
    turn = int(np.floor(gains[0] * 180))  # upstream cuts off what is left of a step
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size or abs(turn) > HUES:
        return None
    # Bytes end at 0, but hues go round: to turn back is to turn forth with red and blue exchanged.
    there, back = (cv2.COLOR_RGB2HSV, cv2.COLOR_HSV2RGB) if turn < 0 else (cv2.COLOR_BGR2HSV, cv2.COLOR_HSV2BGR)
    change = np.array([[1, 0, 0, abs(turn)], [0, 1 + gains[1], 0, CUT], [0, 0, 1 + gains[2], CUT]], np.float32)
    result = np.empty(image.shape, np.uint8)
    kept = np.empty((ROWS, *image.shape[1:]), np.uint8)
    for top in range(0, len(image), ROWS):
        rows = slice(top, min(top + ROWS, len(image)))
        some = kept[: rows.stop - top]
        cv2.cvtColor(image[rows], there, dst=some)
        cv2.transform(some, change, dst=some)
        cv2.cvtColor(some, back, dst=result[rows])
    return result


def blend(image: Any, other: Any, share: float) -> Any:
    """Return `image * share + other * (1 - share)` as `blend.blend` does, in one operation of single precision."""
    if image.dtype != np.uint8 or other.dtype != np.uint8 or image.shape != other.shape or not image.size:
        return None
    return cv2.addWeighted(image, share, other, 1 - share, CUT)


#: Exact way -> what is nearly the same for less work.
WAYS: dict[Callable[..., Any], Callable[..., Any]] = {
    canvases.warped: scaled,
    colours.recoloured: recoloured,
    blends.blend: blend,
}
