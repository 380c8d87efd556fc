"""A part of ours in place of one of upstream's, in whichever process makes the samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

#: Calls that are made both ways in a process, and compared, before ours is believed there.
COMPARED = 4
#: Steps of 8 bits by which the pixels of a near way may differ from upstream's on average.
NEAR = 1.0
#: Columns of the ledger.
CALLS, DIFFERS, RAISES, OFF = range(4)


class Ledger:
    """What has become of parts, in memory that loader workers share with the training, forked or spawned.

    Args:
        names: Of the parts.
    """

    def __init__(self, names: Sequence[str]) -> None:
        import torch

        self.names = {name: row for row, name in enumerate(names)}
        self._memory = torch.zeros((len(names), 4), dtype=torch.int64)
        self._memory.share_memory_()  # type: ignore[no-untyped-call]
        self.counts = self._memory.numpy()  # the same memory, without the cost of a tensor's operations

    def __getstate__(self) -> dict[str, Any]:
        return {"names": self.names, "_memory": self._memory}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.counts = self._memory.numpy()

    def count(self, name: str, column: int) -> None:
        """Add one; two workers that do so at once may count as one."""
        self.counts[self.names[name], column] += 1

    def has(self, name: str, column: int) -> bool:
        """Return whether anything has been counted."""
        return bool(self.counts[self.names[name], column])

    def switch(self, on: bool) -> None:
        """Have all parts done by ours where they can, or by upstream's, in all processes."""
        self.counts[:, OFF] = 0 if on else 1

    def trouble(self) -> list[str]:
        """Return the parts that are upstream's again, and why."""
        words = {DIFFERS: "had another result than upstream's", RAISES: "failed"}
        return [f"{name} {why}" for name in self.names for column, why in words.items() if self.has(name, column)]


class Part:
    """One part: what upstream's releases are known to do, one way each; the first that does the same stands in.

    Nothing of the arguments may be changed by a way, nor by what is given as upstream's.

    Args:
        name: In the ledger.
        ways: Functions of the same arguments; None as a result leaves this call to upstream.
        ledger: Where it is noted.
        near: Way -> what stands in for it where pixels may be nearly upstream's; None as a result leaves the call to
            the way. It is believed once it has had a result, and no other than one near upstream's.
    """

    def __init__(
        self,
        name: str,
        ways: Sequence[Callable[..., Any]],
        ledger: Ledger,
        near: Mapping[Callable[..., Any], Callable[..., Any]] | None = None,
    ) -> None:
        self.name = name
        self.ways = list(ways)
        self._near = {way: other for way, other in (near or {}).items() if way in ways}
        self._shown: set[Callable[..., Any]] = set()
        self._ledger = ledger
        self._equal = 0

    def __call__(self, upstream: Callable[..., Any], *args: Any) -> Any:
        """Return the result for these arguments, upstream's or the same."""
        if not self.ways or self.off:
            return upstream(*args)
        if self._equal < COMPARED:
            return self._compared(upstream, *args)
        way = self.ways[0]
        made = self._nearly(way, *args) if way in self._shown else None
        if made is None:
            made = self._made(way, *args)
        if made is None:
            return upstream(*args)
        self.stood_in()
        return made

    def stood_in(self) -> None:
        """Note that ours has done the work."""
        self._ledger.count(self.name, CALLS)

    def failed(self) -> None:
        """Note that ours has failed: upstream's does it from here on, in this process."""
        self.ways.clear()
        self._ledger.count(self.name, RAISES)

    @property
    def off(self) -> bool:
        """Whether everything is upstream's, in all processes."""
        return self._ledger.has(self.name, OFF)

    @property
    def believed(self) -> bool:
        """Whether no call is made both ways any longer."""
        return bool(self.ways) and self._equal >= COMPARED and not self.off

    def _compared(self, upstream: Callable[..., Any], *args: Any) -> Any:
        """Return upstream's result, and go on with the ways that have the same."""
        theirs = upstream(*args)
        made = [(way, self._made(way, *args)) for way in list(self.ways)]
        for way in list(self._near):
            result = self._nearly(way, *args)
            if result is not None and is_near(result, theirs):
                self._shown.add(way)
            elif result is not None:
                self._forget(way)
        if self.ways and any(result is not None for _, result in made):
            self.ways = [way for way, result in made if result is None or alike(result, theirs)]
            self._equal += 1
            if not self.ways:
                self._ledger.count(self.name, DIFFERS)
        return theirs

    def _nearly(self, way: Callable[..., Any], *args: Any) -> Any:
        """Return what is near a way's result; None where the way has to make it."""
        try:
            return self._near[way](*args)
        except Exception:  # whatever it is, the way itself is there
            self._forget(way)
            return None

    def _forget(self, way: Callable[..., Any]) -> None:
        self._near.pop(way, None)
        self._shown.discard(way)

    def _made(self, way: Callable[..., Any], *args: Any) -> Any:
        try:
            return way(*args)
        except Exception:  # whatever it is, the training's process tells
            self.failed()
            return None


def alike(one: Any, other: Any) -> bool:
    """Return whether two results are the same: types of numbers, shapes and bits."""
    if isinstance(one, (list, tuple)) or isinstance(other, (list, tuple)):
        both = isinstance(one, (list, tuple)) and isinstance(other, (list, tuple))
        return both and len(one) == len(other) and all(map(alike, one, other))
    ours, theirs = np.asarray(one), np.asarray(other)
    return ours.dtype == theirs.dtype and ours.shape == theirs.shape and ours.tobytes() == theirs.tobytes()


def is_near(one: Any, other: Any) -> bool:
    """Return whether images are the same on average: types, shapes, and pixels to within a step of 8 bits."""
    ours, theirs = np.asarray(one), np.asarray(other)
    if ours.dtype != np.uint8 or theirs.dtype != np.uint8 or ours.shape != theirs.shape or not ours.size:
        return False
    return bool(np.abs(ours.astype(np.int16) - theirs).mean() <= NEAR)
