"""How long this rank has waited for others, in exchanges for which its host waits anyway: those of CPU ranks.

On CUDA an exchange is queued and the host goes on; to know its time would be to wait for it. DistributedDataParallel's
own sums have no part in this either: torch times the first ten of them and every hundredth after that, and a rare long
wait is in none of those.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

__all__ = ["longest", "timed"]

T = TypeVar("T")

_longest: float | None = None


def timed(exchange: Callable[[], T]) -> T:
    """Do what waits for other ranks, and return what it returns."""
    global _longest
    began = time.monotonic()
    try:
        return exchange()
    finally:
        _longest = max(_longest or 0.0, time.monotonic() - began)


def longest() -> float | None:
    """Return the longest wait since this was last asked, in seconds; None where there was none."""
    global _longest
    found, _longest = _longest, None
    return found
