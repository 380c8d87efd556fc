"""Boxes of a mosaic, and of what a warp leaves of them: the arithmetic of upstream's objects on plain arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from yolo_patches.loading.outlines import Outline, bounds, drawn

#: What a warp must leave of an object: pixels in width and height, long side by short side, and of the area where it
#: is known by its box, or by its outline.
SMALLEST, LONGEST, OF_BOX, OF_OUTLINE = 2, 100, 0.1, 0.01
#: Beside what is divided by.
TINY = 1e-16


def tiled(boxes: Any, tiles: Sequence[tuple[int, int, int, int, int]], side: int) -> Any:
    """Put boxes of several images onto a mosaic.

    Args:
        boxes: Of all images, one after the other, centre and size as shares of their images, [N, 4].
        tiles: Of each image how many boxes it has, its width and height in pixels, and by how much it is moved.
        side: Of the mosaic, in pixels.

    Returns:
        Corners in pixels of the objects of which anything is on the mosaic, [n, 4], and their numbers, [n].
    """
    half = boxes[:, 2:] / 2
    corners = np.concatenate((boxes[:, :2] - half, boxes[:, :2] + half), 1)
    first = 0
    for count, width, height, x, y in tiles:
        some = corners[first : first + count]
        some[:, 0::2] *= width
        some[:, 1::2] *= height
        some[:, 0::2] += x
        some[:, 1::2] += y
        first += count
    np.clip(corners, 0, side, out=corners)
    (kept,) = np.nonzero((corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1]) > 0)
    return corners[kept], kept


def warped(
    boxes: Any, outlines: Sequence[Outline] | None, matrix: Any, size: tuple[int, int], scale: float, points: bool
) -> Any:
    """Warp objects, and keep those of which enough is left.

    Args:
        boxes: Corners before the warp, in pixels, [N, 4].
        outlines: The objects' outlines, or None where they have none.
        matrix: Of the warp, [3, 3], affine; with outlines neither turned nor sheared.
        size: Width and height of the result.
        scale: By which the warp enlarges.
        points: Whether the outlines are wanted.

    Returns:
        Corners after the warp, the numbers of the objects that are kept, and their outlines, [n, points, 2], or an
        empty array.
    """
    found = _moved(boxes, matrix) if outlines is None else bounds(outlines, matrix, size)
    found[:, 0::2] = found[:, 0::2].clip(0, size[0])
    found[:, 1::2] = found[:, 1::2].clip(0, size[1])
    before = boxes * np.asarray(scale, boxes.dtype)
    width, height = before[:, 2] - before[:, 0], before[:, 3] - before[:, 1]
    left, top = found[:, 2] - found[:, 0], found[:, 3] - found[:, 1]
    longest = np.maximum(left / (top + TINY), top / (left + TINY))
    share = left * top / (width * height + TINY)
    enough = share > (OF_BOX if outlines is None else OF_OUTLINE)
    (kept,) = np.nonzero((left > SMALLEST) & (top > SMALLEST) & enough & (longest < LONGEST))
    found = found[kept]
    if outlines is None or not points:
        return found, kept, np.zeros((0, 0, 2), np.float32)
    return found, kept, drawn([outlines[index] for index in kept.tolist()], matrix, size, found)


def shares(boxes: Any, width: int, height: int) -> Any:
    """Return boxes in pixels, [N, 4], as shares of an image's width and height."""
    result = np.array(boxes)
    result[:, 0::2] /= width
    result[:, 1::2] /= height
    return result


#: The one way of all releases, each.
SHARES = (shares,)
TILED = (tiled,)
WARPED = (warped,)


def _moved(boxes: Any, matrix: Any) -> Any:
    """Return the boxes around warped boxes."""
    corners = np.ones((len(boxes) * 4, 3), boxes.dtype)
    corners[:, :2] = boxes[:, [0, 1, 2, 3, 0, 3, 2, 1]].reshape(-1, 2)
    moved = (corners @ matrix.T)[:, :2].reshape(-1, 4, 2)
    return np.concatenate((moved.min(1), moved.max(1)), 1).astype(boxes.dtype, copy=False)
