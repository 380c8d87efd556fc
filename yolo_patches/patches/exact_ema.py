"""exact-ema: a validation leaves the weights that it validates as they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from yolo_patches.facts import Facts
from yolo_patches.patch import Patch, Phase
from yolo_patches.plan import Decision
from yolo_patches.seams import Act, Live, Seam, Validation

if TYPE_CHECKING:
    from yolo_patches.validation.weights import Weights


class ExactEma(Patch):
    """Put the moving average of the weights back where a validation has rounded it.

    On an accelerator, Ultralytics to 8.4.60 or so, YOLOv9 and YOLOv5 validate in half precision by converting the
    average itself, and convert it back afterwards: 13 of its 24 bits are lost each time, and an average that moves by
    less than half of the last bit left, 1/4096 of a weight, does not move at all
    (https://docs.pytorch.org/docs/stable/type_info.html: eps of float16 is 2**-10, of float32 2**-23).
    """

    name: ClassVar[str] = "exact-ema"
    summary: ClassVar[str] = "validations do not round the weights' moving average to half precision"
    source: ClassVar[str] = "https://docs.pytorch.org/docs/stable/type_info.html"
    default: ClassVar[bool] = False
    phase: ClassVar[Phase] = Phase.COMPUTE
    needs: ClassVar[tuple[type[Seam], ...]] = (Validation,)

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self._validations = 0
        self._put_back = 0
        self._exact: bool | None = None

    def decide(self, facts: Facts) -> Decision:
        """Act on every validation: which of them round is seen when they do."""
        if facts.devices.kind == "cpu":
            return Decision("inert", "on the CPU no validation is made in half precision")
        return Decision("active", "weights that a validation has rounded are put back")

    def around(self) -> Mapping[type[Act], Callable[[Any, Callable[[], Any]], Any]]:
        """Stand around validations, inside of whoever may leave one out."""
        return {Validation: self._validate}

    def verify(self, live: Live) -> bool | None:
        """Return whether the first validation has left every bit of the weights; None where none was rounded."""
        self.trouble = "a validation has changed the weights otherwise than by rounding, and they are left so"
        return self._exact if self._put_back or self._exact is False else None

    def _validate(self, act: Validation, proceed: Callable[[], Any]) -> Any:
        from yolo_patches.validation.weights import Weights

        if act.model is None or act.final:
            return proceed()
        weights = Weights(act.model, compared=not self._validations)
        try:
            return proceed()
        finally:
            self._restore(weights)

    def _restore(self, weights: Weights) -> None:
        self._validations += 1
        self._put_back += weights.put_back()
        if self._exact is None:
            self._exact = weights.unchanged()
        if self._put_back:
            self.notes = [f"the weights were rounded by {self._put_back} of {self._validations} validations"]
