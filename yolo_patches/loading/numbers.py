"""From bytes to normalised numbers by a table: what 256 values become is computed once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import cv2
import numpy as np


def normalised(image: Any, means: Sequence[float], deviations: Sequence[float]) -> Any:
    """Return an image's channels as planes of numbers: shares of 255, less a mean, by a deviation.

    Args:
        image: Bytes, [H, W, 3].
        means: Of each channel.
        deviations: Of each channel.

    Returns:
        [3, H, W], float32; None where the image is none of bytes with three channels.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        return None
    if len(means) != 3 or len(deviations) != 3:
        return None
    result = np.empty((3, *image.shape[:2]), np.float32)
    for plane, table, numbers in zip(cv2.split(image), _tables(tuple(means), tuple(deviations)), result):
        cv2.LUT(plane, table, dst=numbers)
    return result


#: The one way of all releases.
WAYS = (normalised,)


@lru_cache(maxsize=16)
def _tables(means: tuple[float, ...], deviations: tuple[float, ...]) -> list[Any]:
    shares = np.arange(256, dtype=np.float32) / np.float32(255)
    return [((shares - np.float32(mean)) / np.float32(one))[None] for mean, one in zip(means, deviations)]
