"""Standing around one call of a model: the next one, which is the step's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

#: Where a module has a forward of its own.
FORWARD = "forward"

#: (the model's own forward, args, kwargs) -> what the model returns.
Call = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]


class NextForward:
    """A forward of ours on one model object, gone before it is called: a checkpoint never sees it."""

    def __init__(self) -> None:
        self._forget: Callable[[], None] | None = None

    def expect(self, model: nn.Module, call: Call) -> None:
        """Have the next call of the model's forward made by `call`."""
        self.forget()
        held, upstreams, own = vars(model), model.forward, vars(model).get(FORWARD)

        def forget() -> None:
            self._forget = None
            if own is None:
                held.pop(FORWARD, None)
            else:
                held[FORWARD] = own

        def forward(*args: Any, **kwargs: Any) -> Any:
            forget()
            return call(upstreams, args, kwargs)

        self._forget = forget
        held[FORWARD] = forward

    def forget(self) -> None:
        """Take the forward off, where it has not been called."""
        if self._forget is not None:
            self._forget()
