"""The validations of a script's training: which is the last, and what stands in for one that is left out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from yolo_patches.errors import PatchesError
from yolo_patches.seams import Validation
from yolo_patches.upstreams.judging import Judging
from yolo_patches.upstreams.scripts import source
from yolo_patches.upstreams.scripts.session import Session


class Validations:
    """Follows the validations between epochs.

    Args:
        session: The script's.
        opt: The script's parsed arguments.
        judging: Knows upstream's early stopping.
    """

    def __init__(self, session: Session, opt: Any, judging: Judging) -> None:
        self.session = session
        self.opt = opt
        self._judging = judging
        self.final = False  # the one under way is that of the best weights, at the end
        self.made: int | None = None
        self._maps: Any = None

    def passing(self, loader: Any) -> Iterator[Any]:
        """Return the iterator of a pass over the validation images, and count it."""
        if not self.final:
            self.made = (self.made or 0) + 1
        return iter(loader)

    def act(self, epoch: int, model: Any, validated: Any) -> Validation:
        """Return the act of the validation after an epoch.

        Args:
            epoch: Its number, from 0.
            model: The model that is trained.
            validated: The one that is validated, or None.
        """
        self.made = self.made or 0
        return Validation(
            epoch,
            epochs=int(self.opt.epochs),
            last=self._last(epoch),
            skip=lambda: self._no_validation(model),
            model=validated,
        )

    def _last(self, epoch: int) -> bool:
        """Return whether the training ends with this epoch, unless its validation finds it better than all before.

        Upstream's early stopping counts the epochs since the best one, and would stop on figures that are no numbers.
        """
        stopper = self._judging.stopper
        stops = stopper is not None and stopper.patience <= epoch - stopper.best_epoch
        return epoch + 1 >= int(self.opt.epochs) or stops

    def _no_validation(self, model: Any) -> tuple[Any, ...]:
        """Return figures that are no numbers: results.csv keeps its columns, and no weights are called best."""
        import numpy

        shape = source.validation(self.session.root / self.session.script)
        if shape is None:
            raise PatchesError(f"what a validation returns to {self.session.script} is not known")
        values, figures = shape
        maps = numpy.zeros(getattr(model, "module", model).nc) if self._maps is None else self._maps
        return ((math.nan,) * figures, *(maps for _ in range(values - 2)), None)

    def follow(self, result: tuple[Any, ...]) -> None:
        """Follow a validation that has been made."""
        self._maps = result[1]
