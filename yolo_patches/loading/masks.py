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
    if not _plain(size, segments, ratio) or len(segments) > MOST:
        return None
    drawn = list(_drawn(size, segments, ratio))
    areas = np.array([cv2.countNonZero(mask) for _, mask in drawn], np.uint64)
    order = np.argsort(-areas)
    result = np.zeros((size[0] // ratio, size[1] // ratio), np.uint8)
    for number, index in enumerate(order, 1):
        where, mask = drawn[index]
        np.maximum(result[where], mask * np.uint8(number), out=result[where])
    return result, order


def separate(size: Any, segments: Any, ratio: int) -> Any:
    """Draw each polygon on a mask of its own, [n, H / ratio, W / ratio]; see `overlapping`."""
    if not _plain(size, segments, ratio):
        return None
    result = np.zeros((len(segments), size[0] // ratio, size[1] // ratio), np.uint8)
    for one, (where, mask) in zip(result, _drawn(size, segments, ratio)):
        one[where] = mask
    return result


#: The one way of all releases, each.
OVERLAPPING = (overlapping,)
SEPARATE = (separate,)


def _plain(size: Any, segments: Any, ratio: int) -> bool:
    height, width = size
    return (
        ratio in RATIOS
        and not height % ratio
        and not width % ratio
        and isinstance(segments, np.ndarray)
        and segments.ndim == 3
        and bool(segments.size)
        and bool((segments >= 0).all() and (segments <= (width, height)).all())
    )


def _drawn(size: Any, segments: Any, ratio: int) -> Iterator[tuple[tuple[slice, slice], Any]]:
    """Yield of each polygon where its part of the mask lies, and the part.

    The part begins and ends at whole pixels of the smaller mask, and ends with the image at the latest: lines are cut
    off there as they are in the whole image.
    """
    height, width = size
    corners = segments.astype(np.int32)
    low = np.minimum(corners.min(1), (width - 1, height - 1)) // ratio
    high = np.minimum(corners.max(1) // ratio + 1, (width // ratio, height // ratio))
    for points, (left, top), (right, bottom) in zip(corners, low.tolist(), high.tolist()):
        part = np.zeros(((bottom - top) * ratio, (right - left) * ratio), np.uint8)
        cv2.fillPoly(part, points[None], color=1, offset=(-left * ratio, -top * ratio))
        yield (slice(top, bottom), slice(left, right)), cv2.resize(part, (right - left, bottom - top))
