"""feeding: loader workers by the cores that this process may use, and memory that their batches use again."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from yolo_patches import cores
from yolo_patches.facts import Facts
from yolo_patches.loading_seams import Feed
from yolo_patches.patch import Patch, Phase
from yolo_patches.plan import Change, Decision
from yolo_patches.seams import Live, Seam
from yolo_patches.selection import Option

#: Where a worker leaves its batches for the training; containers often have 64 MiB of it, and end when it is full.
SHARED = Path("/dev/shm")
#: Of that, the share that batches made ahead may take.
SHARE = 0.5
#: Bytes of a batch's place, as a multiple of a batch of square images: rectangular ones are a stride larger.
ROOM = 1.25
MEMORY = Change("images of a batch", "in shared memory of its own", "in memory that batches use again")
#: Loader -> its name in the plan.
NAMES = {True: "loader workers", False: "validation loader workers"}


class Feeding(Patch):
    """Give validation no more workers than training has; asked to, give training those that its cores can run.

    Their batches come in memory that is used again, with the same contents.

    Each worker draws its own random numbers, so another number of training workers is another run of the same seed.
    That is why it is left alone unless the user says `workers=cores`; validation draws nothing.
    """

    name: ClassVar[str] = "feeding"
    summary: ClassVar[str] = "batches in memory that is used again; no more loader workers than there is work for"
    source: ClassVar[str] = "https://github.com/ultralytics/ultralytics/issues/9843"
    default: ClassVar[bool] = False
    phase: ClassVar[Phase] = Phase.POLICY
    options: ClassVar[Mapping[str, Option]] = {
        "workers": Option(
            str,
            "upstream: as many as upstream has; cores: as many as the cores of this rank can run beside it",
            default="upstream",
            choices=("upstream", "cores"),
        ),
        "reuse": Option(
            bool, "whether workers leave the images of their batches in memory that is used again", default=True
        ),
    }
    needs: ClassVar[tuple[type[Seam], ...]] = (Feed,)
    follows: ClassVar[bool] = True

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self._given = False
        self._ranks = 1
        self._wanted: dict[bool, int] = {}  # of training, of validation
        self._upstream: dict[bool, int] = {}
        self._memories: dict[bool, Any] = {}

    def decide(self, facts: Facts) -> Decision:
        """Act wherever there may be workers; how many upstream takes is known when it builds its loaders."""
        self._given = "workers" in facts.given
        self._ranks = facts.devices.on_node
        where = f"{self._cores} core{'s' * (self._cores > 1)} for this rank"
        if not self._given and self.values["workers"] == "cores":
            return Decision("active", f"as many workers as {where} can run beside it: {self._fitting}")
        return Decision("active", f"no more workers for validation than for training, which has {self._kept}; {where}")

    def handlers(self) -> Mapping[type[Seam], Callable[[Any], Decision | None]]:
        """Set the workers of each loader."""
        return {Feed: self._feed}

    def verify(self, live: Live) -> bool | None:
        """Return whether the live loaders have the workers that were decided; None before there are any."""
        loaders = [(True, live.train_loader), *((False, loader) for loader in live.val_loaders)]
        seen = [
            loader.num_workers == self._wanted[training]
            for training, loader in loaders
            if training in self._wanted and hasattr(loader, "num_workers")
        ]
        if live.began and self._memories.get(True):
            seen.append(self._memories[True].used > 0)
            if not seen[-1]:
                self.trouble = "batches did not come in the memory that is used again"
        return all(seen) if seen else None

    @property
    def _cores(self) -> int:
        return max(cores.usable() // self._ranks, 1)

    @property
    def _fitting(self) -> int:
        """Workers beside the rank's own process, which needs a core to feed its device."""
        return max(self._cores - 1, 1)

    @property
    def _kept(self) -> str:
        return "the number that you gave" if self._given else "upstream's number"

    def _feed(self, seam: Feed) -> Decision:
        self._upstream[seam.training] = seam.workers
        if seam.workers:
            seam.workers = self._of_training(seam) if seam.training else self._of_validation(seam)
        self._wanted[seam.training] = seam.workers
        self._memories[seam.training] = self._placed(seam)
        changes = tuple(
            Change(NAMES[training], self._upstream[training], wanted)
            for training, wanted in self._wanted.items()
            if wanted != self._upstream[training]
        )
        if any(self._memories.values()):
            changes = (*changes, MEMORY)
        where = f"{self._cores} core{'s' * (self._cores > 1)} for this rank"
        if changes:
            return Decision("active", where, changes)
        if not any(self._upstream.values()):
            return Decision("inert", "the training's own process makes its batches: there are no workers")
        return Decision("inert", f"upstream's workers are as many as they should be; {where}")

    def _placed(self, seam: Feed) -> Any:
        """Have the batches of a loader come in memory that is used again; return it, or None where there is none."""
        if not (self.values["reuse"] and seam.workers and seam.collate and seam.batch_bytes):
            return None
        from yolo_patches.loading.batch_memory import BatchMemory, Collate

        try:
            memory = BatchMemory(int(seam.batch_bytes * ROOM), seam.workers, seam.prefetch)
        except (OSError, ValueError, OverflowError):  # the system promises no more memory than it has
            return None
        seam.collate = Collate(seam.collate, memory)
        return memory

    def _of_training(self, seam: Feed) -> int:
        if self._given or self.values["workers"] != "cores":
            return seam.workers
        fitting = self._fitting
        if fitting <= seam.workers:
            return fitting
        taken = max(min(fitting, self._room(seam)), seam.workers)
        if taken < fitting:
            self.notes[:] = [f"{SHARED} is not known to have room for the batches of more than {taken} workers"]
        return taken

    def _of_validation(self, seam: Feed) -> int:
        # While it is read, the workers of the training have made what they may make ahead, and wait.
        return min(seam.workers, self._wanted.get(True) or seam.workers)

    def _room(self, seam: Feed) -> int:
        """Return the workers whose batches fit into memory that processes share; a full one ends the training."""
        if not SHARED.is_dir() or not hasattr(os, "statvfs"):
            return self._fitting
        if not seam.batch_bytes:
            return seam.workers
        there = os.statvfs(SHARED)
        free = there.f_bavail * there.f_frsize * SHARE / self._ranks
        return int(free // (seam.batch_bytes * (seam.prefetch + 1)))
