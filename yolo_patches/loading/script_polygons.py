"""Polygons as YOLOv5 and YOLOv9 resample and warp them: evenly, with eight bytes a coordinate."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from yolo_patches.loading.polygons import between, closed, even_grid, located, plain

#: Pixels from the image's borders within which all points of a polygon are looked at.
NEAR = 1e-3


def evenly(segments: Any, points: int) -> Any:
    """Resample polygons evenly along their corners' numbers, all at once.

    Between two corners lies what `numpy.interp` computes: the difference by the share of the way, and the corner.

    Args:
        segments: Polygons, each [corners, 2].
        points: How many are wanted.

    Returns:
        Polygons, each [points, 2], float64; None where these are none that can be resampled.
    """
    if not plain(segments):
        return None
    counts, corners = closed(segments)
    grids = [_grid(count, points) for count in counts]
    return list(between(counts, corners, grids).reshape(2, len(segments), points).transpose(1, 2, 0))


def around(segments: Any, points: int, matrix: Any, size: tuple[int, int]) -> Any:
    """Return the boxes around what an image shows of polygons, once they are resampled and warped.

    Args:
        segments: Polygons, each [corners, 2].
        points: Of each, after `evenly`.
        matrix: Of the warp, [2, 3].
        size: Width and height of the image.

    Returns:
        [N, 4], float64, zeros where nothing is seen; None where the warp does more than scale and move, or where these
        are no polygons that can be resampled.
    """
    if matrix[0][1] or matrix[1][0] or not plain(segments):
        return None
    counts, corners = closed(segments)
    low, high = (
        edge.reduceat(corners, np.cumsum([0, *counts[:-1]]), axis=1) * matrix[[0, 1], [0, 1]][:, None] + matrix[:, 2:]
        for edge in (np.minimum, np.maximum)
    )
    low, high, sides = np.minimum(low, high), np.maximum(low, high), np.array(size)[:, None]
    near = ((low <= sides + NEAR) & (high >= -NEAR)).all(0) & ~((low > NEAR) & (high < sides - NEAR)).all(0)
    grids = [(_grid if every else _ends)(count, points) for count, every in zip(counts, near.tolist())]
    places = between(counts, corners, grids)
    places *= matrix[[0, 1], [0, 1]][:, None]
    places += matrix[:, 2:]
    inside = ((places >= 0) & (places <= sides)).all(0)
    starts = np.cumsum([0, *(len(index) for index, _ in grids[:-1])])
    least = np.minimum.reduceat(np.where(inside, places, np.inf), starts, axis=1)
    most = np.maximum.reduceat(np.where(inside, places, -np.inf), starts, axis=1)
    boxes = np.concatenate((least, most)).T
    boxes[most[0] <= 0] = 0  # upstream takes a polygon that shows no other x than 0 for one that is not seen
    return boxes


#: The one way of both upstreams, each.
WAYS = (evenly,)
AROUND = (around,)


@lru_cache(maxsize=4096)
def _grid(corners: int, points: int) -> tuple[Any, Any]:
    """Return before which corner's successor each point lies, and how far on the way."""
    return located(even_grid(corners, points)[0], corners)


@lru_cache(maxsize=4096)
def _ends(corners: int, points: int) -> tuple[Any, Any]:
    """Return the first and the last point of each edge, as `_grid` does all: no other lies farther out."""
    index, share = _grid(corners, points)
    changes = np.flatnonzero(np.diff(index))
    kept = np.unique(np.concatenate(([0], changes, changes + 1, [points - 1])))
    return index[kept], share[kept]
