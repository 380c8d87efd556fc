"""The live objects of one trainer, as patches see them to measure their effect."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any

from yolo_patches.activation import activation
from yolo_patches.lifecycle import Lifecycle
from yolo_patches.seams import Live, LossProof, Normaliser, TrainSet
from yolo_patches.upstreams.ultralytics import live_train_set, loss_wrappers, stack_gaps


class LiveObjects:
    """What a trainer has built.

    Args:
        trainer: The trainer.
        lifecycle: Of its training.
    """

    def __init__(self, trainer: Any, lifecycle: Lifecycle) -> None:
        self._trainer = trainer
        self._lifecycle = lifecycle

    def shown(self, rest: Live) -> Live:
        """Return the trainer's objects with what else is known of the training."""
        trainer = self._trainer
        validator = getattr(trainer, "validator", None)
        return replace(
            rest,
            val_loaders=(getattr(trainer, "test_loader", None), getattr(validator, "dataloader", None)),
            train_loader=getattr(trainer, "train_loader", None),
            optimizer=getattr(trainer, "optimizer", None),
            model=getattr(trainer, "model", None),
            normalises=loss_wrappers.normalises(trainer.model),
            loss=self.prove,
            targets=lambda change: self._lifecycle.attempt(lambda: self._reaction(change)),
            filled=stack_gaps.filled(),
            train_set=lambda: self._lifecycle.attempt(self._train_set),
        )

    def _train_set(self) -> TrainSet | None:
        return live_train_set.read(getattr(getattr(self._trainer, "train_loader", None), "dataset", None))

    def _reaction(self, change: Callable[[Any], Any]) -> float | None:
        from yolo_patches.upstreams.ultralytics.loss_probe import reaction

        return reaction(self._trainer.model, str(self._trainer.args.task), change)

    def prove(self) -> LossProof:
        """Probe the live loss, once."""
        return self._proof

    @cached_property
    def _proof(self) -> LossProof:
        from yolo_patches.upstreams.ultralytics.loss_probe import prove

        left_alone = [module for module in activation.left_alone if module in loss_wrappers.MODULES]
        if left_alone and self._lifecycle.listens(Normaliser):
            return LossProof(None, None, f"{left_alone[0]} is not as we know it")
        return prove(self._trainer.model, str(self._trainer.args.task))
