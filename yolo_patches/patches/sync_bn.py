"""sync-bn: BatchNorm statistics of the whole batch, not of each rank's share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from yolo_patches.facts import Facts
from yolo_patches.patch import Patch, Phase
from yolo_patches.plan import Change, Decision
from yolo_patches.seams import Live, ModelBuilt, Seam


class SyncBn(Patch):
    """Synchronise every BatchNorm layer over the ranks, in steps that every rank makes and nowhere else.

    The layers stay BatchNorm2d to whoever freezes, fuses, groups or pickles them. Without it N ranks normalise by the
    statistics of 1/N of the batch, and the checkpoint holds those of rank 0 alone; YOLOv9 and RT-DETR were trained with
    it (`--sync-bn`, `sync_bn: True`), Ultralytics has no such option (ultralytics/ultralytics#1779).
    """

    name: ClassVar[str] = "sync-bn"
    summary: ClassVar[str] = "BatchNorm statistics of the whole batch, not of each rank's share"
    source: ClassVar[str] = "https://github.com/ultralytics/ultralytics/issues/1779"
    default: ClassVar[bool] = True
    needs: ClassVar[tuple[type[Seam], ...]] = (ModelBuilt,)
    phase: ClassVar[Phase] = Phase.COMPUTE

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self._ranks = 1
        self._acts = False
        self._model: Any = None
        self._layers: list[Any] = []
        self._passes: int | None = None

    def decide(self, facts: Facts) -> Decision:
        """Act with more than one rank, unless the model is compiled or quantised while it trains."""
        self._ranks, self._acts = facts.world_size, False
        if facts.world_size == 1:
            return Decision("inert", "one rank: its batch is the whole batch already")
        if facts.model.own_sync_bn:
            return Decision("inert", f"{facts.model.own_sync_bn} was given: upstream converts the layers itself")
        if facts.model.rewritten:
            return Decision("inert", f"{facts.model.rewritten} rewrites the layers, and cannot hold their collectives")
        why = _unsupported(facts.devices.kind)
        if why:
            return Decision("inert", why)
        self._acts = True
        return self._decision("BatchNorm statistics")

    def handlers(self) -> Mapping[type[Seam], Callable[[Any], Decision | None]]:
        """Handle the seam at which the model is complete, and not yet copied for the EMA or wrapped."""
        return {ModelBuilt: self._convert}

    def verify(self, live: Live) -> bool | None:
        """Count the live model's layers that train: all of them synchronise. Later: they have done so, too.

        A frozen layer that upstream has added since, e.g. a teacher's, has no statistics to share.
        """
        from yolo_patches.nn.sync_batchnorm import synchronised_passes

        before = self._passes
        if before is None:
            self._passes = synchronised_passes()
        layers = {id(layer) for layer in _layers(live.model)}
        plain = [layer for layer in _layers(live.model) if not _synchronises(layer) and _trains(layer)]
        present = all(id(layer) in layers and _synchronises(layer) for layer in self._layers)
        if plain or not present or not self._layers:
            return False
        return before is None or synchronised_passes() > before

    def undo(self) -> bool:
        """Make the layers plain again."""
        if self._model is not None:
            from yolo_patches.nn.sync_batchnorm import revert

            revert(self._model)
        return True

    def _convert(self, seam: ModelBuilt) -> Decision | None:
        if not self._acts:
            return None
        from yolo_patches.nn.sync_batchnorm import convert

        why = _unsupported(next((p.device.type for p in seam.model.parameters()), ""))
        if why:
            return Decision("inert", why)
        self._model = seam.model
        count = convert(seam.model)
        self._layers = [layer for layer in _layers(seam.model) if _synchronises(layer)]
        return self._decision(f"statistics of {count} BatchNorm layers")

    def _decision(self, what: str) -> Decision:
        return Decision(
            "active",
            "every layer normalises as one process would",
            (Change(what, "each rank's own", f"of {self._ranks} ranks together"),),
        )


def _unsupported(kind: str) -> str:
    from yolo_patches.nn.sync_batchnorm import supported

    return supported(kind) if kind else ""


def _layers(model: Any) -> list[Any]:
    from torch.nn.modules.batchnorm import _BatchNorm

    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


def _synchronises(layer: Any) -> bool:
    from yolo_patches.nn.sync_batchnorm import SyncBatchNorm1d, SyncBatchNorm2d, SyncBatchNorm3d

    return isinstance(layer, (SyncBatchNorm1d, SyncBatchNorm2d, SyncBatchNorm3d))


def _trains(layer: Any) -> bool:
    return any(parameter.requires_grad for parameter in layer.parameters())
