"""One run: the selected patches, decided on its facts and called at its seams."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import TypeVar

from yolo_patches import registry
from yolo_patches.errors import PatchesError
from yolo_patches.plan import Decision, Entry, Plan
from yolo_patches.seams import Facts, Seam, TrainStart
from yolo_patches.selection import Selection

S = TypeVar("S", bound=Seam)

#: Set while `doctor` asks: nothing is trained, the run is raised instead.
forecasting: ContextVar[bool] = ContextVar("forecasting", default=False)


class Forecast(BaseException):
    """Carries the run out of upstream's own start of a training that `doctor` asked about; no handler may stop it."""

    def __init__(self, run: Run) -> None:
        super().__init__("forecast")
        self.run = run


def consult(selection: Selection, seam: S) -> S:
    """Let the selected patches see a seam that comes before there is a run, e.g. while upstream is imported."""
    patches = registry.patches()
    for name, options in selection.chosen.items():
        patch = patches[name](**options)
        handler = patch.handlers().get(type(seam))
        if handler:
            handler(seam)
    return seam


class Run:
    """The patches of one training run.

    Args:
        facts: What the adapter knows about the run.
        selection: What was asked for.
        missing: Seams that the installed upstream lacks -> why.

    Raises:
        PatchesError: A patch refuses the run, or a `strict` patch is unavailable.
    """

    def __init__(self, facts: Facts, selection: Selection, missing: Mapping[type[Seam], str]) -> None:
        self.facts = facts
        self.selection = selection
        self._patches: dict[str, registry.Patch] = {}
        entries = []
        for name, cls in registry.patches().items():
            if name not in selection.chosen:
                entries.append(Entry(name, Decision("off", "not selected")))
                continue
            options = selection.chosen[name]
            patch = cls(**options)
            lacking = [f"{seam.__name__}: {missing[seam]}" for seam in cls.needs if seam in missing]
            if lacking and patch.values["strict"]:
                raise PatchesError(f"{name}: unavailable with {facts.upstream} {facts.version} ({'; '.join(lacking)})")
            if lacking:
                decision = Decision("unavailable", "; ".join(lacking))
            else:
                decision = patch.decide(facts)
                self._patches[name] = patch
            entries.append(Entry(name, decision, options={**options, **patch.pinned}))
        self.plan = Plan(facts.upstream, facts.version, facts.world_size, facts.global_batch, selection.text, entries)

    def listens(self, seam: type[Seam]) -> bool:
        """Return whether an active patch handles this seam; where none does, an adapter need not prepare it."""
        return any(
            seam in patch.handlers() and self._entry(name).decision.status == "active"
            for name, patch in self._patches.items()
        )

    def fire(self, seam: S) -> S:
        """Let every available patch that handles this seam see and change it; return it."""
        for name, patch in self._patches.items():
            handler = patch.handlers().get(type(seam))
            decision = handler(seam) if handler else None
            if decision is not None:
                self._entry(name).decision = decision
        return seam

    def verify(self, live: TrainStart, global_batch: float) -> None:
        """Check every active patch's effect on the live objects and record it in the plan."""
        self.plan.global_batch = global_batch  # AutoBatch and out-of-memory retries change it
        for name, patch in self._patches.items():
            entry = self._entry(name)
            entry.verified = patch.verify(live) if entry.decision.status == "active" else None

    def warnings(self) -> list[str]:
        """Return one line for each patch that is selected but unavailable, or active without the promised effect."""
        lines = []
        for entry in self.plan.entries:
            if entry.decision.status == "unavailable":
                lines.append(
                    f"{entry.name} is unavailable, training goes on without it ({entry.decision.reason}); "
                    f"{entry.name}:strict=true makes this an error"
                )
            elif entry.verified is False:
                lines.append(f"{entry.name} did not take effect: {entry.decision.reason}")
        return lines

    def write(self, directory: Path) -> None:
        """Write patches.json into the run directory."""
        self.plan.write(directory)

    def _entry(self, name: str) -> Entry:
        return next(entry for entry in self.plan.entries if entry.name == name)
