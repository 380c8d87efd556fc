"""compat: what upstream uses and today's stack has taken away or changed, for upstream's own code only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from yolo_patches.facts import Facts
from yolo_patches.patch import Patch
from yolo_patches.plan import Change, Decision
from yolo_patches.seams import Live, Seam, StackGap


class Compat(Patch):
    """Stand in for what old trainers miss in current setuptools, torch, Pillow and NumPy.

    YOLOv9 and YOLOv5 checkouts import `pkg_resources`, which setuptools 81 dropped; they unpickle their own checkpoints
    with a torch.load that since 2.6 refuses to, after the last epoch; they call names that Pillow 10 and NumPy 2 have
    removed. The stand-ins are seen by these projects' modules alone. A file is unpickled without restrictions, which
    runs any code that it holds, only if this run wrote it or the user named it.
    """

    name: ClassVar[str] = "compat"
    summary: ClassVar[str] = "old trainers run on the installed setuptools, torch, Pillow and NumPy"
    source: ClassVar[str] = "https://github.com/pytorch/pytorch/releases/tag/v2.6.0"
    default: ClassVar[bool] = False
    needs: ClassVar[tuple[type[Seam], ...]] = (StackGap,)

    def decide(self, facts: Facts) -> Decision:
        """Act where the installed stack lacks something that upstream uses."""
        self._gaps = frozenset(facts.gaps)
        if not facts.gaps:
            return Decision("inert", "the installed stack has everything that upstream uses")
        return Decision(
            "active",
            "for upstream's own modules only",
            tuple(Change(what, comes, STAND_INS.get(what, "a stand-in")) for what, comes in facts.gaps.items()),
        )

    def handlers(self) -> Mapping[type[Seam], Callable[[Any], Decision | None]]:
        """Handle the seam at which upstream is about to use what is lacking."""
        return {StackGap: self._fill}

    def verify(self, live: Live) -> bool | None:
        """Check that something stands in for every gap."""
        return self._gaps <= live.filled

    def _fill(self, seam: StackGap) -> None:
        seam.fill = seam.trusted or seam.name != TRUST


#: The gap that is filled for trusted files only.
TRUST = "torch.load"
STAND_INS = {TRUST: "weights_only=False for files that this run wrote or the user named"}
