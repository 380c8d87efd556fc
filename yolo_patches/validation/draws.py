"""Random numbers that something draws without need, so that leaving it out can draw them as well."""

from __future__ import annotations

import random
from typing import Any

import numpy
import torch


class Draws:
    """Counts what is drawn between two moments from Python's generator, which upstream's transforms use.

    Made at the first moment; `counted` is asked at the second.
    """

    def __init__(self) -> None:
        self._before = random.getstate()
        self._others = _others()

    def counted(self, most: int) -> int | None:
        """Return how many numbers have been drawn, or None where it is not known.

        Args:
            most: How many there may be. Beyond, or where NumPy's or torch's generators have moved, it is not known.
        """
        if not _same(self._others, _others()):
            return None
        generator, after = random.Random(), random.getstate()
        generator.setstate(self._before)
        for draws in range(most + 1):
            if generator.getstate() == after:
                return draws
            generator.random()
        return None


def draw(count: int) -> None:
    """Draw numbers that nobody wants."""
    for _ in range(count):
        random.random()


def _others() -> tuple[Any, Any]:
    return numpy.random.get_state(), torch.get_rng_state()


def _same(one: tuple[Any, Any], other: tuple[Any, Any]) -> bool:
    return one[0][2] == other[0][2] and numpy.array_equal(one[0][1], other[0][1]) and torch.equal(one[1], other[1])
