"""linear-lr: a step that grows with the effective batch, the same for every optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from yolo_patches import recipes
from yolo_patches.facts import Facts
from yolo_patches.patch import Patch
from yolo_patches.plan import Change, Decision
from yolo_patches.seams import (
    Live,
    LossProof,
    OptimizerBuilt,
    OptimizerChoice,
    OptimizerRestored,
    OptimizerStep,
    Seam,
    WarmUp,
)
from yolo_patches.selection import Option

#: Epochs of warm-up to a larger learning rate (Goyal et al. 2017, section 2.2), whatever the batch.
WARM_UP = 5
#: The share of a training that a longer warm-up may take.
SHARE = 0.1


@dataclass(frozen=True)
class Scale:
    """The factors of one batch.

    With effective batch E and base batch b0, r = E / b0: the gradient is multiplied by `gradient`, every learning rate
    by `lr` = min(r, max_scale) or its square root, weight decay by `decay` = 1 / r.

    All three are what brings a step of this run to that of the base batch, times `lr`. Upstream's warm-up, in which it
    adds up fewer micro-steps, then goes through the same shares of the effective batch as it would at the base batch.

    Attributes:
        effective: Images per optimizer step once the run is warm, E.
        base: The base batch, b0. Of both, one that is larger than the whole run is the whole run.
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

    @property
    def idle(self) -> bool:
        """Whether nothing is to be touched."""
        return self.lr == self.gradient == self.decay == 1


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
    follows: ClassVar[bool] = True
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
    )

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self._facts: Facts | None = None
        self._scale: Scale | None = None
        self._mean = self._measured = False
        self._longer = False  # the warm-up, which upstream computes once
        self._groups: list[_Group] = []
        self._changes: dict[str, Change] = {}
        self._steps: _Steps | None = None

    def decide(self, facts: Facts) -> Decision:
        """Forecast the factors from the global batch; where upstream measures it, leave them to the seams."""
        self._facts, self._mean = facts, facts.loss.mean
        if facts.batch.size < 1:
            return Decision("active", "the scale follows the batch, which upstream will measure")
        batch = int(facts.batch.size)
        scale = self._scale = self._scaling(batch, facts.batch.accumulate(batch))
        if scale.lr != 1 and facts.optimization.optimizer != "auto":
            self._note("lr0", facts.optimization.lr0, facts.optimization.lr0 * scale.lr)
        epochs = facts.optimization.warmup_epochs
        longer = self._warm_up_epochs(facts.optimization.epochs)
        if scale.lr > 1 and 0 < epochs < longer and "warmup_epochs" not in facts.given:
            self._note("warm-up epochs", epochs, longer)
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

    def verify(self, live: Live) -> bool | None:
        """Compare the live groups with what was set; later: every step has come to the seam first.

        None where the loss could not be probed: then that it grows with the batch is a belief.
        """
        if self._steps is not None and self._steps.missed:
            self.trouble = (
                "the optimizer's steps do not come to the seam at which gradients are scaled: learning rate and weight "
                "decay are upstream's again" + (", the warm-up is as long as ours" if self._longer else "")
            )
            return False
        groups = live.optimizer.param_groups
        if len(groups) != len(self._groups) or not all(map(_Group.holds, self._groups, groups)):
            return False
        return True if self._measured else None

    def undo(self) -> bool:
        """Give the optimizer upstream's learning rate and weight decay back; a longer warm-up cannot be taken back."""
        given_back = self._steps is None or self._steps.give_back()
        return given_back and not self._longer

    def close(self) -> None:
        """Take the hooks off the optimizer."""
        if self._steps is not None:
            self._steps.remove()

    def _scaling(self, batch: int, accumulate: int, micro_steps: int = 0) -> Scale:
        effective, base = batch * accumulate, self._base()
        if micro_steps:  # neither batch can be larger than the whole run
            effective, base = (min(images, batch * micro_steps) for images in (effective, base))
            accumulate = effective // batch
        ratio = effective / base
        capped = min(ratio, self.values["max_scale"])
        # A mean over images grows with ranks and micro-steps alone; at the base batch there would be fewer micro-steps.
        mean = max(base / batch, 1) / (accumulate * self._known.world_size)
        return Scale(
            effective,
            base,
            lr=math.sqrt(capped) if self.values["rule"] == "sqrt" else capped,
            gradient=mean if self._mean else 1 / ratio,
            decay=1 / ratio,
        )

    def _base(self) -> int:
        facts = self._known
        if self.values["base_batch"] != "auto":
            return int(self.values["base_batch"])
        batch = self._published()
        if batch is None:
            return facts.batch.nbs
        self.pinned["base_batch"] = batch  # a resumed run starts from last.pt, which is no known variant
        return batch

    def _published(self) -> int | None:
        """Return the effective batch of the model's authors, where this training has their optimizer and rate."""
        facts = self._known
        if not facts.model.scratch or facts.task != "detect":  # other heads have no recipe of their own
            return None
        recipe = recipes.find(facts.upstream, facts.model.recognise().name)
        chosen = {"optimizer": facts.optimization.optimizer, "lr0": facts.optimization.lr0}
        if recipe is None or recipe.partial or any(recipe.value(name) != value for name, value in chosen.items()):
            return None
        batch, nbs = recipe.value("batch"), recipe.value("nbs")
        return batch * max(round(nbs / batch), 1) if batch and nbs else None

    @property
    def _known(self) -> Facts:
        assert self._facts is not None, "decide() comes before every seam"
        return self._facts

    def _decision(self) -> Decision:
        scale = self._scale
        assert scale is not None
        if scale.idle:
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
        scale = self._scale = self._scaling(seam.batch, seam.accumulate)
        if scale.ratio != 1 and not self._unknown(seam.loss):
            per_epoch = math.ceil(seam.images / max(scale.base, self._known.batch.nbs))
            seam.iterations = per_epoch * seam.epochs

    def _unknown(self, loss: Callable[[], LossProof]) -> str:
        """Measure how the live loss grows with the batch; return why nothing here is right for it, or nothing."""
        growth = loss().growth
        if growth is None:  # then the adapter's word for it counts
            return ""
        if not any(math.isclose(growth, known, rel_tol=0.01) for known in (1, 2)):
            return f"the loss of twice the images is x{growth:.3g}: neither a mean nor multiplied by the batch"
        self._mean, self._measured = growth < 1.5, True
        return ""

    def _build(self, seam: OptimizerBuilt) -> Decision:
        before = self._scale.lr if self._scale is not None and not seam.fresh else 1.0
        self._changes.clear()
        scale = self._scaling(seam.batch, seam.accumulate, seam.micro_steps)
        if not scale.idle:
            why = self._unknown(seam.loss)
            if why:
                self._scale = None
                return Decision("unavailable", why)
            scale = self._scaling(seam.batch, seam.accumulate, seam.micro_steps)
        self._scale = scale
        groups, decay = seam.optimizer.param_groups, self._decay(seam, scale)
        self._groups = [_Group.of(group, before, scale.lr, decay) for group in groups]
        if scale.idle and before == 1:
            self._measured = True
        else:
            self._set(seam.optimizer, before)
        return self._decision()

    def _set(self, optimizer: Any, before: float) -> None:
        scale, groups = self._scale, optimizer.param_groups
        assert scale is not None
        upstream = min(group["lr"] for group in groups) / before
        decay = max((group.get("weight_decay", 0) for group in groups), default=0)
        for mine, group in zip(self._groups, groups):
            group["lr"] *= scale.lr / before
            mine.put(group)
        if scale.lr != 1:
            self._note("lr0", upstream, upstream * scale.lr)
        patched = max((group.get("weight_decay", 0) for group in groups), default=0)
        if patched != decay:
            self._note("weight decay", decay, patched)
        if self._steps is None:
            self._steps = _Steps(optimizer)
        self._steps.groups = self._groups

    def _decay(self, seam: OptimizerBuilt, scale: Scale) -> float:
        """Return the factor of weight decay: 1 where upstream has not multiplied it by the effective batch."""
        batch = self._known.batch
        given = self._known.optimization.weight_decay
        live = max((group.get("weight_decay", 0) for group in seam.optimizer.param_groups), default=0)
        scaled = given * seam.batch * (seam.nominal or seam.accumulate) / batch.nbs
        return scale.decay if math.isclose(live, scaled, rel_tol=1e-6) else 1.0

    def _restore(self, seam: OptimizerRestored) -> None:
        """Put this run's values back over a checkpoint's, whose batch, or base batch, may have been another."""
        scale = self._scale
        if scale is None:
            return
        scaled_before = self._known.resumed.get(self.name, {}).get("status") == "active"
        if scale.idle and not scaled_before:
            return
        for mine, group in zip(self._groups, seam.optimizer.param_groups):
            mine.put(group)

    def _step(self, seam: OptimizerStep) -> None:
        scale = self._scale
        if scale is None or self._steps is None:
            return
        if scale.gradient != 1:
            seam.scale_gradients(scale.gradient)
        self._steps.announce()

    def _warm_up_epochs(self, epochs: int) -> float:
        return min(WARM_UP, SHARE * epochs)

    def _warm_up(self, seam: WarmUp) -> Decision | None:
        """Warm up to a larger learning rate for 5 epochs (Goyal et al. 2017), or a tenth of the run if that is less."""
        scale = self._scale
        if scale is None or scale.lr <= 1 or seam.iterations <= 0 or "warmup_epochs" in self._known.given:
            return None
        if seam.settled:
            self.notes[:] = [f"the warm-up is as long as {seam.settled} was asked for"]
            return self._decision()
        longer = round(self._warm_up_epochs(seam.epochs) * seam.per_epoch)
        if longer <= seam.iterations:
            return None
        self._note("warm-up epochs", round(seam.iterations / seam.per_epoch, 3), round(longer / seam.per_epoch, 3))
        seam.iterations, self._longer = longer, True
        return self._decision()


@dataclass(frozen=True)
class _Group:
    """What one parameter group has from upstream, and from us. Optimizers need not have every value."""

    lr: float
    factor: float
    decay: float | None
    patched_decay: float | None

    @classmethod
    def of(cls, group: Mapping[str, Any], before: float, factor: float, decay: float) -> _Group:
        own = group.get("weight_decay")
        lr = group.get("initial_lr", group["lr"]) / before
        return cls(lr, factor, own, None if own is None else own * decay)

    def put(self, group: dict[str, Any]) -> None:
        if "initial_lr" in group:
            group["initial_lr"] = self.lr * self.factor
        if self.patched_decay is not None:
            group["weight_decay"] = self.patched_decay

    def holds(self, group: Mapping[str, Any]) -> bool:
        lr = math.isclose(group.get("initial_lr", group["lr"]), self.lr * self.factor)
        return lr and (self.patched_decay is None or math.isclose(group["weight_decay"], self.patched_decay))


class _Steps:
    """Watches an optimizer's steps: one whose gradient was not scaled must not have a scaled learning rate either."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer
        self.groups: list[_Group] = []
        self.missed = False
        self._announced = self._upstream = False
        self._rates: list[float] = []
        self._hooks = []
        if hasattr(optimizer, "register_step_pre_hook"):  # torch 2.0
            self._hooks = [
                optimizer.register_step_pre_hook(lambda *_: self._before()),
                optimizer.register_step_post_hook(lambda *_: self._after()),
            ]

    def announce(self) -> None:
        """Note that the gradient of the next step is scaled."""
        self._announced = True

    def give_back(self) -> bool:
        """Make every step from here on upstream's; its schedule goes on from our values, so at each step anew."""
        self._upstream = True
        for mine, group in zip(self.groups, self.optimizer.param_groups):
            if mine.decay is not None:
                group["weight_decay"] = mine.decay
        return bool(self._hooks)

    def remove(self) -> None:
        """Take the hooks off."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _before(self) -> None:
        if not self._announced and not self._upstream:
            self.missed = True
            self.give_back()
        if self._upstream:
            groups = self.optimizer.param_groups
            self._rates = [group["lr"] for group in groups]
            share = self._share(groups)
            for mine, group in zip(self.groups, groups):
                group["lr"] = group["lr"] - share * mine.lr * (mine.factor - 1)

    def _share(self, groups: list[dict[str, Any]]) -> float:
        """Return how much of our rates is in the groups: what of them to take away, and to put upstream's in place.

        A scheduler gives every group the same share of its own rate. Upstream's warm-up gives biases less and less of
        another rate besides, which is not ours and stays: so it is the smallest share that all of them have.
        """
        shares = [group["lr"] / (mine.lr * mine.factor) for mine, group in zip(self.groups, groups) if mine.lr]
        return min(shares, default=0.0)

    def _after(self) -> None:
        self._announced = False  # and not before: a step that fails may be repeated, with the same gradient
        for rate, group in zip(self._rates, self.optimizer.param_groups):
            group["lr"] = rate
        self._rates = []
