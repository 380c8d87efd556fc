"""Seams: the named points that an adapter offers and that patches are written against.

A seam is a small dataclass. The adapter fills it in with what upstream is about to do, fires it, and goes on with what
comes back. Patches name the seams that they need; a patch whose seams the installed upstream lacks is unavailable.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Facts:
    """What an adapter knows about a run before anything is built.

    Attributes:
        upstream: Adapter name, e.g. "ultralytics".
        version: Installed upstream version.
        task: Upstream's task name, e.g. "detect".
        world_size: Number of ranks, at least 1.
        global_batch: Images per step over all ranks; less than 1 where upstream measures the batch itself (AutoBatch).
        val_batch_factor: Upstream's validation images per rank, as a multiple of the per-rank training batch.
    """

    upstream: str
    version: str
    task: str
    world_size: int
    global_batch: float
    val_batch_factor: int


class Seam:
    """Base of every seam; a subclass carries the values that a patch may read or change."""


@dataclass
class ValLoader(Seam):
    """The validation loader is about to be built.

    Attributes:
        batch: Images per rank and step; a patch may replace it.
        train_batch: The per-rank training batch.
    """

    batch: int
    train_batch: int


@dataclass
class TrainStart(Seam):
    """Everything is built and the first step is about to run: patches check their effect on the live objects.

    Attributes:
        val_loader: The live validation loader, or None on a rank that has none.
    """

    val_loader: Any
