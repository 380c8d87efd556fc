"""warmup: a warm-up as long as the user says, by share or epochs, in one of three shapes; longer on small data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from yolo_patches.errors import PatchesError
from yolo_patches.facts import Facts
from yolo_patches.patch import Patch
from yolo_patches.plan import Change, Decision
from yolo_patches.seams import Live, OptimizerStep, Seam, WarmUp
from yolo_patches.selection import Option
from yolo_patches.step_seams import WarmUpStep

#: Share of the learning rate with which the shapes begin that cannot begin at zero: MMCV's default `warmup_ratio`.
RATIO = 0.1
#: A data set below this many training images is small.
SMALL = 5_000
#: Epochs of warm-up on small data, and the share of a run that they may take.
EPOCHS, SHARE = 10, 0.1
#: The rule has no measurement behind it that we know of; YOLOX measured the opposite for fine-tuning.
WHY_LONGER = (
    f"fewer than {SMALL:,} training images: {EPOCHS} epochs, at most a tenth of the run. A rule of thumb of this "
    "project's, not a measurement; Megvii-BaseDetection/YOLOX#418 found 1 epoch better than 5 when fine-tuning: then "
    "give warmup_epochs=1"
)


def progress(shape: str, share: float) -> float:
    """Return how far a value is on its way from its start to its target.

    Args:
        shape: "linear", "exponential" (RATIO ** (1 - share)) or "constant" (RATIO until the end), which are the three
            of MMCV's LrUpdaterHook: https://github.com/open-mmlab/mmcv/blob/v1.7.0/mmcv/runner/hooks/lr_updater.py
        share: Iteration over the warm-up's iterations; from 1 on the target is reached.
    """
    if share >= 1:
        return 1.0
    return share if shape == "linear" else RATIO ** (1 - share if shape == "exponential" else 1.0)


class Warmup(Patch):
    """Warm up for a share of the run, or for so many epochs, in one of three shapes.

    Upstream's warm-up is 3 epochs whatever the run, with a floor of 100 iterations up to Ultralytics 8.4.100, which can
    be the whole of a short run (ultralytics/ultralytics#25321). What it takes from a start to a target, evenly, goes
    through `start + (target - start) * progress`: each group's learning rate, biases' from their own start, and
    momentum. It is written where upstream has just written its own.

    An option of the user's counts before `warmup_epochs` and before what linear-lr would have; without options the
    user's `warmup_epochs` counts, and of this patch and linear-lr the longer warm-up.
    """

    name: ClassVar[str] = "warmup"
    summary: ClassVar[str] = "warm up by share or epochs, in one of three shapes; longer on small data"
    source: ClassVar[str] = "https://github.com/ultralytics/ultralytics/pull/25321"
    default: ClassVar[bool] = False
    follows: ClassVar[bool] = True
    options: ClassVar[Mapping[str, Option]] = {
        "share": Option(float, "length as a share of the run, 0.05 to 0.1 is usual", minimum=0.001, maximum=0.5),
        "epochs": Option(float, "length in epochs", minimum=0.01),
        "shape": Option(
            str,
            "how learning rate and momentum get there",
            default="linear",
            choices=("linear", "exponential", "constant"),
        ),
    }
    needs: ClassVar[tuple[type[Seam], ...]] = (WarmUp, WarmUpStep, OptimizerStep)

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self._facts: Facts | None = None
        self._active = self._set_length = False
        self._expected: list[tuple[float, float | None]] = []
        self._right = 0

    def decide(self, facts: Facts) -> Decision:
        """Forecast the length in epochs; how many iterations that is, and whether the data is small, seams will tell.

        Raises:
            PatchesError: Options exclude each other, or the warm-up would not end within the run.
        """
        self._facts = facts
        share, epochs, run = self.values["share"], self.values["epochs"], facts.optimization
        if share is not None and epochs is not None:
            raise PatchesError(
                f"warmup: share={share:g} and epochs={epochs:g} are two lengths of one warm-up; give one of them"
            )
        if share is not None and run.hours:
            raise PatchesError(
                f"warmup: share={share:g} is a share of a run that ends by the clock (time={run.hours:g}), whose "
                "length is not known; give warmup:epochs="
            )
        if epochs is not None and epochs > run.epochs:
            raise PatchesError(
                f"warmup: epochs={epochs:g} is longer than the run of {run.epochs} epochs; give at most {run.epochs}, "
                "or a share of it: warmup:share=0.1"
            )
        upstream = run.warmup_epochs
        if self._asked:
            return self._decision(self._length(run.epochs), upstream, "epochs")
        images = facts.images()
        why = self._stays(images if images is not None else SMALL)
        if images is None and not why:
            why = f"upstream's own, unless there are fewer than {SMALL:,} training images"
        longer = max(self._length(run.epochs), upstream)
        if why or upstream <= 0:
            return self._decision(upstream, upstream, "epochs", why)
        return self._decision(longer, upstream, "epochs")

    @property
    def _asked(self) -> bool:
        return self.values["share"] is not None or self.values["epochs"] is not None

    def _length(self, epochs: int) -> float:
        """Return the length in epochs of a run of so many."""
        if self.values["epochs"] is not None:
            return float(self.values["epochs"])
        if self.values["share"] is not None:
            return float(self.values["share"] * epochs)
        return min(EPOCHS, SHARE * epochs)

    def _stays(self, images: int) -> str:
        """Return why upstream's length stays where no other was asked for, or nothing."""
        facts = self._facts
        assert facts is not None, "decide() comes before every seam"
        if "warmup_epochs" in facts.given:
            return f"warmup_epochs={facts.optimization.warmup_epochs:g} was given"
        if facts.is_resumed and facts.resumed.get(self.name, {}).get("status") != "active":
            return "the run that is resumed has begun with upstream's own"  # which it may be in the middle of
        return "" if 0 < images < SMALL else f"upstream's own: {images:,} training images are not few"

    def _decision(self, length: float, upstream: float, unit: str, why: str = "") -> Decision:
        """Return the decision for a length and upstream's, both in the same unit."""
        shape = self.values["shape"]
        changes = []
        if length != upstream:
            changes.append(Change(f"warm-up {unit}", round(upstream, 3), round(length, 3)))
        if shape != "linear" and length > 0:
            changes.append(Change("warm-up shape", "linear", shape))
        self._active = bool(changes)
        if not changes:
            return Decision("inert", why or f"upstream's warm-up of {upstream:g} {unit} is as long already")
        if length == upstream:
            return Decision("active", "learning rate, bias rate and momentum take this shape", tuple(changes))
        if not self._asked:
            return Decision("active", WHY_LONGER, tuple(changes))
        given = "share" if self.values["share"] is not None else "epochs"
        return Decision("active", f"{given}={self.values[given]:g} was asked for", tuple(changes))

    def handlers(self) -> Mapping[type[Seam], Callable[[Any], Decision | None]]:
        """Set the length, each iteration's values, and look at them again right before each step."""
        return {WarmUp: self._warm_up, WarmUpStep: self._set, OptimizerStep: self._look}

    def _warm_up(self, seam: WarmUp) -> Decision:
        upstream, why = seam.iterations, ""
        self.notes[:] = seam.quirks
        length = max(1, round(self._length(seam.epochs) * seam.per_epoch))
        if self._asked:
            seam.iterations, seam.settled = length, self.name
        else:
            why = self._stays(seam.images or SMALL)
            if upstream <= 0:
                why = "upstream has been told not to warm up"
            if not why:
                seam.iterations = max(length, upstream)
        self._set_length = seam.iterations != upstream
        return self._decision(seam.iterations, max(upstream, 0), "iterations", why)

    def _set(self, seam: WarmUpStep) -> None:
        if seam.strange:
            self.trouble = f"{seam.strange}: the warm-up is upstream's own"
            return
        if not self._active:
            return
        share = seam.iteration / seam.length if seam.length else 1.0
        done = progress(self.values["shape"], share)
        momentum = seam.momentum.at(done)
        self._expected = []
        for group, rate in zip(seam.optimizer.param_groups, seam.rates):
            _put(group, "lr", rate.at(done))
            if "momentum" in group:
                _put(group, "momentum", momentum)
            self._expected.append((rate.at(done), momentum if "momentum" in group else None))
        if seam.accumulate is not None:
            seam.accumulate = max(1, round(1 + (seam.warm_accumulate - 1) * min(share, 1.0)))

    def _look(self, seam: OptimizerStep) -> None:
        """Compare the live groups with the formula: between the two, something may have set them again."""
        expected, self._expected = self._expected, []
        for (rate, momentum), group in zip(expected, seam.optimizer.param_groups):
            live = group["lr"], group["momentum"] if momentum is not None else None
            if not _close(live[0], rate) or (momentum is not None and not _close(live[1], momentum)):
                self.trouble = f"a step was made at (lr, momentum) {live}, where the warm-up has {(rate, momentum)}"
                return
        self._right += bool(expected)

    def verify(self, live: Live) -> bool | None:
        """Every step of the warm-up was made at the formula's learning rates and momentum; None before the first."""
        if self.trouble:
            return False
        return True if self._right else None

    def undo(self) -> bool:
        """Leave the rates to upstream, which sets all of them anew at each iteration; the length it has taken over."""
        return not self._set_length


def _put(group: dict[str, Any], name: str, value: float) -> None:
    """Set a value, unless upstream has: then not a bit of it may differ."""
    if not _close(group[name], value):
        group[name] = value


def _close(live: Any, value: float) -> bool:
    return math.isclose(live, value, rel_tol=1e-9, abs_tol=1e-15)
