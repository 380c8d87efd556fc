"""Seams of what makes the samples of a training; see `yolo_patches.seams`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from yolo_patches.seams import Seam


@dataclass
class Samples(Seam):
    """A training data set stands, and no loader has been made of it.

    Each part is known to upstream or is not: where it is not, ways for it have no effect. A way is a function with the
    results of upstream's, to the last bit; the adapter compares the first calls, in every process that makes samples,
    and draws the same random numbers whoever does the work.

    Attributes:
        known: The parts that this data set has, all on NumPy's arrays: "planes" (image [H, W, 3], whether its channels
            are swapped) -> [3, H, W]; "blend" (image, image, share of the first) -> image; "colours" (image, gains of
            hue, saturation and value) -> image; "canvas" (`loading.canvas.Canvas`, matrix, size) -> image; "boxes on
            the mosaic" (boxes, tiles, side) -> boxes and the numbers of what is kept; "objects after the warp" (boxes,
            outlines, matrix, size, scale, whether points are wanted) -> boxes, numbers, points; "shares" (boxes, width,
            height) -> boxes; "outlines", "polygons" and "even polygons" (segments, points) -> segments;
            "boxes around polygons" (segments, points, matrix, size) -> boxes; "paste" (image, outlines in whole
            pixels) -> image with what lies within them there once more, mirrored; "masks" (size, segments, ratio) ->
            mask and order; "separate masks" (size, segments, ratio) -> masks; "numbers" (image, means, deviations) ->
            [3, H, W], float32. "last pixels": colours, flips and the order of channels come last, and may be left to
            whoever takes the batch; it has no ways.
        ways: Part -> the ways in which it may be done; a patch may set them, and they must be picklable.
        near: Way -> what is nearly the same and stands in for it: its images are within a step of 8 bits of upstream's
            on average. Where an adapter knows nothing of these, the ways themselves do the work.
        ledger: What becomes of the parts, in memory that all processes share; a patch sets it.
        trouble: Why the data set as a whole is upstream's, when it has been probed; empty where it is not.
        finishing: Does the last pixels of batches (`loading.finishing.Finishing`); a patch sets it, and workers leave
            them undone.
        kept: Why workers cannot leave them undone; empty where they can.
    """

    known: frozenset[str] = frozenset()
    ways: dict[str, Sequence[Callable[..., Any]]] = field(default_factory=dict)
    near: dict[Callable[..., Any], Callable[..., Any]] = field(default_factory=dict)
    ledger: Any = None
    trouble: str = ""
    finishing: Any = None
    kept: str = ""


@dataclass
class Feed(Seam):
    """A loader is about to be built.

    The number of workers decides which of them makes which batch, and each draws its own random numbers: a training
    loader with another number is another run of the same seed. What a validation loader makes is the same.

    Attributes:
        workers: Processes that make its batches, 0 where the training's own does; a patch may set another number of at
            least 1 where it is not 0.
        training: Whether it is the training loader; else it is the validation's.
        prefetch: Batches that each worker makes ahead.
        batch_bytes: Bytes of the images of one batch, 0 where they are not known.
        collate: Makes a batch of samples, in workers that are forked; a patch may set another. None where it is
            torch's own, or workers are not forked.
    """

    workers: int
    training: bool
    prefetch: int = 2
    batch_bytes: int = 0
    collate: Callable[[Any], Any] | None = None
