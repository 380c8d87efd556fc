"""The one error that users of yolo-patches meet."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PatchesError(ValueError):
    """Bad input: the message says what was wrong, what is valid, and what to do."""


def nearest(name: str, valid: Iterable[str], cutoff: float = 0.5) -> str:
    """Return " (did you mean 'x'?)" for the valid name closest to `name`, or an empty string where none is close."""
    matches = difflib.get_close_matches(name, list(valid), n=1, cutoff=cutoff)
    return f" (did you mean {matches[0]!r}?)" if matches else ""
