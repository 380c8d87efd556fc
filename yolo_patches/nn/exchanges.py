"""What ranks tell each other in one step, each thing once, however often a rank begins the step anew.

A rank that has no memory for its micro-batch computes it in parts, alone: the others know nothing of it, and wait for
what it owes them. So there is one book of what it has told and been told. The pass that fails leaves what it has come
to; the first part goes on from there and speaks for all of the rank's images; the other parts take what the book says
of the other ranks, and speak for all of the rank's images to themselves. No rank waits for more, or for less, than it
would without a failure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Optional, Protocol

from torch import Tensor

__all__ = ["Exchanges", "current"]

#: A layer's call, and the pass that it belongs to.
Place = tuple[str, int]
#: Waits for all ranks' messages.
Answer = Callable[[], Tensor]


class Message(Protocol):
    """Something that is on its way."""

    def wait(self) -> Tensor:
        """Return what every rank has sent, one a row."""


class NothingToldError(RuntimeError):
    """A part of a micro-batch comes to something that its first part has not come to."""


class Exchanges:
    """The book of one step of one rank.

    Attributes:
        weight: Images of the rank over those of the pass that is being made.
    """

    def __init__(self) -> None:
        self.weight = 1.0
        self._rows: dict[Place, Tensor] = {}
        self._pending: Optional[tuple[Place, Message]] = None
        self._answers = True
        self._calls = 0
        self._of_all: set[Place] = set()
        self._noted: set[tuple[str, int]] = set()

    @contextmanager
    def passing(self, weight: float = 1.0, answers: bool = True) -> Iterator[None]:
        """Let the block make a forward pass; its backward pass belongs to it wherever it is made.

        Args:
            weight: Images of the rank over those of the pass, which speaks for all of them.
            answers: Whether it may tell the other ranks what they have not been told yet.
        """
        global _current
        self.settle()
        self.weight, self._answers, self._calls = weight, answers, 0
        before, _current = _current, self
        try:
            yield
        finally:
            _current = before

    def call(self) -> int:
        """Return the number of a layer's call in this pass; layers are called in one order in all of them."""
        self._calls += 1
        return self._calls - 1

    def first(self, what: str, call: int) -> bool:
        """Return whether something is done for the first time at a layer's call, in any of the passes."""
        return (what, call) not in self._noted

    def note(self, what: str, call: int) -> None:
        """Note that something has been done at a layer's call."""
        self._noted.add((what, call))

    def settled(self, direction: str, call: int) -> bool:
        """Return whether a layer's call has been told what all ranks have, by a pass of all images."""
        self.settle()
        return (direction, call) in self._of_all

    def ask(self, direction: str, call: int, message: Tensor, rank: int, send: Callable[[], Message]) -> Answer:
        """Return a function that waits for what all ranks have sent, one a row.

        Args:
            direction: "forward" or "backward".
            call: The layer's.
            message: This rank's own, of this pass: it stands in its row where a part has told another one.
            rank: This rank.
            send: Sends it, where nothing has been sent yet.

        Raises:
            NothingToldError: Nothing has been sent, and this pass may not do so.
        """
        self.settle()
        place = (direction, call)
        if place not in self._rows:
            if not self._answers:
                raise NothingToldError(f"a part of the images comes to a {direction} pass that the first part has not")
            self._pending = place, send()
            if self.weight == 1:
                self._of_all.add(place)

        def wait() -> Tensor:
            self.settle()
            rows = self._rows[place]
            if place in self._of_all:
                return rows
            rows = rows.clone()
            rows[rank] = message
            return rows

        return wait

    def settle(self) -> None:
        """Wait for what has been sent and not answered: a pass may have failed in between."""
        if self._pending is not None:
            place, message = self._pending
            self._rows[place] = message.wait()
            self._pending = None


_current: Optional[Exchanges] = None


def current() -> Optional[Exchanges]:
    """Return the book of the step whose forward pass is being made; None where nobody keeps one."""
    return _current
