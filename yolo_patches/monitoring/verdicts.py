"""What an epoch's figures say must be changed: a line each, with the figure that says so, and no more than a few."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from yolo_patches import cores

#: Verdicts that a run is told, at most.
MOST = 3
#: Shares of an epoch, or of its steps, above which something is said.
WAITING, VALIDATING, SKIPPED, LOPSIDED = 0.3, 0.5, 0.1, 1.5


@dataclass(frozen=True)
class Circumstances:
    """What a verdict needs to know beside the figures.

    Attributes:
        workers: Of the training loader, on this rank.
        ranks: Number of ranks on this node.
        synchronised: Whether ranks share their BatchNorm statistics.
    """

    workers: int = 0
    ranks: int = 1
    synchronised: bool = False

    @property
    def cores(self) -> int:
        """Cores that this rank may use."""
        return max(cores.usable() // self.ranks, 1)


Row = Mapping[str, float]


class Verdicts:
    """The verdicts of one run, each of them once."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def of(self, row: Row, circumstances: Circumstances) -> Iterator[str]:
        """Return what an epoch's figures say that has not been said.

        Args:
            row: The epoch's columns.
            circumstances: The run's.
        """
        for verdict in (_ranks_differ, _input_bound, _one_rank_waits, _validation_bound, _overflows):
            line = verdict(row, circumstances)
            if line and verdict.__name__ not in self._said and len(self._said) < MOST:
                self._said.add(verdict.__name__)
                yield line


def _ranks_differ(row: Row, circumstances: Circumstances) -> str:
    weights, statistics = row.get("ranks/weights_differ", 0.0), row.get("ranks/statistics_differ", 0.0)
    if weights:
        return f"ranks train different weights: they differ by {weights:.2g}; please report it, with patches.json"
    if statistics and circumstances.synchronised:
        return f"BatchNorm statistics of the ranks differ by {statistics:.2g} under sync-bn; please report it"
    if statistics:
        return f"BatchNorm statistics of the ranks differ by {statistics:.2g}: each has its own; patches=sync-bn"
    return ""


def _input_bound(row: Row, circumstances: Circumstances) -> str:
    waits, workers, cores = row.get("time/data", 0.0), circumstances.workers, circumstances.cores
    if waits < WAITING:
        return ""
    said = f"input-bound: {waits:.0%} of the epoch waits for data; "
    # Workers that are busy all the time and keep up with a share 1 - w of what is asked for are too few by that share.
    wanted = min(math.ceil(max(workers, 1) / (1 - min(waits, 0.9))), cores)
    if wanted > workers:
        return said + f"workers {workers} -> {wanted} ({_cores(cores)} for this rank)"
    return said + f"its {workers} workers have {_cores(cores)}: cache=disk, or smaller images on disk"


def _one_rank_waits(row: Row, circumstances: Circumstances) -> str:
    skew = row.get("ranks/step_skew", 1.0)
    return f"one rank's step takes {skew:.2f} times the median: all ranks wait for it" if skew > LOPSIDED else ""


def _validation_bound(row: Row, circumstances: Circumstances) -> str:
    share = row.get("time/validation", 0.0)
    if share < VALIDATING:
        return ""
    return f"validation takes {share:.0%} of the epoch: patches=all,val-period:share=0.1 leaves validations out"


def _overflows(row: Row, circumstances: Circumstances) -> str:
    skipped, steps = row.get("amp/skipped", 0.0), row.get("steps", 0.0)
    if not steps or skipped / steps < SKIPPED:
        return ""
    said = f"AMP has skipped {skipped:.0f} of {steps:.0f} steps (loss scale {row['amp/scale']:g}): "
    return said + "amp=False, or a lower lr0"


def _cores(number: int) -> str:
    return f"{number} core{'s' * (number > 1)}"
