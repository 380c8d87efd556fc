"""`doctor --measure`: what a training takes on this machine, and which changes pay, one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Optional

from yolo_patches.doctor.subject import Machine
from yolo_patches.errors import PatchesError
from yolo_patches.forecast import Foreseen

GIB = 1 << 30
#: A change is kept where it makes the training faster by more than what two runs of the same differ by.
PAYS = 1.05


@dataclass(frozen=True)
class Measured:
    """What some seconds of a training took.

    Attributes:
        batch: Images a step.
        batches: Steps an epoch.
        step: Seconds of a step.
        wait: Seconds between a step and the next batch.
        epoch: Seconds of an epoch, with validation and checkpoint where whole epochs were seen.
        epochs_seen: How many whole epochs that is a median of; 0 where it is put together from its parts.
        train_bytes: Most memory taken while training.
        loading: Images a second of the loader alone.
        val_bytes: Most memory taken by a validation; 0 where none was measured for itself.
        densest: Objects of the training image that has most. A step of the images that have most of them is in
            `train_bytes`; 0 where it is not.
        densest_fails: What has become of that step where it has failed.
    """

    batch: int
    batches: int
    step: float
    wait: float
    epoch: float
    epochs_seen: int
    train_bytes: int
    loading: float = 0.0
    val_bytes: int = 0
    densest: int = 0
    densest_fails: str = ""

    @property
    def speed(self) -> float:
        """Images a second between the first step of an epoch and its last."""
        return self.batch / (self.step + self.wait)


#: Measures a training with some of its arguments changed; None where that does not run, as for want of memory.
Measure = Callable[[Mapping[str, Any]], Optional[Measured]]


@dataclass(frozen=True)
class Largest:
    """The training with the largest batch that fits.

    Attributes:
        why: How that batch was found, or why none was.
        measured: With that batch, and nothing else changed; None where none was found.
    """

    why: str
    measured: Optional[Measured] = None


#: Finds the largest batch that fits and measures with it; None where memory is not measured.
Find = Callable[[], Optional[Largest]]


@dataclass(frozen=True)
class Tried:
    """One change, on top of those before it that were kept.

    Attributes:
        change: The argument as a user gives it.
        speed: Images a second, 0 where it did not run.
        loading: Images a second of the loader alone.
        gain: That over the speed before.
        kept: Whether it pays.
    """

    change: str
    speed: float
    loading: float
    gain: float
    kept: bool


@dataclass(frozen=True)
class Outlook:
    """What the training will take, and what pays.

    Attributes:
        measured: As it is.
        epochs: Of the run.
        tried: Changes in the order in which they were made.
        largest: With the largest batch that fits; None where memory is not measured.
    """

    measured: Measured
    epochs: int
    tried: tuple[Tried, ...]
    largest: Optional[Largest] = None

    def hours(self, measured: Measured) -> float:
        """Return how long the whole run takes, if no early stop ends it.

        Args:
            measured: Some seconds of it.
        """
        return measured.epoch * self.epochs / 3600

    def to_dict(self) -> dict[str, Any]:
        """Return this as `doctor --json` has it."""
        found = {**asdict(self), "hours": self.hours(self.measured)}
        if self.largest is not None and self.largest.measured is not None:
            found["largest"]["hours"] = self.hours(self.largest.measured)
        return found

    def __str__(self) -> str:
        now = self.measured
        lines = [
            f"measured: {self._taken(now)}",
            *_memory(now),
            *(self._at_largest(self.largest) if self.largest is not None else []),
            f"  {'change':<20} {'images/s':>9} {'loader alone':>13} {'gain':>6}",
            f"  {'as it is':<20} {_figure(now.speed):>9} {_figure(now.loading):>13}",
        ]
        for one in self.tried:
            told = (
                f"{_figure(one.speed):>9} {_figure(one.loading):>13} {one.gain:>5.2f}x"
                if one.speed
                else f"{'fails':>9}"
            )
            lines.append(f"  {one.change:<20} {told} {'kept' if one.kept else ''}".rstrip())
        return "\n".join(lines)

    def _at_largest(self, largest: Largest) -> list[str]:
        if largest.measured is None:
            return [f"largest batch that fits: not found: {largest.why}"]
        found = largest.measured
        return [
            f"largest batch that fits: {found.batch} ({largest.why}), {_figure(found.speed)} images/s",
            f"  measured with it: {self._taken(found)}",
            *_memory(found),
        ]

    def _taken(self, measured: Measured) -> str:
        seen = f"{measured.epochs_seen} whole epochs" if measured.epochs_seen else "its parts"
        waits = measured.wait / (measured.step + measured.wait)
        return (
            f"{_duration(self.hours(measured))} for {self.epochs} epochs of {measured.epoch:.3g} s, by {seen}:"
            f" a step {measured.step * 1000:.3g} ms, {waits:.0%} of its time waiting for data"
        )


def _memory(measured: Measured) -> list[str]:
    densest = f" (of the densest images, up to {measured.densest} objects)" if measured.densest else ""
    validation = f", {measured.val_bytes / GIB:.3g} GiB in validation" if measured.val_bytes else ""
    lines = [f"  memory: {measured.train_bytes / GIB:.3g} GiB in training{densest}{validation}"]
    fails = measured.densest_fails
    return [*lines, f"  a step of the densest images fails: {fails}"] if fails else lines


def _duration(hours: float) -> str:
    return f"{hours:.3g} h" if hours >= 1 else f"{hours * 60:.3g} min"


def _figure(value: float) -> str:
    """Return three digits of a number that may be large."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def outlook(foreseen: Foreseen, machine: Machine, measure: Measure, find: Find) -> Outlook:
    """Measure a training, the same with the largest batch that fits, and one change after the other.

    Args:
        foreseen: The training.
        machine: Where it runs.
        measure: Measures it.
        find: Finds that batch.

    Raises:
        PatchesError: The training does not run.
    """
    now = measure({})
    if now is None:
        raise PatchesError("doctor --measure: the training ends before it can be measured; does 'yolo train' run it?")
    largest = find()
    # Where upstream was asked to find a batch, it would do so for every change anew.
    kept: dict[str, Any] = {} if foreseen.facts.batch.size >= 1 else {"batch": now.batch}
    best, tried = now.speed, []
    for name, values in _candidates(foreseen, machine, now):
        for value in values:
            found = measure({**kept, name: value})
            speed = found.speed if found is not None else 0.0
            pays = speed > best * PAYS
            loading = found.loading if found is not None else 0.0
            tried.append(Tried(foreseen.settings.spell(name, value), speed, loading, speed / best, pays))
            if not pays:
                break
            kept[name], best = value, speed
    return Outlook(now, foreseen.facts.optimization.epochs, tuple(tried), largest)


def _candidates(foreseen: Foreseen, machine: Machine, now: Measured) -> Iterator[tuple[str, list[Any]]]:
    """Yield argument -> values, tried in turn for as long as they pay: workers, the batch, decoded images in memory."""
    settings, start = foreseen.settings, min(foreseen.settings.workers or 0, machine.cores)
    more = [workers for workers in (1, 2, 4, 8, 16, 32) if start < workers <= machine.cores]
    less = [workers for workers in (16, 8, 4, 2, 1, 0) if workers < start]
    yield "workers", more or less
    yield "batch", [now.batch * 2, now.batch * 4] if now.batches > 2 else []
    yield "cache", [] if settings.cache else ["ram"]
