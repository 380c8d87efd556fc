"""The plan: what the patches decided for one run, as data and as one banner line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from yolo_patches import __version__

SCHEMA = 1
STATUSES = ("active", "inert", "unavailable", "failed", "off")


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
        status: "active", "inert" (nothing to do), "unavailable" (upstream lacks a seam), "failed" (an error of ours:
            dropped) or "off" (not selected).
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
        notes: What else is to be known of this run, a sentence each.
    """

    name: str
    decision: Decision
    verified: bool | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return this entry as it stands in patches.json."""
        return {
            "name": self.name,
            "status": self.decision.status,
            "verified": self.verified,
            "reason": self.decision.reason,
            "options": dict(self.options),
            "changes": [asdict(change) for change in self.decision.changes],
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        if self.decision.status == "active":
            changes = ", ".join(map(str, self.decision.changes[:2]))  # doctor and patches.json have them all
            return f"{self.name}: {changes}{' ' * bool(changes)}({self.decision.reason})"
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

    def entry(self, name: str) -> Entry:
        """Return what a registered patch decided.

        Args:
            name: Of the patch.
        """
        return next(entry for entry in self.entries if entry.name == name)

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
