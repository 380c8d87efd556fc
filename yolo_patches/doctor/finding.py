"""A finding of `doctor`: what was seen, why it matters, and what to change."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

INFO, WARNING, ERROR = "info", "warning", "error"
#: Severity -> the exit status of a command that has found nothing worse.
STATUSES = {INFO: 0, WARNING: 1, ERROR: 2}


@dataclass(frozen=True)
class Finding:
    """One finding.

    Attributes:
        id: Name of the check, or of one of the things that it tells apart.
        severity: "info" (to be known), "warning" (the result is likely to be worse for it) or "error" (the run fails,
            or its figures mean nothing).
        figure: What was seen, with its numbers.
        why: What comes of it, in one sentence.
        change: The argument to change, with the value to give; empty where there is nothing to change.
        source: Where that is known from.
    """

    id: str
    severity: str
    figure: str
    why: str
    change: str
    source: str

    def to_dict(self) -> dict[str, Any]:
        """Return this finding as `doctor --json` has it."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"{self.severity}: {self.id}: {self.figure}", f"  {self.why}"]
        lines += [f"  change: {self.change}"] if self.change else []
        lines += [f"  source: {self.source}"] if self.source else []
        return "\n".join(lines)


def status(findings: Iterable[Finding]) -> int:
    """Return the exit status: 0 without warnings and errors, 1 with warnings, 2 with errors."""
    return max((STATUSES[finding.severity] for finding in findings), default=0)
