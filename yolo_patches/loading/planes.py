"""From pixels with three bytes each to three planes, mirrored on the way where the image is a mirrored view."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np


def planes(image: Any, swapped: bool) -> Any:
    """Return an image's channels as planes.

    Args:
        image: Bytes, [H, W, 3]; it may be a view with rows or columns in reverse, or of a part of another.
        swapped: Whether the last channel comes first.

    Returns:
        [3, H, W], contiguous; None where the image is none that can be split.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        return None
    upside_down, mirrored = image.strides[0] < 0, image.strides[1] < 0
    as_stored = image[:: -1 if upside_down else 1, :: -1 if mirrored else 1]
    if as_stored.strides[1:] != (3, 1):
        return None
    if upside_down or mirrored:
        as_stored = cv2.flip(as_stored, -1 if upside_down and mirrored else int(mirrored))
    result = np.empty((3, *image.shape[:2]), np.uint8)
    cv2.split(as_stored, [result[2 - channel if swapped else channel] for channel in range(3)])
    return result


#: The one way of all releases.
WAYS = (planes,)
