"""async-val: validate an epoch's weights elsewhere while the next epoch trains."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from yolo_patches.errors import PatchesError
from yolo_patches.facts import Facts
from yolo_patches.patch import Patch, Phase
from yolo_patches.plan import Change, Decision
from yolo_patches.seams import Act, Live, Seam, Validation
from yolo_patches.selection import Option
from yolo_patches.validation_seams import Deferral

if TYPE_CHECKING:
    from yolo_patches.validation.helper_process import Helper

#: Where a driver says which devices there are.
DEVICES = Path("/proc/driver/nvidia/gpus")
#: Seconds that a training waits for figures before it is told.
SLOW = 1.0
#: What it waits at most: seconds, or times the foreground's own validation, whichever is longer.
LONGEST, PATIENCE = 120.0, 20.0
#: What launchers say, and what must not reach a process that is no rank.
LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "GROUP_RANK")


class AsyncVal(Patch):
    """Validate in a process of its own, on another device.

    The weights of an epoch are copied to it at the epoch's end; what it finds is filed under that epoch when the next
    one ends: results.csv, best.pt and last.pt (the weights that were validated), early stopping, loggers. So early
    stopping comes one epoch later. The first validation and the last are made in the foreground: the first shows what
    one draws from the random numbers of the training, and the last has nothing to hide behind.

    Where the process ends, runs out of memory or is too slow, the training goes on and waits, or validates itself.
    """

    name: ClassVar[str] = "async-val"
    summary: ClassVar[str] = "validate on another device while the next epoch trains"
    source: ClassVar[str] = "https://docs.ray.io/en/latest/train/user-guides/asynchronous-validation.html"
    default: ClassVar[bool] = False
    # Inside of what decides whether there is a validation at all.
    phase: ClassVar[Phase] = Phase.POLICY
    options: ClassVar[Mapping[str, Option]] = {
        "device": Option(str, "where: cuda:1 (numbered as in device=), cpu, or same as the training"),
    }
    needs: ClassVar[tuple[type[Seam], ...]] = (Validation, Deferral)

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self._helper: Helper | None = None
        self._why = ""
        self._draws = 0
        self._made = 0
        self._deferred = 0
        self._filed = 0
        self._slow = False
        self._foreground = 0.0

    def decide(self, facts: Facts) -> Decision:
        """Check the device.

        Raises:
            PatchesError: It is not there, or a rank of the training has it.
        """
        device = self.values["device"]
        if not device:
            return Decision("inert", "it needs a device of its own: async-val:device=cuda:1")
        number = re.fullmatch(r"(?:cuda:)?(\d+)", device)
        if number is None and device not in ("cpu", "same"):
            raise PatchesError(f"async-val:device={device} is no device; give cuda:N, cpu or same")
        if number is not None and not facts.inherited:
            self._check(int(number[1]), facts)
        if facts.set_validations:
            return Decision("inert", facts.set_validations)
        if facts.optimization.epochs < 3:
            return Decision(
                "inert", "the first and the last epoch are validated in the foreground, and there are no others"
            )
        change = Change("validations", "between epochs", f"beside the next epoch, on {device}")
        return Decision("active", "figures are filed, and early stopping comes, one epoch later", (change,))

    def prove(self, live: Live) -> str:
        """Return why another process cannot validate for this training."""
        deferral: Deferral | None = live.deferral
        if deferral is None:  # another rank, whose first one knows
            return ""
        try:
            deferral.setup(self._place(deferral)[0])
        except Exception as error:
            return f"it cannot be sent to another process ({type(error).__name__}: {error})"
        return deferral.hindrance()

    def around(self) -> Mapping[type[Act], Callable[[Any, Callable[[], Any]], Any]]:
        """Stand around validations."""
        return {Validation: self._validate}

    def verify(self, live: Live) -> bool | None:
        """Return whether every validation that was put off has been filed, but for one that is under way."""
        if not self._deferred:
            return False if self._why else None
        self.trouble = self._why or f"{self._deferred - self._filed} of {self._deferred} have not been filed"
        return self._deferred - self._filed <= (self._helper is not None) and not self._why

    def close(self) -> None:
        """End the process."""
        if self._helper is not None:
            self._helper.close()
            self._helper = None

    @staticmethod
    def _check(number: int, facts: Facts) -> None:
        there = len(list(DEVICES.iterdir())) if DEVICES.is_dir() else 0
        if number >= there:
            raise PatchesError(
                f"async-val:device=cuda:{number} is not there: this machine has {there or 'no'} CUDA devices"
            )
        if number in facts.devices.held:
            raise PatchesError(
                f"async-val:device=cuda:{number} is one that the training has; give another, or device=same"
            )

    def _validate(self, act: Validation, proceed: Callable[[], Any]) -> Any:
        result = self._validated(act, proceed)
        self._made += not act.final  # one that has failed is none, and may be repeated
        return result

    def _validated(self, act: Validation, proceed: Callable[[], Any]) -> Any:
        if act.final or act.epoch + 1 >= act.epochs:
            return proceed()
        if not self._made:
            return self._measured(act, proceed)
        task = self._task(act)
        if not act.agreed("elsewhere", task is not None):
            return proceed()
        if task is None:  # another rank's word: only the first one validates
            return act.skip()
        return self._put_off(act.deferral, task)

    def _measured(self, act: Validation, proceed: Callable[[], Any]) -> Any:
        from yolo_patches.validation.draws import Draws

        draws, start = Draws(), time.monotonic()
        result = proceed()
        self._foreground = time.monotonic() - start
        if act.deferral is not None:
            counted = draws.counted(act.deferral.draws)
            self._draws = counted or 0
            if counted is None:
                self._give_up("its validations draw random numbers in a way that we do not know", act.deferral)
        return result

    def _task(self, act: Validation) -> bytes | None:
        """Return this epoch's weights for the process, which is started where it is not there.

        None where the foreground is to validate, and on all ranks but the first. Ranks agree on it next, so that what
        fails here fails before anybody goes another way.
        """
        deferral: Deferral | None = act.deferral
        if deferral is None or self._why or act.last:
            return None
        why = deferral.hindrance()  # callbacks may have come since
        if not why:
            try:
                self._start(deferral)
                return deferral.task()
            except Exception as error:
                why = f"{type(error).__name__}: {error}"
        self._give_up(why, deferral)
        return None

    def _start(self, deferral: Deferral) -> None:
        from yolo_patches.validation.helper_process import Helper

        if self._helper is None:
            device, environment = self._place(deferral)
            # Made anew: where upstream has run out of memory meanwhile, it has built other loaders.
            self._helper = Helper(deferral.module, deferral.setup(device), environment)

    def _place(self, deferral: Deferral) -> tuple[str, dict[str, str]]:
        """Return the device's name in the process, and its environment."""
        environment = {key: value for key, value in os.environ.items() if key not in LAUNCHED}
        environment["YOLO_PATCHES"] = "none"
        device = str(self.values["device"])
        if device == "same":
            return deferral.device, environment
        if device == "cpu":
            return device, {**environment, "CUDA_VISIBLE_DEVICES": ""}
        return "cuda:0", {**environment, "CUDA_VISIBLE_DEVICES": device.rpartition(":")[2]}

    def _put_off(self, deferral: Deferral, task: bytes) -> Any:
        from yolo_patches.validation.draws import draw

        helper = self._helper
        assert helper is not None, "there is a task for it"
        helper.ask(task)
        draw(self._draws)
        self._deferred += 1
        return deferral.postpone(task, lambda: self._collect(helper, deferral))

    def _collect(self, helper: Helper, deferral: Deferral) -> Any:
        """Wait for the figures; None where there are none."""
        from yolo_patches.validation.helper_process import HelperError

        start = time.monotonic()
        try:
            found = helper.answer(max(LONGEST, PATIENCE * self._foreground))
        except HelperError as error:
            self._give_up(str(error), deferral)
            self.close()
            return None
        self._filed += 1
        waited = time.monotonic() - start
        if waited > SLOW and not self._slow:
            self._slow = True
            deferral.tell(f"async-val: a validation takes longer than an epoch; the training has waited {waited:.0f} s")
        return found

    def _give_up(self, why: str, deferral: Deferral) -> None:
        self._why = why
        deferral.tell(f"async-val: validations are made in the foreground from here on: {why}")
