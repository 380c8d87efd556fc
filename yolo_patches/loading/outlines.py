"""Outlines of objects that are resampled only where something depends on all their points.

An outline's bounds lie at its corners. So they are known without its other points where the corners are among them and
each operation keeps an order: scaling, moving, cutting off and mirroring do in floating point, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import Any

import cv2
import numpy as np

from yolo_patches.loading.polygons import with_corners

#: Pixels within which a border that an edge does not reach counts as reached, to be looked at.
NEAR = 1.0


@dataclass(frozen=True)
class Outline:
    """One object's outline as its label has it, and what has been done to it since.

    Attributes:
        polygon: [corners, 2].
        points: How many it is resampled to.
        steps: Names of operations with two numbers each, for x and y: "scale", "move", "cut" (to between 0 and that)
            or "mirror" (where that is not 0: that less the value).
    """

    polygon: Any
    points: int
    steps: tuple[tuple[str, Any, Any], ...] = ()

    def then(self, *steps: tuple[str, Any, Any]) -> Outline:
        """Return the outline after more steps."""
        return Outline(self.polygon, self.points, self.steps + steps)


def after(points: Any, steps: Sequence[tuple[str, Any, Any]]) -> Any:
    """Return points, [..., 2], after the steps of an outline."""
    points = np.array(points)
    for name, *numbers in steps:
        for axis, number in enumerate(numbers):
            values = points[..., axis]
            if name == "scale":
                values *= number
            elif name == "move":
                values += number
            elif name == "cut":
                values[...] = values.clip(0, number)
            elif number:
                values[...] = number - values
    return points


def resampled(outlines: Sequence[Outline]) -> Any:
    """Return all points, [n, points, 2]."""
    parts = []
    for steps, some in groupby(outlines, attrgetter("steps")):
        of = list(some)
        parts.append(after(np.stack(with_corners([one.polygon for one in of], of[0].points)), steps))
    return np.concatenate(parts)


def is_straight(matrix: Any) -> bool:
    """Return whether a warp, [3, 3], only scales and moves."""
    return bool(matrix[0, 1] == 0 and matrix[1, 0] == 0 and (matrix[2] == (0, 0, 1)).all())


def bounds(outlines: Sequence[Outline], matrix: Any, size: tuple[int, int]) -> Any:
    """Return the boxes around what is seen of warped outlines.

    Args:
        outlines: Of at least one object.
        matrix: [3, 3], which only scales and moves.
        size: Width and height of what is seen.

    Returns:
        Corners, [N, 4]; zeros where nothing is seen.
    """
    parts, starts = [], [0]
    for steps, some in groupby(outlines, attrgetter("steps")):
        polygons = [one.polygon for one in some]
        parts.append(_warped(after(np.concatenate(polygons), steps), matrix))
        for polygon in polygons:
            starts.append(starts[-1] + len(polygon))
    corners = np.concatenate(parts)
    low, high = (ufunc.reduceat(corners, starts[:-1], 0) for ufunc in (np.minimum, np.maximum))
    boxes = np.concatenate((low, high), 1)
    corners_alone = np.array([len(one.polygon) + 1 < one.points for one in outlines])
    inside = ((low >= 0) & (high <= size)).all(1)
    outside = ((high < 0) | (low > size)).any(1)
    boxes[outside & corners_alone] = 0
    for index in np.flatnonzero(~((inside | outside) & corners_alone)):
        boxes[index] = seen(_warped(resampled([outlines[index]])[0], matrix), *size)
    return boxes


def drawn(outlines: Sequence[Outline], matrix: Any, size: tuple[int, int], boxes: Any) -> Any:
    """Return the points of warped outlines within their boxes, [n, points, 2]; see `bounds`."""
    if not outlines:
        return np.zeros((0, 0, 2), np.float32)
    points = _warped(resampled(outlines), matrix)
    for axis in range(2):
        points[..., axis] = points[..., axis].clip(boxes[:, axis : axis + 1], boxes[:, axis + 2 : axis + 3])
    return points


def seen(outline: Any, width: int, height: int) -> Any:
    """Return the box around what an image shows of a closed outline.

    Args:
        outline: Points, [n, 2].
        width: Of the image; so `height`.
        height: See `width`.

    Returns:
        Corners, [4]; zeros where nothing is seen.
    """
    low, high = outline.min(0), outline.max(0)
    if (low >= 0).all() and (high <= (width, height)).all():
        return np.concatenate((low, high))
    if (high < 0).any() or (low > (width, height)).any():
        return np.zeros(4, outline.dtype)
    found = [outline[((outline >= 0) & (outline <= np.array((width, height), outline.dtype))).all(1)]]
    found += _crossings(outline, width, height)
    corners = np.array(((0, 0), (width, 0), (0, height), (width, height)), outline.dtype)
    corners = corners[((corners >= low) & (corners <= high)).all(1)]
    if len(corners):
        closed = outline.astype(np.float32)
        within = [cv2.pointPolygonTest(closed, (float(x), float(y)), False) >= 0 for x, y in corners]
        found.append(corners[within])
    points = np.concatenate(found)
    return np.concatenate((points.min(0), points.max(0))) if len(points) else np.zeros(4, outline.dtype)


def _crossings(outline: Any, width: int, height: int) -> list[Any]:
    """Return where an outline's edges meet the image's borders."""
    following = np.concatenate((outline[1:], outline[:1]))
    found = []
    for axis, border in ((0, 0), (0, width), (1, 0), (1, height)):
        one, other = outline[:, axis], following[:, axis]
        (near,) = np.nonzero((np.minimum(one, other) <= border + NEAR) & (np.maximum(one, other) >= border - NEAR))
        if not len(near):
            continue
        start = outline[near]
        along = following[near] - start
        with np.errstate(divide="ignore", invalid="ignore"):
            share = (outline.dtype.type(border) - start[:, axis]) / along[:, axis]
            places = start + share[:, None] * along
        across = places[:, 1 - axis]
        limit = outline.dtype.type((height, width)[axis])
        found.append(places[(share >= 0) & (share <= 1) & (across >= 0) & (across <= limit)])
    return found


def _warped(points: Any, matrix: Any) -> Any:
    """Return points after a warp that only scales and moves: what adding products of zeros leaves unchanged."""
    return points * matrix[[0, 1], [0, 1]] + matrix[:2, 2]
