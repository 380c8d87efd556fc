"""Hue, saturation and value of an image changed by tables, in rows, and by arithmetic where that is the table."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

#: Rows at a time: with 640 columns 120 KiB, beside three planes of 40.
ROWS = 64
#: Whole numbers follow when this is added and the sum is rounded: what is cut off, with a margin on both sides.
CUT = -0.499
#: The margin, far above what single precision loses.
MARGIN = 5e-4


def recoloured(image: Any, gains: Any) -> Any:
    """Change an image as releases since 8.3.79 do, where hue is turned.

    Args:
        image: Bytes, [H, W, 3], blue first.
        gains: Of hue (a part of the whole circle), saturation and value, between -1 and 1.

    Returns:
        Bytes, [H, W, 3]; None where the image is none that can be changed.
    """
    x = np.arange(256, dtype=np.float64)
    hue, saturation, value = (x + gains[0] * 180) % 180, _scaled(x, gains[1]), _scaled(x, gains[2])
    return _applied(image, (hue.astype(np.uint8), saturation, value))


def multiplied(image: Any, gains: Any) -> Any:
    """Change an image as older releases do, where hue is multiplied; see `recoloured`."""
    x = np.arange(256, dtype=np.float64)
    hue = (x * (gains[0] + 1)) % 180
    return _applied(image, (hue.astype(np.uint8), _scaled(x, gains[1]), _scaled(x, gains[2])))


#: The ways of all releases.
WAYS = (recoloured, multiplied)


def _scaled(x: Any, gain: float) -> Any:
    return np.clip(x * (gain + 1), 0, 255).astype(np.uint8)


def _applied(image: Any, tables: tuple[Any, Any, Any]) -> Any:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        return None
    factors = [None, *map(_factor, tables[1:])]
    result = np.empty(image.shape, np.uint8)
    colours = np.empty((ROWS, *image.shape[1:]), np.uint8)
    planes = [np.empty(colours.shape[:2], np.uint8) for _ in range(3)]
    for top in range(0, len(image), ROWS):
        rows = slice(top, min(top + ROWS, len(image)))
        height = rows.stop - top
        some, parts = colours[:height], [plane[:height] for plane in planes]
        cv2.cvtColor(image[rows], cv2.COLOR_BGR2HSV, dst=some)
        cv2.split(some, parts)
        for part, table, factor in zip(parts, tables, factors):
            if factor is None:
                cv2.LUT(part, table, dst=part)
            else:
                cv2.convertScaleAbs(part, dst=part, alpha=factor, beta=CUT)
        cv2.merge(parts, dst=some)
        cv2.cvtColor(some, cv2.COLOR_HSV2BGR, dst=result[rows])
    return result


def _factor(table: Any) -> float | None:
    """Return by what bytes are multiplied, then cut off, to what a table has; None where that is not all of it.

    Any factor between the two bounds that the entries set is as good: the middle keeps away from both.
    """
    x = np.arange(1, 256)
    below = table[1:] < 255
    if not below.any():
        return None
    low, high = (table[1:][below] / x[below]).max(), ((table[1:][below] + 1.0) / x[below]).min()
    factor = float(low + high) / 2
    every = np.arange(256, dtype=np.uint8)
    same = all(
        np.array_equal(cv2.convertScaleAbs(every, alpha=factor, beta=CUT + margin).ravel(), table)
        for margin in (-MARGIN, MARGIN)
    )
    return factor if same else None
