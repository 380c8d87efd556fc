"""The plan: what the patches decided for one run, as data, as `patches.json` and as one banner line."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from yolo_patches import __version__
from yolo_patches.errors import PatchesError
from yolo_patches.selection import spell

SCHEMA = 1
FILE_NAME = "patches.json"
STATUSES = ("active", "inert", "unavailable", "off")


@dataclass(frozen=True)
class Change:
    """One value before and after.

    Attributes:
        what: The value's name, e.g. "val batch per rank".
        upstream: What upstream would have used.
        patched: What is used.
    """

    what: str
    upstream: Any
    patched: Any

    def __str__(self) -> str:
        return f"{self.what} {self.upstream} -> {self.patched}"


@dataclass(frozen=True)
class Decision:
    """What one patch decided.

    Attributes:
        status: "active", "inert" (nothing to do), "unavailable" (upstream lacks a seam) or "off" (not selected).
        reason: Why, in one sentence.
        changes: The values that it replaces.
    """

    status: str
    reason: str
    changes: tuple[Change, ...] = ()


@dataclass
class Entry:
    """One patch in the plan.

    Attributes:
        name: The patch's name.
        decision: What it decided; replaced when a seam shows that the run differs from the forecast.
        verified: Whether the effect was seen on the live trainer; None before training starts.
        options: The options that were given.
    """

    name: str
    decision: Decision
    verified: bool | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return this entry as it stands in patches.json."""
        return {
            "name": self.name,
            "status": self.decision.status,
            "verified": self.verified,
            "reason": self.decision.reason,
            "options": dict(self.options),
            "changes": [asdict(change) for change in self.decision.changes],
        }

    def __str__(self) -> str:
        if self.decision.status == "active":
            first = next(
                (f"{change} " for change in self.decision.changes), ""
            )  # doctor and patches.json have them all
            return f"{self.name}: {first}({self.decision.reason})"
        return f"{self.name}: {self.decision.status}"


@dataclass
class Plan:
    """What the patches decided for one run.

    Attributes:
        upstream: Adapter name.
        version: Upstream's version.
        world_size: Number of ranks.
        global_batch: Images per step over all ranks.
        selection: What was asked for, as text.
        entries: One entry a registered patch, in order of application.
    """

    upstream: str
    version: str
    world_size: int
    global_batch: float
    selection: str
    entries: list[Entry]

    def to_dict(self) -> dict[str, Any]:
        """Return the plan in the schema of patches.json."""
        return {
            "schema": SCHEMA,
            "yolo_patches": __version__,
            "upstream": {"name": self.upstream, "version": self.version},
            "world_size": self.world_size,
            "global_batch": self.global_batch,
            "selection": self.selection,
            "patches": [entry.to_dict() for entry in self.entries],
        }

    def banner(self) -> str:
        """Return the plan in one line."""
        selected = [str(entry) for entry in self.entries if entry.decision.status != "off"]
        return f"yolo-patches {__version__} (patches={self.selection}): {'; '.join(selected)}"

    def write(self, directory: Path) -> Path:
        """Write patches.json atomically: a reader sees the old file or the new one, never half of one.

        Args:
            directory: The run directory; it must exist.

        Returns:
            Path of the file.

        Raises:
            PatchesError: The directory cannot be written to.
        """
        path = directory / FILE_NAME
        try:
            handle, temporary = tempfile.mkstemp(prefix=f".{FILE_NAME}.", dir=directory)
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(self.to_dict(), file, indent=2)
                file.write("\n")
            os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes it private; other run files are not
            os.replace(temporary, path)
        except OSError as error:
            raise PatchesError(
                f"cannot write {path}: {error.strerror or error}; choose a run directory that can be written to"
            ) from error
        return path


def _umask() -> int:
    """Return the process's umask, which can only be read by setting it."""
    current = os.umask(0)
    os.umask(current)
    return current


def recorded_selection(directory: Path) -> str | None:
    """Return the selection that a run was started with, or None where it has no patches.json.

    Args:
        directory: The run directory.

    Returns:
        A specification of exactly the patches and options of that run, whatever `default` and `all` mean today.

    Raises:
        PatchesError: The file is not a plan.
    """
    path = directory / FILE_NAME
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
        if plan["schema"] != SCHEMA:
            raise ValueError(f"schema {plan['schema']!r}")
        started = {entry["name"]: entry["options"] for entry in plan["patches"] if entry["status"] != "off"}
        return ",".join(spell(started)) or "none"
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise PatchesError(
            f"{path} does not say which patches the run was started with ({error}); say it yourself, e.g. "
            "patches=default"
        ) from error
