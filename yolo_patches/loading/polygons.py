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
    if not _plain(segments):
        return None
    return [one if len(one) == points else _resampled(one, *_grid(len(one) + 1, points)) for one in segments]


def evenly(segments: Any, points: int) -> Any:
    """Resample polygons as older releases do, evenly along the corners' numbers; see `with_corners`."""
    if not _plain(segments):
        return None
    return [_resampled(one, *_even_grid(len(one) + 1, points)) for one in segments]


def stacked(segments: Any, points: int) -> Any:
    """Resample as `with_corners` where there are fewer corners than points, all polygons at once, [n, points, 2].

    Between two corners lies what `numpy.interp` computes: the difference by the share of the way, and the corner.
    """
    if not _plain(segments) or any(len(one) + 1 >= points for one in segments):
        return None
    corners = np.concatenate([part for one in segments for part in (one, one[:1])]).astype(np.float64)
    before, shares, first = [], [], 0
    for one in segments:
        index, share = _places(len(one) + 1, points)
        before.append(index + first)
        shares.append(share)
        first += len(one) + 1
    index, share = np.concatenate(before), np.concatenate(shares)
    result = np.empty((len(segments), points, 2), np.float32)
    for axis, values in enumerate(np.ascontiguousarray(corners.T)):
        slopes = np.append(values[1:] - values[:-1], 0)
        result[..., axis] = (slopes.take(index) * share + values.take(index)).reshape(len(segments), points)
    return result


#: The ways of all releases.
WAYS = (with_corners, evenly)


def _plain(segments: Any) -> bool:
    return bool(len(segments)) and all(
        isinstance(one, np.ndarray) and one.ndim == 2 and one.shape[1] == 2 and len(one) for one in segments
    )


@lru_cache(maxsize=4096)
def _even_grid(corners: int, points: int) -> tuple[Any, Any]:
    return np.linspace(0, corners - 1, points), np.arange(corners)


@lru_cache(maxsize=4096)
def _grid(corners: int, points: int) -> tuple[Any, Any]:
    if corners >= points:
        return _even_grid(corners, points)
    places, numbers = _even_grid(corners, points - corners)
    return np.insert(places, np.searchsorted(places, numbers), numbers), numbers


@lru_cache(maxsize=4096)
def _places(corners: int, points: int) -> tuple[Any, Any]:
    """Return before which corner's successor each point lies, and how far on the way."""
    places, _ = _grid(corners, points)
    index = np.minimum(places.astype(np.int64), corners - 1)
    return index, places - index


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
