"""Outlines of objects that are resampled only where something depends on all their points.

An outline's bounds lie at its corners. So they are known without its other points where the corners are among them and
each operation keeps an order: scaling, moving, cutting off and mirroring do in floating point, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import Any

import cv2
import numpy as np

from yolo_patches.loading.polygons import stacked

#: Pixels within which a border that an edge does not reach counts as reached, to be looked at.
NEAR = 1.0


@dataclass(frozen=True)
class Outline:
    """One object's outline as its label has it, and what has been done to it since.

    Attributes:
        polygon: [corners, 2].
        points: How many it is resampled to: more than it has corners.
        steps: Names of operations with two numbers each, for x and y: "scale", "move", "cut" (to between 0 and that)
            or "mirror" (where that is not 0: that less the value).
    """

    polygon: Any
    points: int
    steps: tuple[tuple[str, Any, Any], ...] = ()

    def then(self, *steps: tuple[str, Any, Any]) -> Outline:
        """Return the outline after more steps."""
        return Outline(self.polygon, self.points, self.steps + steps)


def step_by_step(points: Any, steps: Sequence[tuple[str, Any, Any]]) -> None:
    """Change points, [..., 2], as the steps of an outline say."""
    for name, *numbers in steps:
        for axis, number in enumerate(numbers):
            values = points[..., axis]
            if name == "scale":
                values *= number
            elif name == "move":
                values += number
            elif name == "cut":
                values.clip(0, number, out=values)
            elif number:
                np.subtract(number, values, out=values)


def resampled(outlines: Sequence[Outline]) -> Any:
    """Return all points, [n, points, 2]."""
    points = stacked([one.polygon for one in outlines], outlines[0].points)
    first = 0
    for steps, some in groupby(outlines, attrgetter("steps")):
        count = len(list(some))
        step_by_step(points[first : first + count], steps)
        first += count
    return points


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
    corners = np.concatenate([one.polygon for one in outlines])
    starts, place = [], 0
    for steps, some in groupby(outlines, attrgetter("steps")):
        first = place
        for one in some:
            starts.append(place)
            place += len(one.polygon)
        step_by_step(corners[first:place], steps)
    corners = _warped(corners, matrix)
    low, high = np.minimum.reduceat(corners, starts, 0), np.maximum.reduceat(corners, starts, 0)
    boxes = np.concatenate((low, high), 1)
    inside = ((low >= 0) & (high <= size)).all(1)
    outside = ((high < 0) | (low > size)).any(1)
    boxes[outside] = 0
    (cut,) = np.nonzero(~(inside | outside))
    if len(cut):
        boxes[cut] = seen(_warped(resampled([outlines[index] for index in cut.tolist()]), matrix), *size)
    return boxes


def drawn(outlines: Sequence[Outline], matrix: Any, size: tuple[int, int], boxes: Any) -> Any:
    """Return the points of warped outlines within their boxes, [n, points, 2]; see `bounds`."""
    if not outlines:
        return np.zeros((0, 0, 2), np.float32)
    points = _warped(resampled(outlines), matrix)
    for axis in range(2):
        points[..., axis] = points[..., axis].clip(boxes[:, axis : axis + 1], boxes[:, axis + 2 : axis + 3])
    return points


def seen(outlines: Any, width: int, height: int) -> Any:
    """Return the boxes around what an image shows of closed outlines that are neither within it nor beside it.

    Args:
        outlines: Points, [N, n, 2].
        width: Of the image; so `height`.
        height: See `width`.

    Returns:
        Corners, [N, 4]; zeros where nothing is seen.
    """
    points = np.ascontiguousarray(outlines.transpose(2, 0, 1))  # NumPy is several times as fast along such rows
    x, y = points
    within = (x >= 0) & (x <= width) & (y >= 0) & (y <= height)
    infinite = outlines.dtype.type(np.inf)
    least = np.stack([np.where(within, values, infinite).min(1) for values in points], 1)
    most = np.stack([np.where(within, values, -infinite).max(1) for values in points], 1)
    for index, places in _crossings(points, width, height):
        np.minimum.at(least, index, places)
        np.maximum.at(most, index, places)
    low, high = points.min(2).T, points.max(2).T
    for corner in np.array(((0, 0), (width, 0), (0, height), (width, height)), outlines.dtype):
        for index in np.flatnonzero(((low <= corner) & (corner <= high)).all(1)):
            outline, place = outlines[index].astype(np.float32), tuple(map(float, corner))
            if cv2.pointPolygonTest(outline, place, False) >= 0:
                least[index], most[index] = np.minimum(least[index], corner), np.maximum(most[index], corner)
    boxes = np.concatenate((least, most), 1)
    boxes[np.isinf(least[:, 0])] = 0
    return boxes


def _crossings(points: Any, width: int, height: int) -> Iterator[tuple[Any, Any]]:
    """Yield the numbers of outlines, and where edges of theirs meet a border of the image; `points` are [2, N, n]."""
    following = np.concatenate((points[..., 1:], points[..., :1]), 2)
    low, high = np.minimum(points, following), np.maximum(points, following)
    for axis, border in ((0, 0), (0, width), (1, 0), (1, height)):
        near = np.nonzero((low[axis] <= border + NEAR) & (high[axis] >= border - NEAR))
        if not len(near[0]):
            continue
        start = points[:, near[0], near[1]]
        along = following[:, near[0], near[1]] - start
        with np.errstate(divide="ignore", invalid="ignore"):
            share = (points.dtype.type(border) - start[axis]) / along[axis]
            places = start + share * along
        across = places[1 - axis]
        meets = (share >= 0) & (share <= 1) & (across >= 0) & (across <= (height, width)[axis])
        yield near[0][meets], places[:, meets].T


def _warped(points: Any, matrix: Any) -> Any:
    """Return points after a warp that only scales and moves: what adding products of zeros leaves unchanged."""
    return points * matrix[[0, 1], [0, 1]] + matrix[:2, 2]
