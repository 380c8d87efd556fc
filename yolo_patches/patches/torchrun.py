"""torchrun: the ranks of a run are those that a launcher started."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from yolo_patches.errors import PatchesError
from yolo_patches.facts import Facts
from yolo_patches.patch import Patch, Phase
from yolo_patches.plan import Change, Decision
from yolo_patches.seams import Live, Ranks, Seam
from yolo_patches.selection import Option


class Torchrun(Patch):
    """Train on the ranks that torchrun, or a launcher that sets the same variables, has started.

    Upstream takes its world size from `device=` and its devices from one node's list, so it knows neither several nodes
    nor ranks without CUDA (https://github.com/ultralytics/ultralytics/issues/7282).
    """

    name: ClassVar[str] = "torchrun"
    summary: ClassVar[str] = "train on the ranks that torchrun started, on one node or several, on CUDA devices or CPU"
    source: ClassVar[str] = "https://github.com/ultralytics/ultralytics/issues/7282"
    default: ClassVar[bool] = False
    options: ClassVar[Mapping[str, Option]] = {
        "backend": Option(
            str, "of the collectives; auto is nccl on CUDA devices, else gloo", "auto", choices=("auto", "nccl", "gloo")
        ),
    }
    needs: ClassVar[tuple[type[Seam], ...]] = (Ranks,)
    phase: ClassVar[Phase] = Phase.SCHEDULE

    def decide(self, facts: Facts) -> Decision:
        """Take the launcher's ranks, where there is one and the batch and the devices can be shared among them."""
        place = facts.devices.launcher
        self._ranks = 1 if place is None else place.world_size
        if facts.devices.own_ranks:
            return Decision("inert", "upstream takes its ranks from the launcher itself")
        if place is None:
            return Decision("inert", "no launcher started this run: its ranks are those of device=")
        on_node, named, batch = place.local_world_size, facts.devices.named, facts.batch.size
        if named and (named != on_node if on_node else named <= place.local_rank):
            raise PatchesError(
                f"device= names {_count(named, 'device')}, but the launcher started "
                f"{_count(on_node or place.local_rank + 1, 'rank')} on this node; name as many, or leave device= out"
            )
        if place.world_size == 1:
            return Decision("active", "the launcher started one rank, which trains like a process without a launcher")
        if batch < 1:
            raise PatchesError(
                f"batch={batch:g} (AutoBatch) measures the memory of one device and cannot serve "
                f"{place.world_size} ranks; set batch to a multiple of {place.world_size}"
            )
        if batch % place.world_size:
            below = int(batch) // place.world_size * place.world_size
            valid = " or ".join(str(batch) for batch in (below, below + place.world_size) if batch)
            raise PatchesError(
                f"batch={batch:g} cannot be shared by {place.world_size} ranks: it is the batch of all "
                f"ranks together; the nearest valid is {valid}"
            )
        return Decision(
            "active",
            "ranks and devices come from the launcher",
            (Change("ranks", max(named, 1), place.world_size),),
        )

    def handlers(self) -> Mapping[type[Seam], Callable[[Any], Decision | None]]:
        """Handle the seam at which the ranks form their group."""
        return {Ranks: self._form}

    def verify(self, live: Live) -> bool | None:
        """Check that the group, and the training loader's shards, are as many as the launcher's ranks."""
        from torch import distributed

        if self._ranks == 1:
            return not distributed.is_initialized()
        sampler = getattr(live.train_loader, "sampler", None)
        shards = getattr(sampler, "num_replicas", 1)
        return bool(distributed.is_initialized() and distributed.get_world_size() == self._ranks == shards)

    def _form(self, seam: Ranks) -> None:
        if self.values["backend"] != "auto":
            seam.backend = self.values["backend"]


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"
