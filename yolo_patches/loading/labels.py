"""Labels of one image that are copied with less ado."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np

#: What is not changed in place, and needs no copy.
FIXED = (str, int, float, bool, type(None))


class Label(dict[str, Any]):
    """One image's label; a deep copy is a plain dictionary with the same contents, every array of them a copy."""

    def __deepcopy__(self, memo: Any) -> dict[str, Any]:
        return {name: _copied(value, memo) for name, value in self.items()}


def _copied(value: Any, memo: Any) -> Any:
    if isinstance(value, FIXED):
        return value
    if type(value) is np.ndarray and value.dtype != object:
        return value.copy()
    if type(value) is list and all(type(one) is np.ndarray and one.dtype != object for one in value):
        return [one.copy() for one in value]
    return deepcopy(value, memo)
