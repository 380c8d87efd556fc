"""Outlines of objects that are resampled only where something depends on all their points.

An outline's bounds lie at its corners. So they are known without its other points where the corners are among them and
each operation keeps an order: scaling, moving, cutting off and mirroring do in floating point, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from operator import attrgetter
from typing import Any, NamedTuple

import cv2
import numpy as np

from yolo_patches.loading.polygons import on_edges, stacked

#: Pixels within which a border that an edge does not reach counts as reached, to be looked at.
NEAR = 1.0


class Outline(NamedTuple):
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


class Corners(NamedTuple):
    """The corners of N outlines, n in all, one outline after the other.

    Attributes:
        owners: Whose each is: the outline's number, [n].
        starts: The number of each outline's first, [N].
        following: The number of the corner to which each one's edge leads, [n].
        labelled: Where the labels have them, [2, n].
        warped: Where they are after the steps of their outlines and a warp, [2, n].
        bent: Whether a step has cut it off, so that an edge at it is no longer straight, [n].
    """

    owners: Any
    starts: Any
    following: Any
    labelled: Any
    warped: Any
    bent: Any

    @classmethod
    def of(cls, outlines: Sequence[Outline], matrix: Any) -> Corners:
        """Return the corners of outlines, of which there is at least one, as a warp leaves them."""
        counts = np.array([len(one.polygon) for one in outlines])
        owners, starts = np.repeat(np.arange(len(outlines)), counts), np.cumsum(counts) - counts
        following = np.arange(1, len(owners) + 1)
        following[starts + counts - 1] = starts
        labelled = np.ascontiguousarray(np.concatenate([one.polygon for one in outlines]).T)  # fast along such rows
        bent = np.zeros(len(owners), bool)
        warped = _moved(labelled.copy(), owners, outlines, matrix, bent)
        return cls(owners, starts, following, labelled, warped, bent)


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
    corners = Corners.of(outlines, matrix)
    low, high = (extreme.reduceat(corners.warped, corners.starts, 1).T for extreme in (np.minimum, np.maximum))
    boxes = np.concatenate((low, high), 1)
    inside = ((low >= 0) & (high <= size)).all(1)
    outside = ((high < 0) | (low > size)).any(1)
    boxes[outside] = 0
    cut: Any = ~(inside | outside)
    if cut.any():
        low[~cut], high[~cut] = np.inf, -np.inf  # no corner of the image is looked for in these
        known, pieces = _at_borders(outlines, corners, np.nonzero(cut[corners.owners])[0], matrix, size)
        boxes[cut] = _around(known, pieces, (low, high), size)[cut]
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
    owners = np.repeat(np.arange(len(outlines)), outlines.shape[1])
    points, following = (some.reshape(-1, 2).T for some in (outlines, np.roll(outlines, -1, 1)))
    ends = outlines.min(1), outlines.max(1)
    return _around((owners, points), (owners, points, following), ends, (width, height))


def _at_borders(
    outlines: Sequence[Outline], corners: Corners, own: Any, matrix: Any, size: tuple[int, int]
) -> tuple[tuple[Any, Any], tuple[Any, Any, Any]]:
    """Return the points and the pieces with which `_around` finds boxes, resampled only near the image's borders.

    Args:
        outlines: All.
        corners: Of all.
        own: The numbers of the corners of those outlines that a border may cut; a corner's edge has its number.
        matrix: Of the warp.
        size: Width and height of the image.
    """
    owners, starts, following, labelled, warped, bent = corners
    edges: Any = own[_in_sight(warped[:, own], warped[:, following[own]], size)]
    goals = following[edges]
    ways = _windows(warped[:, edges], warped[:, goals], size)
    ways[:, bent[edges] | bent[goals]] = (-np.inf,), (np.inf,)  # a point is not where its share of the way is
    shares, parts, complete = _shares(outlines, owners[edges], edges - starts[owners[edges]], ways)
    begin, end = (labelled[:, corner].astype(np.float64).repeat(parts, 1) for corner in (edges, goals))
    whose = owners[edges].repeat(parts)
    points = _moved(((end - begin) * shares + begin).astype(np.float32), whose, outlines, matrix)
    # A piece ends where the next begins; an edge's last ends at its corner, or has no length.
    ends, lasts = np.concatenate((points[:, 1:], points[:, :1]), 1), np.cumsum(parts) - 1
    ends[:, lasts] = np.where(complete, warped[:, goals], points[:, lasts])
    order = np.argsort(np.concatenate((own, edges.repeat(parts))), kind="stable")
    known = np.concatenate((owners[own], whose))[order], np.concatenate((warped[:, own], points), 1)[:, order]
    return known, (whose, points, ends)


def _around(known: tuple[Any, Any], pieces: tuple[Any, Any, Any], ends: tuple[Any, Any], size: tuple[int, int]) -> Any:
    """Return the boxes around what an image shows of outlines, [N, 4]; zeros where nothing is seen.

    Args:
        known: The numbers of outlines, [n], in order, and points of theirs, [2, n], as they follow each other: all
            corners, and all points where an outline comes near the image's borders.
        pieces: The numbers of outlines, [m], and where pieces of theirs near the borders begin and end, [2, m] each.
        ends: The outlines' least and greatest coordinates, [N, 2] each.
        size: Width and height of the image.
    """
    low, high = ends
    owners, points = known
    least, most = np.full_like(low, np.inf), np.full_like(low, -np.inf)
    x, y = points
    width, height = size
    within = (x >= 0) & (x <= width) & (y >= 0) & (y <= height)
    crossed, crossings = _crossings(pieces, size)
    whose, places = np.concatenate((owners[within], crossed)), np.concatenate((points[:, within], crossings), 1)
    for axis in range(2):
        np.minimum.at(least[:, axis], whose, places[axis])
        np.maximum.at(most[:, axis], whose, places[axis])
    corners = np.array(((0, 0), (width, 0), (0, height), (width, height)), low.dtype)
    for number, index in zip(*np.nonzero(((low <= corners[:, None]) & (corners[:, None] <= high)).all(2))):
        corner = corners[number]
        first, last = np.searchsorted(owners, (index, index + 1)).tolist()
        outline, place = points.T[first:last].astype(np.float32), tuple(map(float, corner))
        if cv2.pointPolygonTest(outline, place, False) >= 0:
            least[index], most[index] = np.minimum(least[index], corner), np.maximum(most[index], corner)
    boxes = np.concatenate((least, most), 1)
    boxes[np.isinf(least[:, 0])] = 0
    return boxes


def _reaching(start: Any, end: Any, borders: Any) -> Any:
    """Return whether pieces, [2, n] each, come near borders, [2, 2, 1]: left and right, top and bottom; [2, 2, n]."""
    low, high = np.minimum(start, end)[:, None], np.maximum(start, end)[:, None]
    return (low <= borders + NEAR) & (high >= borders - NEAR)


def _borders(size: tuple[int, int], kind: Any) -> Any:
    return np.array(((0, size[0]), (0, size[1])), kind)[:, :, None]


def _in_sight(start: Any, end: Any, size: tuple[int, int]) -> Any:
    """Return whether pieces, [2, n] each, come near an image without being well within."""
    low, high = np.minimum(start, end), np.maximum(start, end)
    sides = np.array(size, low.dtype)[:, None]
    beside = (low > sides + NEAR) | (high < -NEAR)
    within = (low > NEAR) & (high < sides - NEAR)
    return ~(beside.any(0) | within.all(0))


def _windows(start: Any, end: Any, size: tuple[int, int]) -> Any:
    """Return from which share of their way until which straight pieces, [2, n] each, are near borders, [2, n]."""
    borders, along = _borders(size, start.dtype), (end - start)[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        one, other = ((borders + beside - start[:, None]) / along for beside in (-NEAR, NEAR))
    far, flat = ~_reaching(start, end, borders), along == 0
    first = np.where(far, np.inf, np.where(flat, -np.inf, np.minimum(one, other))).min((0, 1))
    last = np.where(far, -np.inf, np.where(flat, np.inf, np.maximum(one, other))).max((0, 1))
    return np.stack((first, last))


def _crossings(pieces: tuple[Any, Any, Any], size: tuple[int, int]) -> tuple[Any, Any]:
    """Return the numbers of outlines, and where pieces of theirs meet a border of the image; see `_around`."""
    owners, starts, ends = pieces
    borders = _borders(size, starts.dtype)
    axis, side, near = np.nonzero(_reaching(starts, ends, borders))
    each = np.arange(len(near))
    start = starts[:, near]
    along = ends[:, near] - start
    with np.errstate(divide="ignore", invalid="ignore"):
        share = (borders[axis, side, 0] - start[axis, each]) / along[axis, each]
        places = start + share * along
    across = places[1 - axis, each]
    meets = (share >= 0) & (share <= 1) & (across >= 0) & (across <= borders[1 - axis, 1, 0])
    return owners[near][meets], places[:, meets]


def _shares(outlines: Sequence[Outline], owners: Any, edges: Any, ways: Any) -> tuple[Any, Any, Any]:
    """Return where the points that edges of outlines have within windows lie, and one more at either end.

    Args:
        outlines: Of which.
        owners: Their numbers, [n].
        edges: The edges' numbers in their outlines, [n].
        ways: From which share of an edge until which, [2, n].

    Returns:
        All points' shares of their edges, [m]; how many are on each edge, [n]; whether the edge's last is among them.
    """
    found, complete = [], []
    for owner, edge, window in zip(owners.tolist(), edges.tolist(), ways.T):
        share, firsts = on_edges(len(outlines[owner].polygon) + 1, outlines[owner].points)
        share = share[firsts[edge] : firsts[edge + 1]]
        first, last = share.searchsorted(window).tolist()
        found.append(share[max(first - 1, 0) : last + 1])
        complete.append(last >= len(share) - 1)
    return np.concatenate([np.zeros(0), *found]), np.array([len(one) for one in found], np.intp), np.array(complete)


def _moved(points: Any, owners: Any, outlines: Sequence[Outline], matrix: Any, bent: Any = None) -> Any:
    """Return points, [2, n], after the steps of the outlines whose numbers are given, in their order, and a warp.

    Args:
        points: They are changed.
        owners: The outlines' numbers, [n].
        outlines: Of which.
        matrix: Of the warp.
        bent: Set where a point is cut off, so that what leads to it is no longer straight.
    """
    first = 0
    groups = [(steps, len(list(some))) for steps, some in groupby(outlines, attrgetter("steps"))]
    for names, some in groupby(groups, lambda group: [name for name, _, _ in group[0]]):
        same = list(some)
        counts = [count for _, count in same]
        part = slice(*np.searchsorted(owners, (first, first + sum(counts))).tolist())
        values, which = points[:, part], np.arange(len(same)).repeat(counts)[owners[part] - first]
        for place, name in enumerate(names):
            numbers = np.array([steps[place][1:] for steps, _ in same], points.dtype).T[:, which]
            if name == "cut" and bent is not None:
                bent[part] |= ((values < 0) | (values > numbers)).any(0)
            _step(values, name, numbers)
        first += sum(counts)
    return _warped(points.T, matrix).T


def _step(points: Any, name: str, numbers: Any) -> None:
    """Do one step of outlines to points, [2, n], each of which has its numbers, [2, n]; see `step_by_step`."""
    if name == "scale":
        points *= numbers
    elif name == "move":
        points += numbers
    elif name == "cut":
        np.clip(points, 0, numbers, out=points)
    else:
        np.subtract(numbers, points, out=points, where=numbers != 0)


def _warped(points: Any, matrix: Any) -> Any:
    """Return points after a warp that only scales and moves: what adding products of zeros leaves unchanged."""
    return points * matrix[[0, 1], [0, 1]] + matrix[:2, 2]
