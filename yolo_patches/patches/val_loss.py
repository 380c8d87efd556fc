"""val-loss: the losses of a validation, where upstream leaves them at zero."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from yolo_patches.facts import Facts
from yolo_patches.patch import Patch
from yolo_patches.plan import Change, Decision
from yolo_patches.seams import Live, Seam
from yolo_patches.validation_seams import Evaluation


class ValLoss(Patch):
    """Compute the validation losses as in training.

    Most of YOLOv9's validations have their criterion commented out, so that results.csv and TensorBoard say 0
    (https://github.com/WongKinYiu/yolov9/issues/132, https://github.com/WongKinYiu/yolov9/issues/417). What the
    criterion is given here is what the head gives in training, of the features that it has in validation.
    """

    name: ClassVar[str] = "val-loss"
    summary: ClassVar[str] = "validation losses where upstream leaves them at zero"
    source: ClassVar[str] = "https://github.com/WongKinYiu/yolov9/issues/132"
    default: ClassVar[bool] = False
    needs: ClassVar[tuple[type[Seam], ...]] = (Evaluation,)

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self._results: list[Mapping[str, Any]] = []

    def decide(self, facts: Facts) -> Decision:
        """Act where upstream computes none."""
        if facts.loss.validated:
            return Decision("inert", "upstream computes its validation losses")
        return Decision("active", "computed as in training", (Change("validation losses", 0, "the criterion's"),))

    def handlers(self) -> Mapping[type[Seam], Callable[[Any], Decision | None]]:
        """Ask for the loss at each validation."""
        return {Evaluation: self._ask}

    def verify(self, live: Live) -> bool | None:
        """Return whether every validation that has been made has told a loss that is a number over zero."""
        told = [result["losses"] for result in self._results if "losses" in result]
        if not self._results:
            return None
        self.trouble = f"{len(told)} of {len(self._results)} validations have told their losses"
        return len(told) == len(self._results) and all(sum(losses) > 0 for losses in told)

    def _ask(self, seam: Evaluation) -> None:
        seam.loss = True
        self._results.append(seam.results)
