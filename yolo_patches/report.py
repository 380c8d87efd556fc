"""patches.json: the plan of a training, beside what upstream writes. A report: no run depends on it."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from yolo_patches.errors import PatchesError
from yolo_patches.plan import SCHEMA, Plan
from yolo_patches.selection import spell

FILE_NAME = "patches.json"
#: Bytes; a plan has a few thousand. A file that is larger is not one of ours, and is not read.
LONGEST = 1 << 20


def write(plan: Plan, directory: Path) -> Path:
    """Write patches.json atomically: a reader sees the old file or the new one, never half of one.

    Args:
        plan: The plan.
        directory: The run directory; it must exist.

    Returns:
        Path of the file.

    Raises:
        OSError: The file cannot be written; the old one, if there was one, is still there.
    """
    path = directory / FILE_NAME
    replace(path, json.dumps(plan.to_dict(), indent=2, default=str) + "\n")
    return path


def replace(path: Path, content: str | bytes) -> None:
    """Write a file of the run directory atomically, text as UTF-8.

    Raises:
        OSError: It cannot be written; the old one, if there was one, is still there.
    """
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
        with suppress(OSError):  # file systems without permissions refuse it, and need none
            os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes it private; other run files are not
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def _umask() -> int:
    """Return the process's umask, which can only be read by setting it."""
    current = os.umask(0)
    os.umask(current)
    return current


def read(directory: Path) -> Mapping[str, Mapping[str, Any]] | None:
    """Return the entries of a run's patches.json by patch name, or None where it has none.

    Args:
        directory: The run directory.

    Raises:
        PatchesError: The file is not a plan.
    """
    path = directory / FILE_NAME
    try:
        if path.stat().st_size > LONGEST:
            raise ValueError(f"{path.stat().st_size} bytes")
        plan = json.loads(path.read_text(encoding="utf-8"))
        if plan["schema"] != SCHEMA:
            raise ValueError(f"schema {plan['schema']!r}")
        return {str(entry["name"]): {**entry, "options": dict(entry["options"])} for entry in plan["patches"]}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise PatchesError(
            f"{path} does not say which patches the run was started with ({error}); say it yourself, e.g. "
            "patches=default"
        ) from error


def recorded_selection(entries: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a specification of exactly the patches and options of a run, whatever `default` and `all` mean today."""
    started = {name: entry["options"] for name, entry in entries.items() if entry.get("status") != "off"}
    return ",".join(spell(started)) or "none"
