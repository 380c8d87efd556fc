"""Where a training's steps begin and end that every rank makes. Between them, everything is somebody's own.

A step begins with an event that the script fires on every rank, after whatever else listens to it; where the script has
its callbacks commented out, as YOLOv9's and YOLOv5's scripts for masks have, when the training loader hands out a
batch. It ends with the next event, before anybody hears of it; where there are no events, with the backward pass. And
it ends in any case when gradients are clipped, when the loader is asked for more, at a validation, and with the run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from yolo_patches.nn import common_step
from yolo_patches.upstreams.scripts.script_seams import STEP_EVENT
from yolo_patches.wrapping import bind

EPOCH_EVENT, END_OF_EPOCH_EVENT = "on_train_epoch_start", "on_fit_epoch_end"


class Steps:
    """The steps of one training.

    Args:
        begin: Called right before each step, on every rank.
        epoch: Called at the event with which an epoch begins, on every rank.
        epoch_over: Called at the end of an epoch and its validation, on rank 0, before whatever else listens to it.
        epoch_ended: Called after it.
        by_events: Whether the script fires the events; else its loader tells.
    """

    def __init__(
        self,
        begin: Callable[[], None],
        epoch: Callable[[], None],
        epoch_over: Callable[[], None],
        epoch_ended: Callable[[], None],
        by_events: bool,
    ) -> None:
        self._begin = begin
        self._epoch = epoch
        self._epoch_over = epoch_over
        self._epoch_ended = epoch_ended
        self.by_events = by_events

    def open(self) -> None:
        """Begin a step."""
        self._begin()
        common_step.open_step()

    @contextmanager
    def listening(self, callbacks: Any) -> Iterator[None]:
        """Listen to a script's events for the duration of a training."""
        if not self.by_events:
            yield
            return
        own = vars(callbacks).get("run", self)
        bind(callbacks, "run", self._event)
        try:
            yield
        finally:  # the script's main() has one object for all of its trainings
            if own is self:
                del callbacks.run
            else:
                callbacks.run = own

    def _event(self, wrapped: Callable[..., Any], _: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        event = args[0] if args else kwargs.get("hook")
        common_step.close()  # the listeners are anybody's, and many of them are rank 0's alone
        if event == END_OF_EPOCH_EVENT:
            self._epoch_over()
        result = wrapped(*args, **kwargs)
        if event == STEP_EVENT:
            self.open()
        elif event == EPOCH_EVENT:
            self._epoch()
        elif event == END_OF_EPOCH_EVENT:
            self._epoch_ended()
        return result

    def passing(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Follow one pass over the training loader."""
        if self.by_events:
            yield from batches
            return
        try:
            for batch in batches:
                self.open()
                yield batch
                common_step.close()
        finally:
            common_step.close()

    def computed(self, loss: Any) -> None:
        """Let the step end with the backward pass of its loss, where no event will say so."""
        if not self.by_events and isinstance(loss, torch.Tensor) and loss.requires_grad and common_step.inside():
            loss.register_hook(_close_after_backward)  # type: ignore[no-untyped-call]


def _close_after_backward(_: Any) -> None:
    torch.autograd.Variable._execution_engine.queue_callback(common_step.close)
