"""Seams at which nothing is to be changed: what has come of a step, or of an epoch; see `yolo_patches.seams`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from yolo_patches.seams import Seam


@dataclass
class Clip(Seam):
    """The gradients of one effective batch have been clipped.

    Attributes:
        norm: Their norm before, a tensor of no dimension on the training's device: reading it waits for the device.
        limit: The largest norm that they may have.
    """

    norm: Any
    limit: float


@dataclass
class EpochEnd(Seam):
    """An epoch has ended, with its validation and its checkpoint. Fired on the rank that writes the run directory.

    Attributes:
        epoch: Number of the epoch, from 0.
        directory: The run directory.
        rows: patches.csv as it stands, epoch -> columns, those of a resumed run's earlier epochs among them.
        columns: What is to be written of this epoch, and given to upstream's loggers; patches may add to it.
        tell: Logs a warning, once.
        then: Called when the row is written; patches may add to it. What raises there is told, and no more.
    """

    epoch: int
    directory: Path
    rows: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    columns: dict[str, float] = field(default_factory=dict)
    tell: Callable[[str], None] = print
    then: list[Callable[[], None]] = field(default_factory=list)
