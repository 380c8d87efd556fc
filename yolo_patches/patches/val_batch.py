"""val-batch: validate with the training batch instead of twice as many images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from yolo_patches.errors import PatchesError
from yolo_patches.plan import Change, Decision
from yolo_patches.registry import Patch
from yolo_patches.seams import Facts, Seam, TrainStart, ValLoader
from yolo_patches.selection import Option


class ValBatch(Patch):
    """Build the validation loader with the per-rank training batch.

    Upstream validates with `batch // WORLD_SIZE * 2` images per rank, on the reasoning that no gradients are kept. The
    EMA copy, the float32 loss and non-maximum suppression take the memory back, so a run that trains at the edge of
    memory dies in its first validation (https://github.com/ultralytics/ultralytics/issues/7030).
    """

    name: ClassVar[str] = "val-batch"
    summary: ClassVar[str] = "validate with the per-rank training batch, not twice as many images"
    source: ClassVar[str] = "https://github.com/ultralytics/ultralytics/issues/7030"
    default: ClassVar[bool] = True
    options: ClassVar[Mapping[str, Option]] = {
        "batch": Option(int, "images per rank and validation step instead of the training batch", minimum=1),
    }
    needs: ClassVar[tuple[type[Seam], ...]] = (ValLoader, TrainStart)

    def decide(self, facts: Facts) -> Decision:
        """Forecast the change from the global batch; where upstream measures it, leave the numbers to the seam."""
        if facts.global_batch < 1:
            return Decision("active", "the validation batch follows the training batch, which upstream will measure")
        per_rank = int(facts.global_batch) // facts.world_size
        if per_rank < 1:
            raise PatchesError(
                f"batch={facts.global_batch:g} is smaller than the number of ranks ({facts.world_size}): every rank "
                f"needs at least one image; set batch to a multiple of {facts.world_size}"
            )
        return self._decision(per_rank * facts.val_batch_factor, self.values["batch"] or per_rank)

    def handlers(self) -> Mapping[type[Seam], Callable[[Any], Decision | None]]:
        """Handle the seam at which the validation loader is built."""
        return {ValLoader: self._build}

    def verify(self, live: TrainStart) -> bool:
        """Compare the live loader's batch; loaders never hold more than their data set."""
        if live.val_loader is None:
            return True  # upstreams that validate on rank 0 only have no loader on the others
        return bool(live.val_loader.batch_size == min(self._patched, len(live.val_loader.dataset)))

    def _build(self, seam: ValLoader) -> Decision:
        self._patched = self.values["batch"] or seam.train_batch
        decision = self._decision(seam.batch, self._patched)
        seam.batch = self._patched
        return decision

    def _decision(self, upstream: int, patched: int) -> Decision:
        if upstream == patched:
            return Decision("inert", f"upstream already validates with {upstream} images per rank")
        return Decision(
            "active",
            "the training batch" if self.values["batch"] is None else "batch option",
            (Change("val batch per rank", upstream, patched),),
        )
