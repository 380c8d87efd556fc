"""Masks of polygons, each drawn and made smaller where it lies and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np

#: Factors by which masks are made smaller with the same weights everywhere, to the last bit.
RATIOS = (1, 2, 4, 8, 16)
#: Up to here upstream's sums of overlapping masks fit into a byte in every release.
MOST = 127
#: Pixels from the image's corner at which points are still drawn as they are elsewhere.
FARTHEST = 1 << 14


def overlapping(size: Any, segments: Any, ratio: int) -> Any:
    """Draw polygons over each other, the largest first.

    Args:
        size: Height and width of the image.
        segments: [n, points, 2] in pixels.
        ratio: By which the mask is smaller.

    Returns:
        The mask [H / ratio, W / ratio], n for the n-th largest polygon, from 1, and the order; None where these are
        none that can be drawn alone.
    """
    places = _places(size, segments, ratio) if len(segments) <= MOST else None
    if places is None:
        return None
    drawn = list(_drawn(segments, ratio, places))
    areas = np.array([cv2.countNonZero(mask) for _, mask in drawn], np.uint64)
    order = np.argsort(-areas)
    result = np.zeros((size[0] // ratio, size[1] // ratio), np.uint8)
    for number, index in enumerate(order, 1):
        where, mask = drawn[index]
        np.maximum(result[where], mask * np.uint8(number), out=result[where])
    return result, order


def separate(size: Any, segments: Any, ratio: int) -> Any:
    """Draw each polygon on a mask of its own, [n, H / ratio, W / ratio]; see `overlapping`."""
    places = _places(size, segments, ratio)
    if places is None:
        return None
    result = np.zeros((len(segments), size[0] // ratio, size[1] // ratio), np.uint8)
    for one, (where, mask) in zip(result, _drawn(segments, ratio, places)):
        one[where] = mask
    return result


#: The one way of all releases, each.
OVERLAPPING = (overlapping,)
SEPARATE = (separate,)


def _places(size: Any, segments: Any, ratio: int) -> list[tuple[int, int, int, int]] | None:
    """Return where each polygon lies on the smaller mask: left, top, right, bottom.

    A place begins and ends at whole pixels of the smaller mask, and ends with the image at the latest: lines are cut
    off there as they are in the whole image.
    """
    height, width = size
    known = isinstance(segments, np.ndarray) and segments.ndim == 3 and segments.size
    if not known or ratio not in RATIOS or height % ratio or width % ratio:
        return None
    ends = []
    for axis, side in ((0, width), (1, height)):
        values = np.ascontiguousarray(segments[..., axis])  # NumPy is several times as fast along such rows
        low, high = values.min(1), values.max(1)
        if not ((low >= -FARTHEST).all() and (high <= FARTHEST).all()):  # not a number is neither
            return None
        low, high = (np.clip(edge, 0, side).astype(np.int32) for edge in (low, high))
        first = np.minimum(low, side - 1) // ratio
        ends += [first.tolist(), np.minimum(high // ratio + 1, side // ratio).tolist()]
    left, right, top, bottom = ends
    return list(zip(left, top, right, bottom))


def _drawn(
    segments: Any, ratio: int, places: list[tuple[int, int, int, int]]
) -> Iterator[tuple[tuple[slice, slice], Any]]:
    """Yield of each polygon its place on the smaller mask, and what is drawn there."""
    for points, (left, top, right, bottom) in zip(segments.astype(np.int32), places):
        part = np.zeros(((bottom - top) * ratio, (right - left) * ratio), np.uint8)
        cv2.fillPoly(part, points[None], color=1, offset=(-left * ratio, -top * ratio))
        yield (slice(top, bottom), slice(left, right)), cv2.resize(part, (right - left, bottom - top))
