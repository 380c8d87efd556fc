"""Hue, saturation and value by tables, a few rows at a time: what is made of them stays in the cache."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

#: Rows that are converted at a time: with 640 columns 120 KiB in each of the four buffers.
ROWS = 64
LEVELS = np.arange(256, dtype=np.float64)


def shifted(image: Any, drawn: Any, gains: Any) -> Any:
    """Change an image as releases since 8.3.150 or so do: hues are turned, grey stays grey.

    Args:
        image: Bytes in the order blue, green, red, [H, W, 3].
        drawn: Three numbers between -1 and 1.
        gains: The largest change of hue, saturation and value.

    Returns:
        The changed image; None where it is none that can be changed.
    """
    change = drawn * gains
    saturation = np.clip(LEVELS * (change[1] + 1), 0, 255).astype(np.uint8)
    saturation[0] = 0
    return _by_tables(image, ((LEVELS + change[0] * 180) % 180).astype(np.uint8), saturation, change)


def multiplied(image: Any, drawn: Any, gains: Any) -> Any:
    """Change an image as older releases do: hues are multiplied. Arguments and result as for `shifted`."""
    change = drawn * gains
    factor = change + 1
    saturation = np.clip(LEVELS * factor[1], 0, 255).astype(np.uint8)
    return _by_tables(image, (LEVELS * factor[0] % 180).astype(np.uint8), saturation, change)


#: The ways of all releases.
WAYS = (shifted, multiplied)


def _by_tables(image: Any, hue: Any, saturation: Any, change: Any) -> Any:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        return None
    tables = hue, saturation, np.clip(LEVELS * (change[2] + 1), 0, 255).astype(np.uint8)
    height, width = image.shape[:2]
    result = np.empty((height, width, 3), np.uint8)
    together = np.empty((ROWS, width, 3), np.uint8)
    before = [np.empty((ROWS, width), np.uint8) for _ in tables]
    after = [np.empty((ROWS, width), np.uint8) for _ in tables]
    for top in range(0, height, ROWS):
        rows = min(ROWS, height - top)
        hsv, old, new = together[:rows], [one[:rows] for one in before], [one[:rows] for one in after]
        cv2.cvtColor(image[top : top + rows], cv2.COLOR_BGR2HSV, dst=hsv)
        cv2.split(hsv, old)
        for plane, table, changed in zip(old, tables, new):
            cv2.LUT(plane, table, dst=changed)
        cv2.merge(new, dst=hsv)
        cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR, dst=result[top : top + rows])
    return result
