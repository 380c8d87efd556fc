"""label-smoothing: soft classification targets, for losses whose assigner gives every prediction its target scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from yolo_patches.facts import Facts
from yolo_patches.patch import Patch, Phase
from yolo_patches.plan import Change, Decision
from yolo_patches.seams import Live, Seam
from yolo_patches.selection import Option
from yolo_patches.step_seams import TargetScores


class LabelSmoothing(Patch):
    """Spread a share of each object's target score evenly over all classes (Szegedy et al. 2016, arXiv:1512.00567, 7).

    A prediction's target scores t over C classes become (1 - epsilon) t + epsilon / C * sum(t). Their sum stays what it
    is, prediction by prediction, and with it everything that upstream takes from sums: the weights of the box losses
    and the normaliser of the whole loss. So smoothing changes the classification targets alone, needs to know of no
    other rank, and is exact under loss-norm. Background keeps its zeros; a model of one class has nothing to spread.

    Ultralytics has dropped its `label_smoothing`, which no detection loss read; YOLOv9's is read by none of its losses
    with an assigner, either. YOLOv5's --label-smoothing is in force: its targets are 1 - epsilon / 2 and epsilon / 2.
    """

    name: ClassVar[str] = "label-smoothing"
    summary: ClassVar[str] = "spread a share of each object's target score over all classes; off without epsilon="
    source: ClassVar[str] = "https://arxiv.org/abs/1512.00567"
    default: ClassVar[bool] = False
    options: ClassVar[Mapping[str, Option]] = {
        "epsilon": Option(float, "share of the target score; 0.1 is usual", minimum=0, maximum=0.5)
    }
    needs: ClassVar[tuple[type[Seam], ...]] = (TargetScores,)
    phase: ClassVar[Phase] = Phase.COMPUTE

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self._epsilon: float = self.values["epsilon"] or 0.0
        self._proven = self._started = False
        self._smoothed = 0

    def decide(self, facts: Facts) -> Decision:
        """Act where an epsilon was asked for, and the task's loss has target scores."""
        if not self._epsilon:
            return Decision("inert", "no epsilon was asked for: label-smoothing:epsilon=0.1")
        if not facts.loss.normaliser:
            return Decision("inert", f"the {facts.task} loss has no target scores")
        change = Change("target score of an object's class", "s", f"{1 - self._epsilon:g} s + {self._epsilon:g} s / C")
        return Decision(
            "active", "the rest goes evenly to all C classes; every sum of scores stays what it is", (change,)
        )

    def handlers(self) -> Mapping[type[Seam], Callable[[Any], Decision | None]]:
        """Smooth the target scores of every assigner call of a training step."""
        return {TargetScores: self._replace}

    def _replace(self, seam: TargetScores) -> None:
        seam.values = self._smooth(seam.values)
        self._smoothed += 1

    def _smooth(self, scores: Any) -> Any:
        if scores.shape[-1] == 1:
            return scores
        return scores * (1 - self._epsilon) + scores.sum(-1, keepdim=True) * (self._epsilon / scores.shape[-1])

    def prove(self, live: Live) -> str:
        """Compute the live loss's gradient for synthetic images with and without: it must be another one."""
        reaction = live.targets(self._smooth)
        if reaction is not None and reaction < 1e-6:
            return "the live loss learns the same from smoothed targets: its head has one class, or no target scores"
        self._proven = reaction is not None
        return ""

    def verify(self, live: Live) -> bool | None:
        """The live loss reacts to smoothed targets (at the start); training steps have had some (later)."""
        before, self._started = self._started, True
        if before and not self._smoothed:
            self.trouble = "no target scores have come to the seam in training"
            return False
        return True if self._proven else None
