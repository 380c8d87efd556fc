"""Seams of a data set whose decoded images are kept in host memory; see `yolo_patches.seams`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from yolo_patches.seams import Act, Seam


def _untold(line: str) -> None:
    pass


@dataclass
class CacheRoom(Seam):
    """Upstream has judged whether a data set's decoded images fit into host memory; they are decoded next.

    Attributes:
        key: The data set, and how often it has come before; the same on every rank.
        images: How many it has.
        fits: Upstream's judgement; a patch may set it.
        keeps: Returns whether upstream keeps every image that it decodes, and not just the last ones.
        needed: Decodes a few images and returns the bytes that all of them take.
        tell: Logs a warning, once.
    """

    key: str
    images: int
    fits: bool
    keeps: Callable[[], bool]
    needed: Callable[[], int]
    tell: Callable[[str], None] = _untold


@dataclass
class ImageCache(Act):
    """Every image of a data set is about to be decoded into host memory; `proceed` does it.

    Attributes:
        key: As in `CacheRoom`.
        images: How many there are.
        notes: Returns what belongs to the images beside their pixels, once they have been decoded; JSON.
        keep: Has the data set read its images from what is given, with the notes that belong to them.
        read: Returns an image as samples are made of it.
        into: Where `proceed` puts the images, `into[i] = image` and read by `into[i]`; in this process's own memory
            where no patch sets it. Whoever sets it calls `keep`, or else the data set gets a list of what is there.
        tell: Logs a warning, once.
    """

    key: str
    images: int
    notes: Callable[[], Any]
    keep: Callable[[Any, Any], None]
    read: Callable[[int], Any]
    into: Any = None
    tell: Callable[[str], None] = _untold
