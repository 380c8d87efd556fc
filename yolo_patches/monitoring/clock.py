"""Where the time of an epoch goes, on this rank."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any


class Clock:
    """The time of one epoch after the other: the first from its first batch, the others from the end of the last.

    Waiting for data is the time in the loader's `next`; a step is the time from one batch to the next request. On a
    device that works on its own, as CUDA does, a step's time is the host's, which upstream lets wait once a step.
    """

    def __init__(self) -> None:
        self._began: float | None = None
        self.clear()

    def clear(self) -> None:
        """Forget what has been timed of an epoch."""
        self.waits: list[float] = []
        self.steps: list[float] = []
        self.images = 0
        self.validation = 0.0

    def follow(self, batches: Iterator[Any], images: Callable[[Any], int]) -> Iterator[Any]:
        """Return the iterator of a pass, timed.

        Args:
            batches: The loader's.
            images: Counts the images of a batch.
        """
        self._began = self._began or time.perf_counter()
        while True:
            asked = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            handed = time.perf_counter()
            self.waits.append(handed - asked)
            self.images += images(batch)
            yield batch
            self.steps.append(time.perf_counter() - handed)

    def validate(self, proceed: Callable[[], Any]) -> Any:
        """Do what validates, timed."""
        began = time.perf_counter()
        try:
            return proceed()
        finally:
            self.validation += time.perf_counter() - began

    def row(self, ranks: int) -> dict[str, float]:
        """Return the epoch's columns, and begin the next: what lies before its first batch is its own.

        Args:
            ranks: Number of ranks, each of which has read as many images.

        Returns:
            Seconds, shares of the epoch that add up to 1, and images a second of the training pass over all ranks.
        """
        now = time.perf_counter()
        whole, self._began = now - (self._began or now), now
        data, step, images = sum(self.waits), sum(self.steps), self.images * ranks
        parts = {"data": data, "step": step, "validation": self.validation}
        parts["elsewhere"] = whole - sum(parts.values())
        row = {"time/epoch_s": whole, **{f"time/{name}": part / whole for name, part in parts.items() if whole}}
        if self.steps:
            row["images_per_s"] = images / (data + step)
            row["step/median_s"], row["step/longest_s"] = median(self.steps), max(self.steps)
        self.clear()
        return row
