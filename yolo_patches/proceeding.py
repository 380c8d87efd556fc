"""What a patch that stands around an act of upstream's is given to let it happen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Proceed:
    """Lets an act happen, and remembers whether it has, so that nothing happens twice.

    Attributes:
        calls: How often it was called.
        result: Of the last call.
        error: That the last call has raised.
    """

    def __init__(self, inner: Callable[[], Any]) -> None:
        self._inner = inner
        self.calls = 0
        self.result: Any = None
        self.error: BaseException | None = None

    def __call__(self) -> Any:
        """Do what is inside."""
        self.calls += 1
        self.error = None
        try:
            self.result = self._inner()
        except BaseException as error:
            self.error = error
            raise
        return self.result
