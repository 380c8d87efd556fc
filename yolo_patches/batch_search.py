"""Which batch fits: from trials of a training with a few batches to the largest one that has been seen to fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Optional

#: Images a rank from which BatchNorm's statistics are sound, and with which the search begins.
ENOUGH = 8
#: Upstream's own limit.
MOST = 1024
#: How often a batch is foretold and tried, and by how much it must be larger to be worth a trial.
ROUNDS, WORTH = 3, 1.1


@dataclass(frozen=True)
class Footprint:
    """What one rank takes of its device's memory in whole steps and validations with some batch.

    Attributes:
        batch: Images of a micro-batch on this rank.
        taken: Most bytes that the process has taken, in training or in validation.
        free: Bytes of the device that the process could have taken; 0 where that is not known.
        weights: Bytes of the model's weights.
        images: Training images of an epoch, rounded up to whole batches; 0 where they are not known.
    """

    batch: int
    taken: int
    free: int = 0
    weights: int = 0
    images: int = 0


#: Makes a trial of a batch; None where its memory did not suffice.
Try = Callable[[int], Optional[Footprint]]


@dataclass
class BatchSearch:
    """The search for the largest batch of a rank.

    Memory grows evenly with the batch, on top of what does not depend on it. So the batch is foretold from trials with
    two batches, and then tried itself; what is returned has been seen to fit.

    Attributes:
        attempt: Makes a trial.
        room: Footprint -> the bytes that a rank may take on its device.
        extra: Footprint -> bytes that a rank of the training will take, and that one of a trial does not.
        seen: Batch -> its footprint, or None where memory did not suffice.
    """

    attempt: Try
    room: Callable[[Footprint], float]
    extra: Callable[[Footprint], float] = lambda footprint: 0.0
    seen: dict[int, Footprint | None] = field(default_factory=dict)

    def largest(self) -> int:
        """Return the largest batch that was tried and fits; 0 where not one image does."""
        batch = ENOUGH
        while not self._fits(batch):
            if batch == 1:
                return 0
            batch //= 2
        if batch < ENOUGH:
            self._fits(batch + batch // 2 if batch > 1 else batch)
            return self._best()
        self._fits(self._at_most(2 * ENOUGH))
        for _ in range(ROUNDS):
            batch = self._foretold()
            if batch in self.seen or batch < WORTH * self._best():
                break
            self._fits(batch)
        return self._best()

    def _fits(self, batch: int) -> bool:
        if batch not in self.seen:
            self.seen[batch] = self.attempt(batch)
        footprint = self.seen[batch]
        return footprint is not None and footprint.taken + self.extra(footprint) <= self.room(footprint)

    def _best(self) -> int:
        return max((batch for batch in self.seen if self._fits(batch)), default=0)

    def _at_most(self, batch: int) -> int:
        """Return a batch that the data set has images for."""
        images = max((one.images for one in self.seen.values() if one is not None), default=0)
        return max(min(batch, MOST, images or MOST), 1)

    def _foretold(self) -> int:
        """Return the largest batch that the trials so far leave room for, below any that has failed."""
        measured = [one for one in self.seen.values() if one is not None]
        failed = [batch for batch in self.seen if not self._fits(batch)]
        first = measured[0]
        line = fitted({one.batch: one.taken for one in measured})
        if line is None or line[1] <= 0:
            batch = 2 * max(one.batch for one in measured)
        else:
            batch = int((self.room(first) - self.extra(first) - line[0]) / line[1])
        if failed:
            batch = min(batch, min(failed) - 1)
        return self._at_most(max(batch, self._best()))


def fitted(points: Mapping[int, float]) -> tuple[float, float] | None:
    """Return the line through measured points, its value at 0 and its slope; None for fewer than two points.

    It is the line of least squares, lifted until no point lies above it: memory that is foretold too small is what
    ends a run.

    Args:
        points: Batch -> bytes.
    """
    if len(points) < 2:
        return None
    mean, height = (sum(values) / len(points) for values in (points.keys(), points.values()))
    spread = sum((batch - mean) ** 2 for batch in points)
    slope = sum((batch - mean) * (taken - height) for batch, taken in points.items()) / spread
    return max(taken - slope * batch for batch, taken in points.items()), slope


def shared(batch: int, ranks: int, nbs: int) -> int:
    """Return the largest batch of a rank, at most this one, with which accumulation reaches nbs exactly.

    Args:
        batch: Images of a rank that fit.
        ranks: Number of ranks.
        nbs: Images of an optimizer step; a global batch of that size or more is one step by itself.
    """
    if batch * ranks >= nbs:
        return batch
    return next((fewer for fewer in range(batch, 0, -1) if nbs % (fewer * ranks) == 0), batch)
