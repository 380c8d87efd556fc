"""What a resumed training takes up: the selection that it was started with, and the plan that it had then."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from yolo_patches import registry, report
from yolo_patches.errors import PatchesError
from yolo_patches.selection import NONE, Selection, parse


def taken_up(
    checkpoint: str | Path, said: Selection | None, tell: Callable[[str], None]
) -> tuple[Selection, Mapping[str, Mapping[str, Any]]]:
    """Return the selection of a resumed training, and the entries of its plan by patch name.

    Where nobody said any, it goes on as it was started: without us, if it has no plan. A plan that cannot be read is
    told, and ends nothing: then the defaults are taken.

    Args:
        checkpoint: What is resumed, in the weights folder of its run directory.
        said: The selection that somebody has asked for now, or None.
        tell: Logs a warning.
    """
    try:
        entries = report.read(Path(checkpoint).parent.parent)
        if said is not None:
            return said, entries or {}
        if entries is None:
            return NONE, {}
    except PatchesError as error:
        if said is not None:
            tell(str(error))
            return said, {}
        return _defaults(error, tell), {}
    try:
        text = report.recorded_selection(entries)
        return parse(text, registry.specs(), f"{report.FILE_NAME} of the resumed run"), entries
    except PatchesError as error:
        return _defaults(error, tell), entries


def _defaults(error: PatchesError, tell: Callable[[str], None]) -> Selection:
    tell(f"{error}; going on with the defaults")
    return parse("default", registry.specs())
