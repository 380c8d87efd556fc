"""The lifecycle of one training: its patches, from what was asked for to the last thing that is let go of.

    arguments   as the user gave them; patches may set what was not given       `fire`
    decide      every patch says what it will do, or refuses the run            `decide`
    build       model, loaders, optimizer come to their seams                   `fire`
    start       each patch proves its effect on the live objects                `start`
    first step  ranks agree on what they have dropped                           `first_step`
    steps       losses, steps, validations, saves                               `fire`, `around`
    end         the effect is measured once more, the plan is written           `check`
    close       on every exit: the end, an exception, Ctrl-C                     `close`

Outside of `decide` there is one error boundary: what raises is dropped, told once and recorded as failed, and upstream
goes on. With several ranks that is safe as long as they agree: before the first step they do so there, later a rank
that drops a patch alone ends the run by one message, because the others would wait for it, or train something else.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from yolo_patches import registry, report
from yolo_patches.activation import activation
from yolo_patches.agreement import RanksDisagreeError, exchange
from yolo_patches.errors import PatchesError
from yolo_patches.facts import Facts
from yolo_patches.handover import Handover
from yolo_patches.loading_seams import Samples
from yolo_patches.patch import Patch, Phase
from yolo_patches.plan import Decision, Entry, Plan
from yolo_patches.proceeding import Proceed
from yolo_patches.seams import NO_PLACE, Act, Arguments, Live, Seam, StackGap
from yolo_patches.selection import Selection
from yolo_patches.validation_seams import Deferral, Evaluation, Judged

S = TypeVar("S", bound=Seam)
T = TypeVar("T")

#: Seams at which a rank may go on as upstream without the others: nothing that ranks share comes of them.
ALONE: tuple[type[Seam], ...] = (StackGap, Evaluation, Judged, Deferral, Samples)


def consult(selection: Selection, seam: S) -> S:
    """Let the selected patches see a seam that comes before there is a training, e.g. while upstream is imported."""
    patches = registry.patches()
    for name, options in selection.chosen.items():
        handler = patches[name](**options).handlers().get(type(seam))
        if handler:
            handler(seam)
    return seam


class Lifecycle:
    """The patches of one training.

    Args:
        upstream: Adapter name.
        version: Upstream's version.
        selection: What was asked for.
        missing: Seams that the installed upstream lacks -> why.
        tell: Logs one line of warning, as upstream does.
        inherited: What a parent process has decided; a worker does not decide it again.

    Raises:
        PatchesError: A `strict` patch is unavailable.
    """

    def __init__(
        self,
        upstream: str,
        version: str,
        selection: Selection,
        missing: Mapping[type[Seam], str],
        tell: Callable[[str], None] | None = None,
        inherited: Handover | None = None,
    ) -> None:
        self.selection = selection
        self.facts: Facts | None = None
        self.inherited = inherited
        self._tell = tell or _to_stderr
        self._told: set[str] = set()
        self._patches: dict[str, Patch] = {}
        self._dropped: dict[str, Patch] = {}
        self._lacking: dict[str, Patch] = {}
        self._missing = frozenset(missing)
        self._stepped = False
        self._closed = False
        entries = []
        for name, cls in registry.patches().items():
            if cls.upstream not in ("", upstream):
                continue
            options = selection.chosen.get(name)
            if options is None:
                entries.append(Entry(name, Decision("off", "not selected")))
                continue
            options = {**options, **(inherited.pinned(name) if inherited else {})}
            patch = cls(**options)
            decision = Decision("inert", "not decided yet")
            lacking = [f"{seam.__name__}: {missing[seam]}" for seam in cls.needs if seam in missing]
            nowhere = all(missing.get(seam) in (None, NO_PLACE) for seam in cls.needs)
            outside = inherited.stepped_aside(name) if inherited else None
            if outside is not None:
                decision = outside
            elif lacking and patch.values["strict"]:
                raise PatchesError(f"{name}: unavailable with {upstream} {version} ({'; '.join(lacking)})")
            elif lacking and nowhere and not selection.names(name):
                decision = Decision("inert", "; ".join(lacking))
            elif lacking:
                decision = Decision("unavailable", "; ".join(lacking))
                self._lacking[name] = patch
            else:
                self._patches[name] = patch
            entries.append(Entry(name, decision, options=options))
        self.plan = Plan(upstream, version, 1, 0, selection.text, entries)

    @classmethod
    def of(cls, facts: Facts, selection: Selection, missing: Mapping[type[Seam], str] | None = None) -> Lifecycle:
        """Return the decided lifecycle of a training with these facts.

        Raises:
            PatchesError: A patch refuses the training, or a `strict` patch is unavailable.
        """
        made = cls(facts.upstream, facts.version, selection, missing or {})
        made.decide(facts)
        return made

    def decide(self, facts: Facts) -> None:
        """Let every patch decide.

        Raises:
            PatchesError: A patch refuses the training.
        """
        facts = self.facts = self._foreseen(facts)
        self.plan.world_size, self.plan.global_batch = facts.world_size, facts.batch.size
        for name, patch in self._lacking.items():
            with suppress(Exception):  # it is not going to act
                decision = patch.decide(facts)
                if decision.status == "inert" and not patch.follows:  # nothing is lost, and nobody need be told
                    self._entry(name).decision = decision
        for name, patch in list(self._patches.items()):
            entry = self._entry(name)
            try:
                entry.decision = patch.decide(facts)
            except PatchesError:
                raise
            except Exception as error:  # ours or a third party's: nothing has been touched yet, so upstream goes on
                self._drop(name, "failed", f"decide: {_words(error)}")
                continue
            entry.options = {**entry.options, **patch.pinned}
            entry.notes = tuple(patch.notes)

    def _foreseen(self, facts: Facts) -> Facts:
        for name, patch in list(self._patches.items()):
            try:
                facts = patch.foresee(facts)
            except Exception as error:
                self._drop(name, "failed", f"foresee: {_words(error)}")
        return facts

    def takes(self, seam: type[Seam]) -> bool:
        """Return whether any patch handles this seam, decided or not."""
        return any(seam in patch.handlers() or seam in patch.around() for patch in self._patches.values())

    def lose(self, seam: type[Seam], error: Exception) -> None:
        """Drop the patches that need a seam which the adapter could not serve, or rely on one that it said it has."""
        for name, patch in list(self._patches.items()):
            relies = seam not in self._missing and (seam in patch.handlers() or seam in patch.around())
            if relies or seam in patch.needs:
                self._failed(name, seam, error)

    def attempt(self, do: Callable[[], T], *seams: type[Seam]) -> T | None:
        """Let an adapter do something of ours, around what upstream does in any case; return None where it fails.

        Args:
            do: What.
            seams: Those that it serves: the patches that need them are dropped. Where it serves none, it is told.
        """
        try:
            return do()
        except RanksDisagreeError:
            raise
        except Exception as error:
            for seam in seams:
                self.lose(seam, error)
            if not seams:
                self.tell(f"something could not be recorded: {_words(error)}")
            return None

    def guarded(self, ours: Callable[..., Any], upstreams: Callable[..., Any], seam: type[Seam]) -> Callable[..., Any]:
        """Return a function that calls ours, and upstream's where ours fails or returns None."""

        def call(*args: Any, **kwargs: Any) -> Any:
            made = self.attempt(lambda: ours(*args, **kwargs), seam)
            return upstreams(*args, **kwargs) if made is None else made

        return call

    def listens(self, seam: type[Seam]) -> bool:
        """Return whether an active patch handles this seam; where none does, an adapter need not prepare it."""
        return any(
            (seam in patch.handlers() or seam in patch.around()) and self._entry(name).decision.status == "active"
            for name, patch in self._patches.items()
        )

    def fire(self, seam: S) -> S:
        """Let every patch that handles this seam see and change it, the innermost first; return it."""
        for name, patch in self._outward():
            if not (self._called(name, patch) or isinstance(seam, Arguments)):
                continue
            try:
                handler = patch.handlers().get(type(seam))
                decision = handler(seam) if handler else None
            except Exception as error:
                self._failed(name, type(seam), error)
                continue
            if decision is not None:
                self._entry(name).decision = decision
                self._entry(name).notes = tuple(patch.notes)
        return seam

    def around(self, act: Act, upstream: Callable[[], Any]) -> Any:
        """Do one of upstream's acts inside of every active patch that stands around it; return its result."""
        proceed = upstream
        for name, patch in self._outward():
            handler = patch.around().get(type(act)) if self._entry(name).decision.status == "active" else None
            if handler is not None:
                proceed = self._inside(name, handler, act, proceed)
        return proceed()

    def _inside(
        self, name: str, handler: Callable[[Any, Callable[[], Any]], Any], act: Act, inner: Callable[[], Any]
    ) -> Callable[[], Any]:
        def call() -> Any:
            if name not in self._patches:  # dropped since
                return inner()
            proceed = Proceed(inner)
            try:
                return handler(act, proceed)
            except Exception as error:
                if error is proceed.error:  # upstream's own, or one that a patch further inside has let through
                    raise
                self._failed(name, type(act), error)
            if proceed.error is not None:
                raise proceed.error
            return proceed.result if proceed.calls else inner()

        return call

    def start(self, live: Live, global_batch: float) -> None:
        """Let every active patch prove, and then verify, its effect: everything is built, no step has been made."""
        for name, patch in list(self._patches.items()):
            if self._entry(name).decision.status != "active":
                continue
            try:
                why = patch.prove(live)
            except Exception as error:
                self._failed(name, Live, error)
                continue
            self._entry(name).notes = tuple(patch.notes)
            if why:
                self._drop(name, "unavailable", why)
        self.check(live, global_batch)

    def first_step(self) -> None:
        """Let ranks agree on the patches that they have dropped: the first step is about to begin, on all of them.

        Raises:
            RanksDisagreeError: A patch that one rank has dropped cannot be taken back on this one.
        """
        if self._stepped:
            return
        if self.plan.world_size > 1:
            reasons = {name: self._entry(name).decision.reason for name in self._dropped}
            for rank, theirs in enumerate(exchange(json.dumps(reasons), self.tell)):
                for name, reason in json.loads(theirs).items():
                    if name in self._patches:
                        self._drop(name, "failed", f"dropped on rank {rank}: {reason}")
            for name, patch in self._dropped.items():
                if not self._undone(name, patch):
                    raise RanksDisagreeError(self._ends(name, self._entry(name).decision.reason))
        self._stepped = True

    def check(self, live: Live, global_batch: float) -> None:
        """Measure every active patch's effect on the live objects, and record it in the plan."""
        self.plan.global_batch = global_batch  # AutoBatch and out-of-memory retries change it
        for name, patch in list(self._patches.items()):
            entry = self._entry(name)
            if entry.decision.status != "active":
                entry.verified = None
                continue
            try:
                entry.verified = patch.verify(live)
                entry.notes = tuple(patch.notes)
                if entry.verified is False and patch.trouble:
                    entry.decision = replace(entry.decision, reason=patch.trouble)
            except Exception as error:  # a measurement that fails shows nothing, and stops nothing
                entry.verified = None
                self.tell(f"{name} could not be verified: {_words(error)}")

    def write(self, directory: Path) -> None:
        """Write patches.json into the run directory; a report that cannot be written is a warning."""
        try:
            report.write(self.plan, directory)
        except OSError as error:  # its own words name the temporary file, another one each time
            self.tell(f"no {report.FILE_NAME}: {type(error).__name__}: [Errno {error.errno}] {error.strerror}")
        except Exception as error:
            self.tell(f"no {report.FILE_NAME}: {_words(error)}")

    def tell(self, line: str) -> None:
        """Log a warning, once."""
        if line not in self._told:
            self._told.add(line)
            try:
                self._tell(f"yolo-patches: {line}")
            except Exception:  # a logger of somebody's that cannot log is no reason to stop
                _to_stderr(f"yolo-patches: {line}")

    def warn(self) -> None:
        """Tell what is selected but unavailable, and what is active without its effect."""
        for entry in self.plan.entries:
            if entry.decision.status == "unavailable":
                self.tell(
                    f"{entry.name} is unavailable, training goes on without it ({entry.decision.reason}); "
                    f"{entry.name}:strict=true makes this an error"
                )
            elif entry.verified is False:
                self.tell(f"{entry.name} did not take effect: {entry.decision.reason}")

    def handover(self) -> Handover:
        """Return what workers of this training must not decide again."""
        facts = self.facts
        return Handover.of(self.plan, facts.given if facts else None)

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """Be the training that is under way in this process; let go of everything at the end, whatever ends it."""
        before, activation.current = activation.current, self
        try:
            yield
        finally:
            activation.current = before
            self.close()

    def close(self) -> None:
        """Let go of what the patches hold; harmless when done twice."""
        if self._closed:
            return
        self._closed = True
        for name, patch in {**self._dropped, **self._patches}.items():
            try:
                patch.close()
            except Exception as error:
                self.tell(f"{name} could not be closed: {_words(error)}")

    def _outward(self) -> list[tuple[str, Patch]]:
        """Return the patches from the innermost to the outermost."""
        return sorted(self._patches.items(), key=lambda item: (item[1].phase, item[0]), reverse=True)

    def _called(self, name: str, patch: Patch) -> bool:
        status = self._entry(name).decision.status
        return status == "active" or (status == "inert" and patch.follows)

    def _entry(self, name: str) -> Entry:
        return self.plan.entry(name)

    def _failed(self, name: str, seam: type, error: Exception) -> None:
        """Drop a patch that has raised, or end the run where the other ranks would go on with it."""
        if isinstance(error, RanksDisagreeError):
            raise error
        reason = f"{seam.__name__}: {_words(error)}"
        patch = self._patches[name]
        alone = seam in ALONE or patch.phase == Phase.OBSERVE
        if self._stepped and self.plan.world_size > 1 and not alone:
            self._entry(name).decision = Decision("failed", reason)
            raise RanksDisagreeError(self._ends(name, reason)) from error
        self._drop(name, "failed", reason)

    def _ends(self, name: str, reason: str) -> str:
        return (
            f"{name} failed on this rank alone, and the other ranks go on with it: the training ends here ({reason}); "
            f"resume it, or start again, with patches={self.selection.text},-{name}"
        )

    def _drop(self, name: str, status: str, reason: str) -> None:
        patch = self._dropped[name] = self._patches.pop(name)
        entry = self._entry(name)
        entry.decision, entry.verified = Decision(status, reason), None
        if self.plan.world_size == 1:
            self._undone(name, patch)
        if status == "failed":
            self.tell(f"{name} failed and is dropped, training goes on as upstream has it ({reason})")

    def _undone(self, name: str, patch: Patch) -> bool:
        try:
            return patch.undo()
        except Exception as error:
            self.tell(f"{name} could not be taken back: {_words(error)}")
            return False


def _words(error: BaseException) -> str:
    return str(error) if isinstance(error, PatchesError) else f"{type(error).__name__}: {error}"


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr)
