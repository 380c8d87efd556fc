"""val-batch: validate with the training batch instead of twice as many images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from yolo_patches.errors import PatchesError
from yolo_patches.facts import Facts
from yolo_patches.patch import Patch
from yolo_patches.plan import Change, Decision
from yolo_patches.seams import Live, Seam, ValLoader
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
    follows: ClassVar[bool] = True
    options: ClassVar[Mapping[str, Option]] = {
        "batch": Option(int, "images per rank and validation step instead of the training batch", minimum=1),
    }
    needs: ClassVar[tuple[type[Seam], ...]] = (ValLoader,)

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self._patched: int | None = None

    def decide(self, facts: Facts) -> Decision:
        """Forecast the change from the global batch; where upstream measures it, leave the numbers to the seam."""
        if facts.batch.size < 1:
            return Decision("active", "the validation batch follows the training batch, which upstream will measure")
        per_rank = int(facts.batch.size) // facts.world_size
        if per_rank < 1:
            raise PatchesError(
                f"batch={facts.batch.size:g} is smaller than the number of ranks ({facts.world_size}): every rank "
                f"needs at least one image; set batch to a multiple of {facts.world_size}"
            )
        return self._decision(per_rank * facts.batch.val_factor, self.values["batch"] or per_rank)

    def handlers(self) -> Mapping[type[Seam], Callable[[Any], Decision | None]]:
        """Handle the seam at which the validation loader is built."""
        return {ValLoader: self._build}

    def verify(self, live: Live) -> bool | None:
        """Compare the batch of every loader that validation will read; loaders never hold more than their data set."""
        if not live.validates:
            return None
        loaders = live.val_loaders
        return bool(loaders) and all(
            loader is not None and loader.batch_size == min(self._patched or 0, len(loader.dataset))
            for loader in loaders
        )

    def undo(self) -> bool:
        """Leave the loader as it was built: its batch is right for any rank, but ranks must have built alike."""
        return self._patched is None

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
