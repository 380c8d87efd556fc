"""Ultralytics' DDP launcher: workers must patch as their parent does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import yolo_patches
from yolo_patches.wrapping import Wrapping


def install(module: ModuleType, wrapping: Wrapping) -> None:
    """Let every generated worker file activate yolo-patches itself.

    The start-up hook does that already in a normal installation. It does not run for packages found through PYTHONPATH
    or `pip install --target`, and a worker that trained unpatched beside patched ones would be worse than no patch.
    """
    if hasattr(module, "generate_ddp_file"):
        wrapping.wrap(module, "generate_ddp_file", _generate_ddp_file)


def _generate_ddp_file(
    wrapped: Callable[..., str], instance: object, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> str:
    file = wrapped(*args, **kwargs)
    home = str(Path(yolo_patches.__file__).resolve().parent.parent)
    activation = (
        f"import sys\nsys.path.append({home!r})\nfrom yolo_patches._bootstrap import wake\nwake('ultralytics', None)\n"
    )
    path = Path(file)
    path.write_text(activation + path.read_text(encoding="utf-8"), encoding="utf-8")
    return file
