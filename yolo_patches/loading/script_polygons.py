"""Polygons as YOLOv5 and YOLOv9 resample them: evenly, with eight bytes a coordinate."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np


def evenly(segments: Any, points: int) -> Any:
    """Resample polygons evenly along their corners' numbers.

    Args:
        segments: Polygons, each [corners, 2].
        points: How many are wanted.

    Returns:
        Polygons, each [points, 2], float64; None where these are none that can be resampled.
    """
    plain = all(isinstance(one, np.ndarray) and one.ndim == 2 and one.shape[1] == 2 and len(one) for one in segments)
    return [_resampled(one, points) for one in segments] if plain and len(segments) else None


#: The one way of both upstreams.
WAYS = (evenly,)


@lru_cache(maxsize=4096)
def _grid(corners: int, points: int) -> tuple[Any, Any]:
    return np.linspace(0, corners - 1, points), np.arange(corners)


def _resampled(segment: Any, points: int) -> Any:
    closed = np.concatenate((segment, segment[:1]))
    places, numbers = _grid(len(closed), points)
    result = np.empty((2, points))
    for axis in range(2):
        result[axis] = np.interp(places, numbers, closed[:, axis])
    return result.T
