"""The rows of patches.csv of one training, on the rank that writes its run directory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from yolo_patches.epoch_log import EpochLog
from yolo_patches.lifecycle import Lifecycle
from yolo_patches.observation_seams import EpochEnd

#: What figures are called where upstream's loggers take them.
PREFIX = "patches/"


class EpochRows:
    """What patches have to say of each epoch.

    Args:
        lifecycle: The training's.
    """

    def __init__(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle
        self._log: EpochLog | None = None
        self._start = 0
        self._ended: set[int] = set()
        self._logged: dict[int, dict[str, float]] = {}

    def open(self, directory: Path, start: int) -> EpochLog:
        """Return the table of a run directory.

        Args:
            directory: The run directory.
            start: The training's first epoch, from 0.
        """
        if self._log is None:
            self._log, self._start = EpochLog(directory, start), start
        return self._log

    @property
    def past(self) -> dict[int, dict[str, float]]:
        """The rows of the epochs before this training."""
        rows = {} if self._log is None else self._log.rows
        return {epoch: row for epoch, row in rows.items() if epoch < self._start}

    def end(self, epoch: int, directory: Path, start: int) -> bool:
        """Let patches say what there is to say of an epoch that has ended; return whether it is the first time.

        Args:
            epoch: From 0.
            directory: The run directory.
            start: The training's first epoch, from 0.
        """
        if epoch in self._ended or not self._lifecycle.listens(EpochEnd):
            return False
        self._ended.add(epoch)
        self._lifecycle.attempt(lambda: self._end(epoch, directory, start))
        return True

    def _end(self, epoch: int, directory: Path, start: int) -> None:
        log = self.open(directory, start)
        seam = self._lifecycle.fire(EpochEnd(epoch, directory, log.rows, tell=self._lifecycle.tell))
        self._logged[epoch] = {PREFIX + name: value for name, value in seam.columns.items()}
        if seam.columns:
            log.add(epoch, seam.columns)
        for then in seam.then:
            self._lifecycle.attempt(then)

    def logged(self, epoch: int) -> Mapping[str, float]:
        """Return what loggers are to have of an epoch, beside upstream's own figures."""
        return self._logged.get(epoch, {})
