"""What old releases of Ultralytics use and today's stack has taken away, for three of its modules alone.

Through 8.2.82 or so torch.load is called as before torch 2.6, and refuses the checkpoint that the run has just written;
through 8.3.150 or so the average precision is integrated by a function that NumPy 2.4 no longer has.

The stand-ins ask at every use whether the patch is wanted: a model is loaded before `train(patches=...)` is called.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from yolo_patches.activation import activation
from yolo_patches.lifecycle import consult
from yolo_patches.seams import StackGap
from yolo_patches.upstreams import stack
from yolo_patches.wrapping import Wrapping

#: Module -> the global of it that is replaced, and the gap that this fills.
MODULES: Mapping[str, tuple[str, str]] = {
    "ultralytics.nn.tasks": ("torch", stack.TORCH_LOAD),
    "ultralytics.utils.torch_utils": ("torch", stack.TORCH_LOAD),
    "ultralytics.utils.metrics": ("np", stack.NAMES),
}


def install(module: ModuleType, wrapping: Wrapping) -> None:
    """Replace the global of one of `MODULES`, where this release needs it."""
    name, gap = MODULES[module.__name__]
    if gap in gaps() and name in vars(module):
        library = vars(module)[name]
        wrapping.replace(module, name, _torch(library) if gap == stack.TORCH_LOAD else _NumPy(library))


def filled() -> frozenset[str]:
    """Return the gaps that something stands in for."""
    return frozenset(
        gap
        for module, (name, gap) in MODULES.items()
        if isinstance(vars(sys.modules.get(module, object)).get(name), stack.Overlay)
    )


@cache
def gaps() -> Mapping[str, str]:
    """Return what the installed release uses and the installed stack lacks -> what comes of it."""
    found = stack.gaps()
    used = {stack.TORCH_LOAD: not _says("utils/patches.py", r"def torch_load\("),
            stack.NAMES: _says("utils/metrics.py", r"^\s+ap = np\.trapz\(")}  # fmt: skip
    return {gap: found[gap] for gap, uses in used.items() if uses and gap in found}


def _says(file: str, pattern: str) -> bool:
    """Return whether one of upstream's source files has a line like this; it is not imported for that."""
    spec = find_spec("ultralytics")
    path = Path((spec and spec.origin) or "").parent / file
    return path.is_file() and re.search(pattern, path.read_text(encoding="utf-8"), re.MULTILINE) is not None


def _wanted(gap: str) -> bool:
    selection = activation.current.selection if activation.current is not None else activation.selection()
    # Whatever these modules load, the run has written or the user has named: model=, pretrained= or resume=.
    return selection is not None and consult(selection, StackGap(gap, trusted=True)).fill


def _torch(torch: Any) -> stack.Overlay:
    return stack.torch_overlay(torch, stack.loader(torch, lambda file: _wanted(stack.TORCH_LOAD)), amp=False, clip=None)


class _NumPy(stack.Overlay):
    """NumPy, with the names that it has removed while they are wanted."""

    def __getattr__(self, name: str) -> Any:
        if name in stack.NUMPY and name not in vars(self._library) and _wanted(stack.NAMES):
            return getattr(stack.numpy_overlay(self._library), name)
        return super().__getattr__(name)
