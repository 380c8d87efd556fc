"""Matching of predictions to objects: which predictions are right at each IoU threshold.

Upstream's releases have two ways, and their results differ; each is here in a form that goes through the hits of an
image once and keeps the thresholds as the bits of one number.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy

#: (IoU [objects, predictions], zero where the classes differ; thresholds, rising) -> right [predictions, thresholds],
#: or None where upstream leaves a tie to its sort.
Match = Callable[[Any, Any], Any]


def by_prediction(iou: Any, thresholds: Any) -> Any:
    """Let each prediction, best first, take the object that it overlaps most of those that are still free.

    Ultralytics since 8.4.120 or so: what is free is asked for each threshold on its own.
    """
    predictions, objects = numpy.nonzero(numpy.greater_equal(iou.T, thresholds[0]))
    overlaps = iou[objects, predictions]
    order = numpy.lexsort((-overlaps, predictions))  # stable: of equal overlaps the first object comes first
    reached = ((1 << _reached(overlaps, thresholds)) - 1)[order].tolist()
    taken = [0] * len(iou)
    right = [0] * iou.shape[1]
    before, left, every = -1, 0, (1 << len(thresholds)) - 1
    for prediction, one, bits in zip(predictions[order].tolist(), objects[order].tolist(), reached):
        if prediction != before:
            before, left = prediction, every  # the thresholds at which no object of its has been free yet
        free = left & ~taken[one]
        gained = free & bits
        right[prediction] |= gained
        taken[one] |= gained
        left &= ~free
    return _rows(right, len(thresholds))


def by_overlap(iou: Any, thresholds: Any) -> Any:
    """Let each prediction point at the object that it overlaps most, and each object take the best that points at it.

    Ultralytics to 8.4.60 or so, YOLOv9, YOLOv5. None where a prediction overlaps two objects equally: upstream then
    goes by the order in which an unstable sort leaves them.
    """
    if not iou.size:
        return numpy.zeros((iou.shape[1], len(thresholds)), dtype=bool)
    best = iou.max(0)
    hits = numpy.flatnonzero(best >= thresholds[0])
    if ((iou[:, hits] == best[hits]).sum(0) > 1).any():
        return None
    objects = iou[:, hits].argmax(0).tolist()
    reached = _reached(best[hits], thresholds).tolist()
    taken = [0] * len(iou)
    right = [0] * iou.shape[1]
    for prediction, one, steps in zip(hits.tolist(), objects, reached):
        bits = (1 << steps) - 1
        right[prediction] = bits & ~taken[one]
        taken[one] |= bits
    return _rows(right, len(thresholds))


WAYS: tuple[Match, ...] = (by_prediction, by_overlap)


def like(upstream: Match, tries: int = 12) -> Match | None:
    """Return the way that has the results of another function, or None where neither has.

    Args:
        upstream: The function.
        tries: Random images, with the many hits of a crowd, that it is compared on.
    """
    random = numpy.random.default_rng(0)
    thresholds = numpy.linspace(0.5, 0.95, 10, dtype=numpy.float32)
    crowds = [random.random((8, 40), dtype=numpy.float32) ** 0.3 for _ in range(tries)]
    theirs = [upstream(crowd.copy(), thresholds) for crowd in crowds]
    for way in WAYS:
        ours = [way(crowd, thresholds) for crowd in crowds]
        if all(one is not None and numpy.array_equal(one, other) for one, other in zip(ours, theirs)):
            return way
    return None


def _reached(iou: Any, thresholds: Any) -> Any:
    """Return how many of the rising thresholds each overlap reaches."""
    return numpy.searchsorted(thresholds, iou, side="right")


def _rows(bits: list[int], thresholds: int) -> Any:
    """Return numbers as rows of their bits, the lowest first."""
    return (numpy.array(bits, dtype=numpy.int64)[:, None] >> numpy.arange(thresholds) & 1).astype(bool)
