"""How many micro-steps Ultralytics' trainer adds up to one optimizer step, and what it derives from that."""

from __future__ import annotations

import inspect
import math
from typing import Any

from yolo_patches.errors import PatchesError
from yolo_patches.lifecycle import Lifecycle
from yolo_patches.step_seams import Accumulation
from yolo_patches.upstreams import unfinished
from yolo_patches.wrapping import Call


class Accumulating:
    """The accumulation of one trainer.

    Upstream has it from its argument nbs, which is also what weight decay is meant for. So the argument stays, and what
    comes of it is replaced: the trainer's `accumulate`, and the weight decay and number of steps with which the
    optimizer is built. Up to 8.4.100 the ramp of the warm-up reads nbs anew at each iteration: between the callback
    before it and the preprocessing after it, and then alone, the argument is another one.

    Args:
        trainer: The trainer.
        lifecycle: Of its training.
    """

    def __init__(self, trainer: Any, lifecycle: Lifecycle) -> None:
        self._trainer = trainer
        self._lifecycle = lifecycle
        self.nominal = 0  # micro-steps that patches have set; 0 where they are upstream's
        self._nbs: Any = None  # upstream's own, while it is another one

    @property
    def upstreams(self) -> int:
        """Micro-steps by upstream's own rule."""
        times: int = max(round(self._trainer.args.nbs / self._trainer.batch_size), 1)
        return times

    @property
    def in_force(self) -> int:
        """Micro-steps by which weight decay is multiplied."""
        return self.nominal or self.upstreams

    def building(self, call: Call) -> None:
        """Let patches say how many there are, before an optimizer is built with what upstream derives from them."""
        if not self._lifecycle.listens(Accumulation):
            return
        upstreams, trainer = self.upstreams, self._trainer
        if self._fire() == upstreams:
            return
        images = len(trainer.train_loader.dataset)
        steps = math.ceil(images / (trainer.batch_size * self.nominal)) * trainer.epochs
        decay = self._decay(call["decay"])
        call["decay"], call["iterations"] = decay, steps
        self._apply()

    def kept(self, optimizer: Any) -> None:
        """The same where upstream keeps its optimizer for another batch, and has set weight decay again."""
        if not self._lifecycle.listens(Accumulation) or self._fire() == self.upstreams:
            return
        for group in optimizer.param_groups:
            if group.get("weight_decay"):
                group["weight_decay"] = self._decay(group["weight_decay"])
        self._apply()

    def _fire(self) -> int:
        trainer, upstreams = self._trainer, self.upstreams
        if not hasattr(trainer, "accumulate"):  # weight decay alone must not change
            raise PatchesError("the trainer has no attribute accumulate")
        seam = Accumulation(trainer.batch_size, upstreams, self._micro_steps, self._carried)
        asked = max(int(self._lifecycle.fire(seam).accumulate), 1)
        self.nominal = asked if asked != upstreams else 0
        return asked

    def _decay(self, value: float) -> float:
        """Return weight decay as upstream has it for this accumulation; another's own is left alone."""
        arguments = self._trainer.args
        usual = arguments.weight_decay * self._trainer.batch_size * self.upstreams / arguments.nbs
        return value * self.nominal / self.upstreams if math.isclose(value, usual, rel_tol=1e-6) else value

    @property
    def _micro_steps(self) -> int:
        """Of the whole training; by the clock, the number of epochs is a guess."""
        trainer = self._trainer
        return 0 if getattr(trainer.args, "time", None) else len(trainer.train_loader) * trainer.epochs

    def _apply(self) -> None:
        self._trainer.accumulate = min(self.nominal, self._micro_steps or self.nominal)

    def _carried(self) -> bool | None:
        try:
            return unfinished.carried(inspect.getsource(type(self._trainer)._do_train))
        except (OSError, TypeError, AttributeError):  # no source, or another loop
            return None

    def begin(self) -> None:
        """Have the warm-up that comes next ramp up to what patches have set."""
        if self.nominal and self._nbs is None:
            self._nbs = self._trainer.args.nbs
            self._trainer.args.nbs = self._trainer.batch_size * int(
                min(self.nominal, self._micro_steps or self.nominal)
            )

    def end(self) -> None:
        """Give upstream its argument back: it is saved with checkpoints."""
        if self._nbs is not None:
            self._trainer.args.nbs, self._nbs = self._nbs, None
