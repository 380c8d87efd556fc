"""auto-lr-classes: with several ranks, the automatic learning rate takes every data set for one of 10 classes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from yolo_patches.defect import Defect
from yolo_patches.facts import Facts
from yolo_patches.plan import Change, Decision
from yolo_patches.seams import Live, OptimizerChoice, Seam


class AutoLrClasses(Defect):
    """Let `optimizer=auto` see the number of classes through DistributedDataParallel.

    The automatic choice is AdamW with a learning rate of 0.002 * 5 / (4 + classes). The classes are read from the
    model, and 10 is taken where the model has none, as its DistributedDataParallel wrapper. With 80 classes that is
    0.000714 in place of 0.000119, six times as much as on one GPU. Later releases read them from the data set.
    """

    name: ClassVar[str] = "auto-lr-classes"
    summary: ClassVar[str] = "optimizer=auto on several ranks: the learning rate for this data set, not for 10 classes"
    source: ClassVar[str] = "https://github.com/ultralytics/ultralytics/blob/v8.3.0/ultralytics/engine/trainer.py"
    upstream: ClassVar[str] = "ultralytics"
    releases: ClassVar[tuple[str, str]] = ("8.0.200", "8.3.0")
    needs: ClassVar[tuple[type[Seam], ...]] = (OptimizerChoice,)

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self._classes: int | None = None
        self._wrapper: Any = None

    def present(self) -> bool:
        """Return whether upstream reads the classes from whatever stands for the model."""
        from ultralytics.engine.trainer import BaseTrainer

        return 'getattr(model, "nc", 10)' in inspect.getsource(BaseTrainer.build_optimizer)

    def mend(self, facts: Facts) -> Decision:
        """Act where there is a wrapper to look through, and a choice to be made."""
        if facts.world_size == 1:
            return Decision("inert", "one rank: upstream sees the model itself")
        if facts.optimization.optimizer.lower() != "auto":
            return Decision("inert", "the optimizer was given")
        return Decision("active", "the learning rate is chosen for the data set's own classes")

    def handlers(self) -> Mapping[type[Seam], Callable[[Any], Decision | None]]:
        """Handle the seam at which the optimizer is about to be chosen."""
        return {OptimizerChoice: self._show}

    def verify(self, live: Live) -> bool | None:
        """Return whether the wrapper had the model's own number of classes when upstream asked."""
        return self._wrapper is not None and self._wrapper is live.model

    def close(self) -> None:
        """Take the number off the wrapper."""
        if self._wrapper is not None:
            vars(self._wrapper).pop("nc", None)

    def _show(self, seam: OptimizerChoice) -> Decision | None:
        classes = getattr(getattr(seam.model, "module", None), "nc", None)
        if classes is None:
            return None
        self._wrapper = seam.model
        vars(seam.model)["nc"] = classes  # on the wrapper, which is never saved
        return Decision(
            "active", "the learning rate is chosen for the data set's own classes", (Change("classes", 10, classes),)
        )
