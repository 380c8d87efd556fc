"""linear-lr: a step that grows with the effective batch, the same for every optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from yolo_patches import recipes
from yolo_patches.plan import Change, Decision
from yolo_patches.registry import Patch
from yolo_patches.seams import (
    Facts,
    OptimizerBuilt,
    OptimizerChoice,
    OptimizerRestored,
    OptimizerStep,
    Seam,
    TrainStart,
    WarmUp,
)
from yolo_patches.selection import Option


@dataclass(frozen=True)
class Scale:
    """The factors of one batch.

    With effective batch E and base batch b0, r = E / b0: the gradient is multiplied by `gradient`, every learning rate
    by `lr` = min(r, max_scale) or its square root, weight decay by `decay` = 1 / r.

    Attributes:
        effective: Images per optimizer step, E.
        base: The base batch, b0.
        lr: Factor of every group's learning rate.
        gradient: Factor of the gradient, before it is clipped.
        decay: Factor of upstream's weight decay, which upstream multiplies by E / nbs.
    """

    effective: int
    base: int
    lr: float
    gradient: float
    decay: float

    @property
    def ratio(self) -> float:
        """E / b0."""
        return self.effective / self.base


class LinearLr(Patch):
    """Scale the step with the effective batch (Goyal et al. 2017, arXiv:1706.02677), whatever optimizer and clip.

    Upstream's loss is multiplied by the batch, so its gradient grows with it, but the clip at norm 10 takes that back,
    and adaptive optimizers never see it: from batch 64 to 256 the first step's norm grows 1.000 times (SGD), 1.006
    times (AdamW), 1.085 times (MuSGD), while weight decay grows 4 times (ultralytics/ultralytics#22092). Bringing the
    gradient back to the base batch first, and then scaling the learning rate, is right on both sides of the clip and
    for every optimizer. At E = b0 nothing is touched.

    `rule=sqrt` scales by the square root, for adaptive optimizers (Malladi et al. 2022, arXiv:2205.10287).
    """

    name: ClassVar[str] = "linear-lr"
    summary: ClassVar[str] = "the optimizer's step grows with the effective batch, for every optimizer, with a cap"
    source: ClassVar[str] = "https://github.com/ultralytics/ultralytics/issues/22092"
    default: ClassVar[bool] = True
    options: ClassVar[Mapping[str, Option]] = {
        "base_batch": Option(
            int,
            "effective batch that lr0 is meant for; auto: the recipe's own, else nbs",
            default="auto",
            minimum=1,
            words=("auto",),
        ),
        "max_scale": Option(float, "cap on effective batch / base batch in the learning rate", default=8.0, minimum=1),
        "rule": Option(str, "how the learning rate grows", default="linear", choices=("linear", "sqrt")),
    }
    needs: ClassVar[tuple[type[Seam], ...]] = (
        OptimizerChoice,
        OptimizerBuilt,
        OptimizerRestored,
        OptimizerStep,
        WarmUp,
        TrainStart,
    )

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self._facts: Facts | None = None
        self._scale: Scale | None = None
        self._expected: list[tuple[float, float]] = []
        self._changes: dict[str, Change] = {}

    def decide(self, facts: Facts) -> Decision:
        """Forecast the factors from the global batch; where upstream measures it, leave them to the seams."""
        self._facts = facts
        if facts.global_batch < 1:
            return Decision("active", "the scale follows the batch, which upstream will measure")
        self._scale = self._scaling(int(facts.global_batch))
        if self._scale.lr != 1 and facts.optimizer != "auto":
            self._note("lr0", facts.lr0, facts.lr0 * self._scale.lr)
        return self._decision()

    def handlers(self) -> Mapping[type[Seam], Callable[[Any], Decision | None]]:
        """Handle the seams from the optimizer's choice to its step."""
        return {
            OptimizerChoice: self._choose,
            OptimizerBuilt: self._build,
            OptimizerRestored: self._restore,
            OptimizerStep: self._step,
            WarmUp: self._warm_up,
        }

    def verify(self, live: TrainStart) -> bool:
        """Compare the live groups' base learning rate and weight decay with what was set."""
        groups = live.optimizer.param_groups
        return len(groups) == len(self._expected) and all(
            math.isclose(group["initial_lr"], lr) and math.isclose(group["weight_decay"], decay)
            for group, (lr, decay) in zip(groups, self._expected)
        )

    def _scaling(self, batch: int) -> Scale:
        facts = self._known
        accumulate = max(round(facts.nbs / batch), 1)
        effective, base = batch * accumulate, self._base()
        ratio = effective / base
        scale = min(ratio, self.values["max_scale"])
        gradient = 1 / (facts.world_size * accumulate) if facts.mean_loss else 1 / ratio
        return Scale(effective, base, math.sqrt(scale) if self.values["rule"] == "sqrt" else scale, gradient, 1 / ratio)

    def _base(self) -> int:
        facts = self._known
        if self.values["base_batch"] != "auto":
            return int(self.values["base_batch"])
        recipe = recipes.find(facts.model) if facts.scratch else None
        if recipe and (recipe.optimizer, recipe.lr0) == (facts.optimizer, facts.lr0):
            self.pinned["base_batch"] = recipe.batch  # a resumed run starts from last.pt, which is no known variant
            return recipe.batch
        return facts.nbs

    @property
    def _known(self) -> Facts:
        assert self._facts is not None, "decide() comes before every seam"
        return self._facts

    def _decision(self) -> Decision:
        scale = self._scale
        assert scale is not None
        if scale.lr == scale.gradient == scale.decay == 1:
            return Decision("inert", f"effective batch {scale.effective} is the base batch")
        capped = " capped" if scale.ratio > self.values["max_scale"] else ""
        reason = f"x{scale.lr:g}{capped} = effective batch {scale.effective} / base {scale.base}"
        if self.values["rule"] == "sqrt":
            reason = f"x{scale.lr:g}{capped} = sqrt(effective batch {scale.effective} / base {scale.base})"
        self._note("gradient before the clip", "x1", f"x{scale.gradient:g}")
        return Decision("active", reason, tuple(self._changes.values()))

    def _note(self, what: str, upstream: Any, patched: Any) -> None:
        self._changes[what] = Change(what, upstream, patched)

    def _choose(self, seam: OptimizerChoice) -> None:
        """Let the automatic choice count the iterations at the base batch: the same optimizer at every batch."""
        self._scale = self._scaling(seam.batch)
        if self._scale.ratio != 1:
            per_epoch = math.ceil(seam.images / max(self._scale.base, self._known.nbs))
            seam.iterations = per_epoch * seam.epochs

    def _build(self, seam: OptimizerBuilt) -> Decision:
        before = self._scale.lr if self._scale is not None and not seam.fresh else 1.0
        scale = self._scale = self._scaling(seam.batch)
        self._changes.clear()
        groups = seam.optimizer.param_groups
        upstream = min(group["lr"] for group in groups) / before
        if scale.lr != before:
            for group in groups:
                for key in ("lr", "initial_lr"):
                    if key in group:
                        group[key] *= scale.lr / before
        if scale.lr != 1:
            self._note("lr0", upstream, upstream * scale.lr)
        if scale.decay != 1:
            decays = [group["weight_decay"] for group in groups]
            for group in groups:
                group["weight_decay"] *= scale.decay
            if max(decays):
                self._note("weight decay", max(decays), max(decays) * scale.decay)
        self._expected = [(group.get("initial_lr", group["lr"]), group["weight_decay"]) for group in groups]
        return self._decision()

    def _restore(self, seam: OptimizerRestored) -> None:
        """Put this run's values back over a checkpoint's, whose batch may have been another."""
        scale = self._scale
        if scale is None or scale.lr == scale.decay == 1:
            return
        for group, (lr, decay) in zip(seam.optimizer.param_groups, self._expected):
            group["initial_lr"], group["weight_decay"] = lr, decay

    def _step(self, seam: OptimizerStep) -> None:
        scale = self._scale
        assert scale is not None, "the optimizer was built before its first step"
        if scale.gradient != 1:
            seam.scale_gradients(scale.gradient)

    def _warm_up(self, seam: WarmUp) -> Decision | None:
        """Warm up for at least as many iterations as at the base batch, as Goyal et al. do for large batches."""
        scale = self._scale
        assert scale is not None
        if scale.ratio <= 1 or seam.iterations <= 0:
            return None
        longer = min(round(seam.iterations * scale.ratio), max(seam.longest, seam.iterations))
        if longer == seam.iterations:
            return None
        self._note("warm-up iterations", seam.iterations, longer)
        seam.iterations = longer
        return self._decision()
