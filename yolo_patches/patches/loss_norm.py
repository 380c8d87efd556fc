"""loss-norm: divide losses by the whole batch's normaliser, not by each rank's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from yolo_patches.facts import Facts
from yolo_patches.patch import Patch, Phase
from yolo_patches.plan import Change, Decision
from yolo_patches.seams import EpochLosses, Live, Normaliser, Seam

#: Largest relative error of the probe, which computes in the model's own type: float32 makes 1e-6 of it, a loss that
#: takes its normaliser another way 1e-2 at least.
TOLERANCE = 1e-4


class LossNorm(Patch):
    """Average every rank's loss normaliser over all ranks before anything is divided by it.

    A rank that divides by its own sum of target scores gives the objects of a sparse shard more weight than those of a
    crowded one. On N ranks the normaliser must be max(total, 1) / N, the reduce_mean of MMDetection and Detectron2;
    then the N-rank gradient is the one-process gradient on the same images (with BatchNorm synchronised and equally
    many images a rank). Upstream's relative error on unevenly crowded shards is 18 to 70 per cent.

    Before the first step the live loss is computed on three synthetic images, at once and as three ranks would: a
    release that takes its normaliser in a way that we do not know trains as upstream has it.
    """

    name: ClassVar[str] = "loss-norm"
    summary: ClassVar[str] = "divide losses by the whole batch's normaliser, not by each rank's own"
    source: ClassVar[str] = "https://github.com/open-mmlab/mmdetection/blob/main/mmdet/utils/dist_utils.py"
    default: ClassVar[bool] = True
    needs: ClassVar[tuple[type[Seam], ...]] = (Normaliser,)
    phase: ClassVar[Phase] = Phase.COMPUTE

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self._ranks = 1
        self._proven = False
        self._started = False
        self._averaged = 0
        self._instead = 0.0

    def decide(self, facts: Facts) -> Decision:
        """Act with more than one rank, where the task's loss has a normaliser; on one, where that may be zero."""
        loss = facts.loss
        self._ranks = facts.world_size
        if not loss.normaliser:
            return Decision("inert", f"the {facts.task} loss has no normaliser that ranks could share")
        limits = () if loss.floored else (Change(f"{loss.normaliser} of a batch without objects", 0, 1),)
        self._instead = 0.0 if loss.floored else 1.0
        if facts.world_size == 1 and limits:
            return Decision("active", "a batch without objects no longer divides by zero", limits)
        if facts.world_size == 1:
            return Decision("inert", "one rank: its normaliser is the whole batch's already")
        return Decision(
            "active",
            f"the gradient of {facts.world_size} ranks becomes that of one process on the same images",
            (Change(loss.normaliser, "each rank's own", f"mean of {facts.world_size} ranks"), *limits),
        )

    def handlers(self) -> Mapping[type[Seam], Callable[[Any], Decision | None]]:
        """Handle the seams at which a loss is about to divide, and at which its terms are about to be logged."""
        return {Normaliser: self._average, EpochLosses: self._log}

    def prove(self, live: Live) -> str:
        """Compare the live loss of three images with that of three ranks which share their normalisers."""
        if self._ranks == 1:
            return ""
        proof = live.loss()
        if proof.error is None:
            return f"the live loss could not be shown to be right with shared normalisers: {proof.why}"
        if proof.error > TOLERANCE:
            return f"the live loss takes its normaliser in a way that we do not know: off by {proof.error:.1e}"
        self._proven = True
        return ""

    def verify(self, live: Live) -> bool | None:
        """At the start: the live loss comes to the seam, and is proven. Later: ranks have been averaged there, too.

        One rank has nothing to prove before its first step.
        """
        before, self._started = self._started, True
        if not live.normalises or (self._ranks > 1 and not self._proven):
            return False
        if before:
            return self._averaged > 0
        return None if self._ranks == 1 else True

    def _log(self, seam: EpochLosses) -> None:
        """Log the whole batch's losses: divided by one normaliser, a rank's own are a share and no longer a loss."""
        from yolo_patches.nn.shards import rank_mean

        seam.values, _ = rank_mean(seam.values)

    def _average(self, seam: Normaliser) -> None:
        from yolo_patches.nn.shards import rank_mean  # where a normaliser is, torch has been imported

        seam.values, seam.ranks = rank_mean(seam.values)
        seam.instead = self._instead
        self._averaged += seam.ranks > 1 or self._instead > 0
