"""Polygons with a given number of points: where the points lie is computed once for every number of corners."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np


def with_corners(segments: Any, points: int) -> Any:
    """Resample polygons as releases since 8.3.80 or so do: their corners are among the points.

    Args:
        segments: Polygons, each [corners, 2].
        points: How many are wanted.

    Returns:
        Polygons, each [points, 2]; None where these are none that can be resampled.
    """
    if not plain(segments):
        return None
    return [one if len(one) == points else _resampled(one, *_grid(len(one) + 1, points)) for one in segments]


def evenly(segments: Any, points: int) -> Any:
    """Resample polygons as older releases do, evenly along the corners' numbers; see `with_corners`."""
    if not plain(segments):
        return None
    return [_resampled(one, *even_grid(len(one) + 1, points)) for one in segments]


def stacked(segments: Any, points: int) -> Any:
    """Resample as `with_corners` where there are fewer corners than points, all polygons at once, [n, points, 2].

    Between two corners lies what `numpy.interp` computes: the difference by the share of the way, and the corner.
    """
    if not plain(segments) or any(len(one) + 1 >= points for one in segments):
        return None
    counts, corners = closed(segments)
    places = between(counts, corners, [_places(count, points) for count in counts])
    result = np.empty((len(segments), points, 2), np.float32)
    result[:] = places.reshape(2, len(segments), points).transpose(1, 2, 0)
    return result


#: The ways of all releases.
WAYS = (with_corners, evenly)


def plain(segments: Any) -> bool:
    """Return whether there are polygons, and all of them can be resampled."""
    return bool(len(segments)) and all(
        isinstance(one, np.ndarray) and one.ndim == 2 and one.shape[1] == 2 and len(one) for one in segments
    )


def located(places: Any, corners: int) -> tuple[Any, Any]:
    """Return before which of some corners' successors each place along them lies, and how far on the way."""
    index = np.minimum(places.astype(np.int64), corners - 1)
    return index, places - index


def closed(segments: Any) -> tuple[list[int], Any]:
    """Return how many corners closed polygons have, and all of them, one after the other, [2, n], float64."""
    corners = np.concatenate([part for one in segments for part in (one, one[:1])])
    return [len(one) + 1 for one in segments], np.ascontiguousarray(corners.T, np.float64)


def between(counts: list[int], corners: Any, places: Any) -> Any:
    """Return points of polygons, one after the other, [2, n], float64.

    Args:
        counts: How many corners each has.
        corners: Of all; see `closed`.
        places: Of each, where its points lie; see `located`.
    """
    index = np.concatenate([before for before, _ in places])
    index += np.cumsum([0, *counts[:-1]]).repeat([len(before) for before, _ in places])
    share = np.concatenate([part for _, part in places])
    result = np.empty((2, len(index)))
    for points, values in zip(result, corners):
        slopes = np.append(values[1:] - values[:-1], 0)
        np.multiply(slopes.take(index), share, out=points)
        points += values.take(index)
    return result


@lru_cache(maxsize=4096)
def even_grid(corners: int, points: int) -> tuple[Any, Any]:
    """Return places evenly along corners' numbers, and the numbers."""
    return np.linspace(0, corners - 1, points), np.arange(corners)


@lru_cache(maxsize=4096)
def _grid(corners: int, points: int) -> tuple[Any, Any]:
    if corners >= points:
        return even_grid(corners, points)
    places, numbers = even_grid(corners, points - corners)
    return np.insert(places, np.searchsorted(places, numbers), numbers), numbers


@lru_cache(maxsize=4096)
def _places(corners: int, points: int) -> tuple[Any, Any]:
    """Return before which corner's successor each point lies, and how far on the way."""
    return located(_grid(corners, points)[0], corners)


@lru_cache(maxsize=4096)
def on_edges(corners: int, points: int) -> tuple[Any, list[int]]:
    """Return how far on its edge each point of `stacked` lies, and the number of each edge's first point."""
    index, share = _places(corners, points)
    return share, np.searchsorted(index, np.arange(corners)).tolist()


def _resampled(segment: Any, places: Any, numbers: Any) -> Any:
    closed = np.concatenate((segment, segment[:1]))
    result = np.empty((2, len(places)), np.float32)
    for axis in range(2):
        result[axis] = np.interp(places, numbers, closed[:, axis])
    return result.T
