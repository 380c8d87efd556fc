"""sync-bn: BatchNorm statistics of the whole batch, not of each rank's share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from yolo_patches.plan import Change, Decision
from yolo_patches.registry import Patch
from yolo_patches.seams import Facts, ModelBuilt, Seam, TrainStart


class SyncBn(Patch):
    """Synchronise every BatchNorm layer over the ranks, in training steps only.

    The layers stay BatchNorm2d to whoever freezes, fuses, groups or pickles them. Without it N ranks normalise by the
    statistics of 1/N of the batch, and the checkpoint holds those of rank 0 alone; YOLOv9 and RT-DETR were trained with
    it (`--sync-bn`, `sync_bn: True`), Ultralytics has no such option (ultralytics/ultralytics#1779).
    """

    name: ClassVar[str] = "sync-bn"
    summary: ClassVar[str] = "BatchNorm statistics of the whole batch, not of each rank's share"
    source: ClassVar[str] = "https://github.com/ultralytics/ultralytics/issues/1779"
    default: ClassVar[bool] = True
    needs: ClassVar[tuple[type[Seam], ...]] = (ModelBuilt, TrainStart)

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self._layers = 0

    def decide(self, facts: Facts) -> Decision:
        """Act with more than one rank, unless the model is compiled or quantised while it trains."""
        self._ranks = facts.world_size
        self._acts = facts.world_size > 1 and not facts.rewritten and not facts.own_sync_bn
        if facts.world_size == 1:
            return Decision("inert", "one rank: its batch is the whole batch already")
        if facts.own_sync_bn:
            return Decision("inert", f"{facts.own_sync_bn} was given: upstream converts the layers itself")
        if facts.rewritten:
            return Decision("inert", f"{facts.rewritten} rewrites the layers, and cannot hold their collectives")
        return self._decision("BatchNorm statistics")

    def handlers(self) -> Mapping[type[Seam], Callable[[Any], Decision | None]]:
        """Handle the seam at which the model is complete, and not yet copied for the EMA or wrapped."""
        return {ModelBuilt: self._convert}

    def verify(self, live: TrainStart) -> bool:
        """Count the synchronising layers of the live model: all of them, and no plain one beside them."""
        from torch import nn

        from yolo_patches.nn.sync_batchnorm import SyncBatchNorm1d, SyncBatchNorm2d, SyncBatchNorm3d

        layers = [module for module in live.model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        synchronised = (SyncBatchNorm1d, SyncBatchNorm2d, SyncBatchNorm3d)
        return sum(isinstance(layer, synchronised) for layer in layers) == len(layers) == self._layers

    def _convert(self, seam: ModelBuilt) -> Decision | None:
        if not self._acts:
            return None
        from yolo_patches.nn.sync_batchnorm import convert

        self._layers = convert(seam.model)
        return self._decision(f"statistics of {self._layers} BatchNorm layers")

    def _decision(self, what: str) -> Decision:
        return Decision(
            "active",
            "every layer normalises as one process would",
            (Change(what, "each rank's own", f"of {self._ranks} ranks together"),),
        )
