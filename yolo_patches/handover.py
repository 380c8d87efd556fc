"""What a parent process has decided, on its way to the workers of the same training.

A worker gets every argument as if the user had given it, so it cannot decide again: it is told what was given, which
patches have stepped aside, and which options a patch has settled on its own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from yolo_patches.facts import Given
from yolo_patches.plan import Decision, Plan

VARIABLE = "YOLO_PATCHES_PLAN"
#: What a worker takes over as it stands: the parent has looked at the same upstream, and found that it cannot act.
ASIDE = ("unavailable", "failed")


@dataclass(frozen=True)
class Handover:
    """A decided plan, as far as workers need it.

    Attributes:
        selection: What was asked for, as text.
        given: The arguments as the user gave them.
        entries: Patch name -> its entry in the plan.
    """

    selection: str
    given: Given = field(default_factory=Given)
    entries: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, plan: Plan, given: Given | None) -> Handover:
        """Return the handover of a plan."""
        return cls(plan.selection, given or Given(), {entry.name: entry.to_dict() for entry in plan.entries})

    @classmethod
    def received(cls) -> Handover | None:
        """Return what this process's parent has handed over; None where there is nothing, or nothing that is valid."""
        try:
            data = json.loads(os.environ[VARIABLE])
            return cls(data["selection"], Given(data["given"], data["origins"]), data["entries"])
        except (KeyError, TypeError, ValueError):
            return None

    def text(self) -> str:
        """Return it as the value of an environment variable."""
        data = {
            "selection": self.selection,
            "given": dict(self.given.values),
            "origins": dict(self.given.origins),
            "entries": dict(self.entries),
        }
        return json.dumps(data, default=str)

    def pinned(self, name: str) -> Mapping[str, Any]:
        """Return the options of a patch, those among them that it has settled on its own."""
        options: Mapping[str, Any] = self.entries.get(name, {}).get("options", {})
        return options

    def stepped_aside(self, name: str) -> Decision | None:
        """Return the parent's decision on a patch that cannot act in this training; None where it may."""
        entry = self.entries.get(name, {})
        return Decision(entry["status"], entry["reason"]) if entry.get("status") in ASIDE else None
