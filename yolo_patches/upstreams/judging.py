"""What is made of a validation's result: what best.pt goes by, what early stopping is given, what is logged."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import wrapt

from yolo_patches.lifecycle import Lifecycle
from yolo_patches.upstreams.epoch_rows import EpochRows
from yolo_patches.validation_seams import Judged


class Judging:
    """The judgements of one training, on the rank that writes its checkpoints.

    Args:
        lifecycle: The training's.
        rows: Takes what patches say of an epoch.
    """

    def __init__(self, lifecycle: Lifecycle, rows: EpochRows) -> None:
        self._lifecycle = lifecycle
        self._rows = rows
        self._stopping: float | None = None
        self.stopper: Any = None
        self._first = 0

    def judge(
        self, epoch: int, fitness: float, metrics: Mapping[str, float], directory: Path, start: int
    ) -> Judged | None:
        """Let patches judge a validation; None where none does, or it has failed.

        Args:
            epoch: Of the validation, from 0.
            fitness: Upstream's.
            metrics: As in results.csv, without "metrics/".
            directory: The run directory.
            start: The training's first epoch.
        """
        self._stopping = None
        seam = self._lifecycle.attempt(lambda: self._fire(epoch, fitness, metrics, directory, start), Judged)
        if seam is not None:
            self._stopping = seam.stopping
            if columns := seam.columns:
                self._lifecycle.attempt(lambda: self._rows.open(directory, start).add(epoch, columns))
        return seam

    def _fire(self, epoch: int, fitness: float, metrics: Mapping[str, float], directory: Path, start: int) -> Judged:
        self._rows.open(directory, start)
        seam = self._lifecycle.fire(Judged(epoch, fitness, metrics, self._rows.past))
        if seam.recalled is not None and self.stopper is not None and not self.stopper.best_fitness:
            self.stopper.best_fitness, self.stopper.best_epoch = seam.recalled[0], seam.recalled[1] + self._first
        return seam

    def following(self, stopper: Any, first: int) -> Any:
        """Return a stopper that takes what patches have judged.

        Args:
            stopper: Upstream's.
            first: The number that it is told for the first epoch.
        """
        self.stopper, self._first = stopper, first
        return Stopper(stopper, self)

    @property
    def best_for_stopping(self) -> float | None:
        """The best that early stopping has been given, as upstream holds it."""
        best = None if self.stopper is None else self.stopper.best_fitness
        return None if best is None else float(best.item() if hasattr(best, "item") else best)  # an array, in scripts

    def instead_of(self, fitness: Any) -> Any:
        """Return what early stopping is to be given for a fitness."""
        return fitness if self._stopping is None or fitness is None else self._stopping


class Stopper(wrapt.ObjectProxy):  # type: ignore[misc,type-arg,unused-ignore]
    """Upstream's early stopping, which is given what patches have judged."""

    def __init__(self, stopper: Any, judging: Judging) -> None:
        super().__init__(stopper)
        self._self_judging = judging

    def __call__(self, epoch: int, fitness: Any) -> Any:
        """Return whether to stop."""
        return self.__wrapped__(epoch=epoch, fitness=self._self_judging.instead_of(fitness))
