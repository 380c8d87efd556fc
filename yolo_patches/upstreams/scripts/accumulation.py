"""How many micro-steps a script adds up to one optimizer step: by names that its training loop reads.

All of it is local to the script's `train()`: `accumulate = max(round(nbs / batch_size), 1)` before the optimizer is
built, from which it has its weight decay, too, and `np.interp(ni, xi, [1, nbs / batch_size])` in its warm-up. But
`round` and `np` are names of the script's module, and for these two expressions they give another answer.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from yolo_patches.lifecycle import Lifecycle
from yolo_patches.step_seams import Accumulation
from yolo_patches.upstreams import unfinished
from yolo_patches.upstreams.stack import Overlay
from yolo_patches.wrapping import instead

#: What is written in every script: its nominal batch, and where it reads it.
NBS = 64
ROUNDED = "accumulate = max(round(nbs / batch_size), 1)"
RAMP = "np.interp(ni, xi, [1, nbs / batch_size])"


class Accumulating:
    """The accumulation of one training.

    Args:
        lifecycle: Of the training.
        batch: Returns the global batch; less than 1 while upstream has not measured it.
        source: The script's code.
    """

    def __init__(self, lifecycle: Lifecycle, batch: Callable[[], int], source: str) -> None:
        self._lifecycle = lifecycle
        self._batch = batch
        self._source = source
        self._asked = False
        self._patched = 0

    @property
    def in_force(self) -> int:
        """Micro-steps of an optimizer step once the script is warm."""
        return self._patched or max(round(NBS / self._batch()), 1)

    @contextmanager
    def followed(self, module: Any) -> Iterator[None]:
        """Follow the two expressions for the duration of a training."""
        names = vars(module)
        with ExitStack() as stack:
            if self._lifecycle.listens(Accumulation) and "round" not in names and hasattr(names.get("np"), "interp"):
                stack.enter_context(instead(module, "round", self._round))
                stack.enter_context(instead(module, "np", Overlay(names["np"], interp=self._interp(names["np"]))))
            yield

    def _round(self, *args: Any, **kwargs: Any) -> Any:
        upstreams = builtins.round(*args, **kwargs)
        if self._asked or kwargs or len(args) != 1:
            return upstreams
        return self._lifecycle.attempt(lambda: self._rounded(args[0], upstreams), Accumulation) or upstreams

    def _rounded(self, number: Any, upstreams: Any) -> int | None:
        """Return the micro-steps where this is what the script rounds to have them; its first such call."""
        batch = self._batch()
        if number != NBS / batch:
            return None
        self._asked = True
        seam = Accumulation(batch, max(upstreams, 1), carried=lambda: unfinished.carried(self._source))
        asked = max(int(self._lifecycle.fire(seam).accumulate), 1)
        self._patched = asked if asked != max(upstreams, 1) else 0
        return self._patched or None

    def _interp(self, numpy: Any) -> Callable[..., Any]:
        def interp(*args: Any, **kwargs: Any) -> Any:
            if self._patched and len(args) == 3 and self._is_ramp(args[2]):
                args = (*args[:2], [1, self._patched])
            return numpy.interp(*args, **kwargs)

        return interp

    def _is_ramp(self, values: Any) -> bool:
        return isinstance(values, list) and values == [1, NBS / self._batch()]
