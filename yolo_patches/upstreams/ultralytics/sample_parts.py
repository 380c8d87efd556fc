"""Where a training's data sets come to the seam of their samples, and how long what stands in is in place."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from yolo_patches.activation import activation
from yolo_patches.lifecycle import Lifecycle
from yolo_patches.loading_seams import Samples
from yolo_patches.upstreams.ultralytics import samples
from yolo_patches.wrapping import Call


class SampleParts:
    """The parts of one training's samples; entered with the training and left with it.

    Args:
        lifecycle: Of the training.
    """

    def __init__(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle
        self._stack = ExitStack()
        self._functions = False

    def __enter__(self) -> SampleParts:
        return self

    def __exit__(self, *_: object) -> None:
        """Put upstream's functions back."""
        self._functions = False
        self._stack.close()

    def build_dataset(self, wrapped: Any, _: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Build a data set as upstream does, and let patches replace its parts."""
        dataset = wrapped(*args, **kwargs)
        self._lifecycle.attempt(lambda: self.of(dataset, Call(wrapped, args, kwargs)), Samples)
        return dataset

    def of(self, dataset: Any, call: Call) -> None:
        """Let patches replace parts of a data set that has just been built.

        Args:
            dataset: Upstream's, or a user's.
            call: Of `build_dataset`.
        """
        lifecycle = self._lifecycle
        if call["mode"] != "train" or not lifecycle.listens(Samples):
            return
        seam = lifecycle.fire(samples.samples(dataset))
        if not seam.ways:
            return
        placed = samples.InPlace(dataset, seam)
        if activation.current is lifecycle and not self._functions:  # else nobody would put them back
            self._functions = True
            placed.functions(self._stack)
        seam.trouble = placed.probe(dataset)
