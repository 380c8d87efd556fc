"""The host's random numbers: Python's, NumPy's and torch's."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable

import torch


def noted() -> Callable[[], None]:
    """Return a function that puts the host's random numbers back to where they stand now."""
    numpy = sys.modules.get("numpy")
    pythons, torchs = random.getstate(), torch.get_rng_state()
    numpys = numpy.random.get_state() if numpy else None

    def put_back() -> None:
        random.setstate(pythons)
        torch.set_rng_state(torchs)
        if numpy:
            numpy.random.set_state(numpys)

    return put_back
