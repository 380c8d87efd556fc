"""val-period: validate when it is wanted, not after every epoch."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from yolo_patches.facts import Facts
from yolo_patches.patch import Patch, Phase
from yolo_patches.plan import Change, Decision
from yolo_patches.seams import Act, Live, Seam, Validation
from yolo_patches.selection import Option


class ValPeriod(Patch):
    """Leave validations out: all but every Nth, or as many as keep to a share of the run's time.

    Upstream validates after every epoch or never; `val_period=`, which it is often told to have, does not exist
    (https://github.com/ultralytics/ultralytics/issues/8591, https://github.com/ultralytics/ultralytics/issues/22227).

    An epoch that is not validated has no fitness: nothing of it is called best, early stopping neither counts it as an
    improvement nor stops there, and its columns in results.csv say nan. The last epoch is always validated. The rhythm
    follows the epoch's number, so that a resumed run keeps it and all ranks have the same.
    """

    name: ClassVar[str] = "val-period"
    summary: ClassVar[str] = "validate every Nth epoch, or within a share of the run's time"
    source: ClassVar[str] = "https://github.com/ultralytics/ultralytics/issues/8591"
    default: ClassVar[bool] = False
    phase: ClassVar[Phase] = Phase.SCHEDULE
    options: ClassVar[Mapping[str, Option]] = {
        "every": Option(int, "validate every Nth epoch", default=1, minimum=1),
        "last": Option(int, "validate each of the last K epochs", default=1, minimum=1),
        "share": Option(float, "validations take at most this share of the run's time", minimum=0.001, maximum=1),
    }
    needs: ClassVar[tuple[type[Seam], ...]] = (Validation,)

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self._began = time.monotonic()
        self._spent = 0.0
        self._made = 0
        self._known = False

    def decide(self, facts: Facts) -> Decision:
        """Return how many validations a training of this length has."""
        every, last, share = (self.values[name] for name in ("every", "last", "share"))
        epochs = facts.optimization.epochs
        if every == 1 and share is None:
            return Decision("inert", "every epoch is validated; val-period:every=N, or :share=0.1, leaves some out")
        if facts.set_validations:
            return Decision("inert", facts.set_validations)
        if share is not None:
            change = Change("validations", "after every epoch", f"at most {share:.0%} of the run's time")
            return Decision("active", f"share={share:g}; the first and the last epoch in any case", (change,))
        due = sum(self._in_rhythm(epoch, epochs) for epoch in range(epochs))
        if due == epochs:
            return Decision("inert", f"all of the {epochs} epochs are among the last {last}")
        patience = facts.optimization.patience
        if patience and patience < every:
            self.notes.append(
                f"patience={patience} is counted in epochs: one validation without improvement ends the run"
            )
        return Decision("active", f"every={every}, and the last {last}", (Change("validations", epochs, due),))

    def around(self) -> Mapping[type[Act], Callable[[Any, Callable[[], Any]], Any]]:
        """Stand around validations."""
        return {Validation: self._validate}

    def prove(self, live: Live) -> str:
        """Start the clock: everything is built."""
        self._began = time.monotonic()
        return ""

    def verify(self, live: Live) -> bool | None:
        """Compare the validations that upstream has made with those that were let through."""
        if live.validations is None or not self._known:
            return None
        self.trouble = f"{live.validations} validations have been made where {self._made} were wanted"
        return live.validations == self._made

    def _validate(self, act: Validation, proceed: Callable[[], Any]) -> Any:
        if act.final:
            return proceed()
        self._known = True
        if not self._due(act):
            return act.skip()
        start = time.monotonic()
        result = proceed()
        self._spent += time.monotonic() - start
        self._made += 1  # one that has failed is none, and may be repeated
        return result

    def _due(self, act: Validation) -> bool:
        if act.last or (not self._made and self.values["share"] is not None):
            return True
        if self._in_rhythm(act.epoch, act.epochs):
            return self.values["share"] is None or act.agreed("now", self._affordable())
        return False

    def _in_rhythm(self, epoch: int, epochs: int) -> bool:
        return bool((epoch + 1) % self.values["every"] == 0 or epoch + self.values["last"] >= epochs)

    def _affordable(self) -> bool:
        """Return whether one more validation, as long as those before it, keeps to the share."""
        one = self._spent / self._made
        return bool(self._spent + one <= self.values["share"] * (time.monotonic() - self._began + one))
