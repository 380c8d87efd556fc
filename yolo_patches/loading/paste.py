"""Objects pasted onto the other side of their image, each where it lies and nowhere else."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np


def mirrored(image: Any, outlines: Any) -> Any:
    """Return an image in which what lies within some outlines is there once more, mirrored at its middle.

    Upstream flips the whole image and a mask of the same size, and picks by it.

    Args:
        image: Bytes, [H, W, 3].
        outlines: Polygons in whole pixels, each [corners, 2].

    Returns:
        Another image; None where these are none that can be drawn alone.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or not len(outlines):
        return None
    height, width = image.shape[:2]
    made = image.copy()
    for outline in outlines:
        low, high = outline.min(0), outline.max(0)
        if (low < 0).any() or high[0] > width or high[1] > height:
            return None
        (left, top), (right, bottom) = low.tolist(), (high + 1).tolist()
        right, bottom = min(right, width), min(bottom, height)
        if left >= right or top >= bottom:
            continue
        mask = np.zeros((bottom - top, right - left), np.uint8)
        cv2.drawContours(mask, [outline], -1, 1, cv2.FILLED, offset=(-left, -top))
        place = made[top:bottom, width - right : width - left]
        cv2.copyTo(cv2.flip(image[top:bottom, left:right], 1), cv2.flip(mask, 1), place)
    return made


#: The one way of all upstreams.
WAYS = (mirrored,)
