"""What a patch is: one fix, written against seams. One file with a subclass, one entry point."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from enum import IntEnum
from typing import Any, ClassVar

from yolo_patches.facts import Facts
from yolo_patches.plan import Decision
from yolo_patches.seams import Act, Live, Seam
from yolo_patches.selection import COMMON_OPTIONS, Option


class Phase(IntEnum):
    """Who is inside whom, outermost first.

    Around an act, a patch's `proceed` is every patch of a later phase and, innermost, upstream. At a seam that shows a
    value the innermost is called first, so that whoever is outside sees what those inside have made of it. Within a
    phase the name decides, so that the order is the same on every rank.
    """

    OBSERVE = 0  # only measures: it must see what everybody else does
    GUARD = 1  # repeats or splits what is inside it when that fails
    SCHEDULE = 2  # decides when, where and whether an act takes place
    POLICY = 3  # sets values: batches, rates, recipes
    COMPUTE = 4  # changes what is computed: statistics, normalisers, pixels


class Patch(ABC):
    """One fix, written against seams. An instance serves one training.

    Subclasses set the class attributes, decide from facts alone (so that `doctor` can show the plan without training),
    and handle the seams that they need. An error that a subclass raises anywhere but in `decide` drops the patch for
    this training, and upstream goes on.

    Attributes:
        name: The name used in `patches=`.
        summary: One line for `yolo-patches list`.
        source: URL of the report or paper that asks for the fix.
        default: Whether `default` selects it.
        options: Options beside the common ones.
        needs: The seams without which the patch is unavailable.
        phase: Who is inside whom.
        follows: Whether the patch is called at its seams while it is inert, too: they may show that it must act.
        upstream: The adapter whose upstream alone it is for; empty for every upstream.
        values: The options of this run, defaults filled in.
        pinned: Options that this run has settled on its own and that its workers, and a resumed run, must take over.
        trouble: Why the effect is missing, where `verify` has found out.
        notes: What else the plan says of this run, a sentence each; it may grow until the end.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    source: ClassVar[str]
    default: ClassVar[bool]
    options: ClassVar[Mapping[str, Option]] = {}
    needs: ClassVar[tuple[type[Seam], ...]]
    phase: ClassVar[Phase] = Phase.POLICY
    follows: ClassVar[bool] = False
    upstream: ClassVar[str] = ""

    def __init__(self, **given: Any) -> None:
        known = {**COMMON_OPTIONS, **self.options}
        self.values = {key: given.get(key, option.default) for key, option in known.items()}
        self.pinned: dict[str, Any] = {}
        self.trouble = ""
        self.notes: list[str] = []

    @abstractmethod
    def decide(self, facts: Facts) -> Decision:
        """Return what this patch will do in a training with these facts; nothing may be touched yet.

        Raises:
            PatchesError: The run cannot be right whatever the patch does, e.g. fewer images than ranks.
        """

    def foresee(self, facts: Facts) -> Facts:
        """Return the facts as they are where this patch acts: every patch decides from them."""
        return facts

    def handlers(self) -> Mapping[type[Seam], Callable[[Any], Decision | None]]:
        """Return the function to call at each seam; one that learns more than `decide` knew returns a new decision."""
        return {}

    def around(self) -> Mapping[type[Act], Callable[[Any, Callable[[], Any]], Any]]:
        """Return the function to call around each act, with the act and `proceed`; it returns the act's result."""
        return {}

    def prove(self, live: Live) -> str:
        """Return why the patch must not act on these live objects, or nothing.

        It is asked once, when everything is built and no step has been made. A patch that says why is unavailable for
        this training, on every rank.
        """
        return ""

    @abstractmethod
    def verify(self, live: Live) -> bool | None:
        """Return whether the decided effect is measured on the live objects; None where it cannot be measured yet.

        It is asked when everything is built and the first step is about to run, after the first steps, and at the end.
        """

    def undo(self) -> bool:
        """Take back what the patch has changed on live objects, because it is dropped.

        Returns:
            Whether what upstream does from here on is upstream's own. False ends a training of several ranks, whose
            ranks would disagree.
        """
        return True

    def close(self) -> None:  # noqa: B027 - most hold nothing
        """Let go of what the patch holds: threads, files, hooks. Called once, however the training ends."""
