"""Where a training's data sets come to the seam of their samples, and how long what stands in is in place."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from yolo_patches.activation import activation
from yolo_patches.lifecycle import Lifecycle
from yolo_patches.loading_seams import Samples
from yolo_patches.upstreams.ultralytics import samples
from yolo_patches.upstreams.ultralytics.origin import is_upstreams
from yolo_patches.upstreams.ultralytics.sample_remainders import (
    FinishedLoader,
    Unfinished,
    is_unfinished,
    leaves,
    workers_leave,
)
from yolo_patches.upstreams.ultralytics.seam_sources import LOADERS
from yolo_patches.wrapping import Call


class SampleParts:
    """The parts of one training's samples; entered with the training and left with it.

    Args:
        trainer: Whose data sets, loaders and batches they are.
        lifecycle: Of the training.
    """

    def __init__(self, trainer: Any, lifecycle: Lifecycle) -> None:
        self._trainer = trainer
        self._lifecycle = lifecycle
        self._finishing: list[tuple[Any, Any]] = []  # of which data set
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
        seam = lifecycle.fire(samples.samples(dataset, self._kept()))
        if not seam.ways:
            return
        placed = samples.InPlace(dataset, seam)
        if activation.current is lifecycle and not self._functions:  # else nobody would put them back
            self._functions = True
            placed.functions(self._stack)
        seam.trouble = placed.probe(dataset, self._trainer.device)
        if seam.finishing is not None:
            self._finishing.append((dataset, seam.finishing))

    def _kept(self) -> str:
        """Return why nobody may be given batches whose last pixels are undone; empty where the trainer is as known."""
        kinds = [kind for kind in type(self._trainer).__mro__ if "preprocess_batch" in vars(kind)]
        if not kinds or not all(is_upstreams(vars(kind)["preprocess_batch"]) for kind in kinds):
            return "batches are prepared by a trainer of your own"
        return ""

    def loader(self, make: Callable[[], Any], training: Callable[[], bool]) -> Any:
        """Return a loader that upstream makes; that its workers leave pixels undone does not show.

        Args:
            make: Upstream's function, with its arguments.
            training: Tells whether it is for training.
        """
        lifecycle = self._lifecycle
        if not (lifecycle.listens(Samples) and lifecycle.attempt(training)):
            return make()
        with workers_leave(LOADERS):
            loader = make()
        found = lifecycle.attempt(lambda: self._finished(loader), Samples)
        return loader if found is None else found

    def _finished(self, loader: Any) -> Any:
        found = [finishing for dataset, finishing in self._finishing if dataset is getattr(loader, "dataset", None)]
        if not found:
            return loader
        if not leaves(loader):
            found[0].stop("the training's own process makes its batches, or workers that begin in another way")
            return loader
        return FinishedLoader(loader, found[0])

    def finished(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return arguments of upstream's preparation with a batch whose images are done, on the device that trains."""
        device = self._trainer.device
        if not self._finishing:
            return args, kwargs
        done = [self._whole(one).on(device) if is_unfinished(one) else one for one in (*args, *kwargs.values())]
        return tuple(done[: len(args)]), dict(zip(kwargs, done[len(args) :]))

    def _whole(self, batch: dict[str, Any]) -> Unfinished:
        """Return a batch as it comes from our loader; one that is made of that loader's parts has not been there."""
        return batch if isinstance(batch, Unfinished) else Unfinished(batch, self._finishing[-1][1])

    def trained_on(self, batch: Any) -> None:
        """Look at a batch as upstream has prepared it."""
        for _, finishing in self._finishing:
            finishing.note(batch["img"])
