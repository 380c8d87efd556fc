"""accumulate: an optimizer step of as many images as the user says, whatever batch fits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar

from yolo_patches.errors import PatchesError
from yolo_patches.facts import Facts
from yolo_patches.patch import Patch
from yolo_patches.plan import Change, Decision
from yolo_patches.seams import Act, Live, Loading, OptimizerStep, Seam, WarmUp
from yolo_patches.selection import Option
from yolo_patches.step_seams import Accumulation


class Accumulate(Patch):
    """Add up the gradients of k micro-steps, k = effective / batch, for one step of the optimizer.

    Upstream does so up to nbs (64 images): k = max(round(nbs / batch), 1), where the rounding changes the batch that
    the optimizer sees without a word (batch=24: 72). Here it is what was asked for or an error. Everything else is
    upstream's for that effective batch: k grows from 1 over the warm-up, weight decay is multiplied by effective / nbs,
    `optimizer=auto` counts the steps that there will be. linear-lr scales by the effective batch as for any other.

    The sum of k micro-batches' gradients is not the gradient of one batch: each loss is divided by its own targets, and
    BatchNorm sees `batch` images. `oom-guard:micro=` computes a large batch in parts with the gradient of the whole.
    """

    name: ClassVar[str] = "accumulate"
    summary: ClassVar[str] = "images of an optimizer step, whatever batch fits; off without effective="
    source: ClassVar[str] = "https://github.com/ultralytics/ultralytics/issues/7642"
    default: ClassVar[bool] = False
    options: ClassVar[Mapping[str, Option]] = {
        "effective": Option(int, "images of an optimizer step, over all ranks; a multiple of batch", minimum=1),
    }
    needs: ClassVar[tuple[type[Seam], ...]] = (Accumulation, WarmUp, OptimizerStep, Loading)

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self._facts: Facts | None = None
        self._effective: int = self.values["effective"] or 0
        self._set = False
        self._steps = _Steps()

    def foresee(self, facts: Facts) -> Facts:
        """Return the facts with the accumulation that was asked for."""
        if not self._effective or facts.batch.size < 1:
            return facts
        return replace(facts, batch=replace(facts.batch, accumulate=self._times))

    def _times(self, batch: int) -> int:
        """Return the micro-steps that come closest to the effective batch; of two, the fewer."""
        lower = max(self._effective // batch, 1)
        return lower if self._effective - lower * batch <= (lower + 1) * batch - self._effective else lower + 1

    def decide(self, facts: Facts) -> Decision:
        """Say how many micro-steps make a step.

        Raises:
            PatchesError: The effective batch is no multiple of the global batch, or that one none of the ranks.
        """
        self._facts = facts
        if not self._effective:
            return Decision("inert", "no effective batch was asked for: accumulate:effective=64")
        if facts.batch.size < 1:
            return Decision("active", f"the multiple nearest to {self._effective} of the batch that will be measured")
        batch, ranks = int(facts.batch.size), facts.world_size
        if batch % ranks and batch > ranks:
            raise PatchesError(
                f"accumulate: batch={batch} cannot be shared by {ranks} ranks, each would have {batch // ranks} images "
                f"of it; give batch={batch // ranks * ranks} or batch={(batch // ranks + 1) * ranks}"
            )
        if self._effective % batch and not _left_open(facts.given.values.get("batch")):
            raise PatchesError(
                f"accumulate: effective={self._effective} is no multiple of batch={batch}, the images of all ranks; "
                f"give {_neighbours(self._effective, batch)}"
            )
        return self._decision(batch, self._times(batch))

    def _decision(self, batch: int, times: int) -> Decision:
        assert self._facts is not None, "decide() comes before every seam"
        nbs, decay = self._facts.batch.nbs, self._facts.optimization.weight_decay
        upstreams = max(round(nbs / batch), 1)
        effective = times * batch
        nearest = "" if effective == self._effective else f", the nearest to {self._effective}"
        if times == upstreams:
            return Decision("active", f"effective batch {effective} = {times} batches of {batch}, as upstream{nearest}")
        return Decision(
            "active",
            f"effective batch {effective} = {times} batches of {batch}{nearest}",
            (
                Change("batches of an optimizer step", upstreams, times),
                Change("weight decay", _short(decay * upstreams * batch / nbs), _short(decay * effective / nbs)),
            ),
        )

    def handlers(self) -> Mapping[type[Seam], Callable[[Any], Decision | None]]:
        """Set the accumulation, and follow the steps that come of it."""
        return {Accumulation: self._accumulate, WarmUp: self._warm_up, OptimizerStep: self._step}

    def around(self) -> Mapping[type[Act], Callable[[Any, Callable[[], Any]], Any]]:
        """Count the micro-batches, as they are handed out."""
        return {Loading: self._load}

    def _accumulate(self, seam: Accumulation) -> Decision:
        times = self._times(seam.batch)
        self._set = times != seam.accumulate
        seam.accumulate = times
        self._steps.times = min(times, seam.micro_steps or times)
        self.notes[:] = self._told(seam, times)
        return self._decision(seam.batch, times)

    def _told(self, seam: Accumulation, times: int) -> list[str]:
        said = []
        if times > 1:
            said.append(
                f"the sum of {times} batches' gradients is not the gradient of one batch of {times * seam.batch}: each "
                f"is divided by its own targets and has its own BatchNorm statistics; batch={times * seam.batch} with "
                f"oom-guard:micro={seam.batch}, where that has a place, has the whole's gradient, but for BatchNorm"
            )
            carried = seam.carried()
            if carried is not None:
                said.append(
                    "what the end of an epoch cuts off goes on in the next epoch"
                    if carried
                    else "what the end of an epoch cuts off is dropped by upstream, and counts all the same: the next "
                    "step has the new epoch's batches alone"
                )
            said.append("what the end of the run cuts off is dropped, as upstream has it")
        if times > self._steps.times:
            said.append(f"the whole run has {self._steps.times} batches: they are one step")
        if times > 1 and self._facts is not None and self._facts.is_resumed:
            said.append("the first step after resuming has the batches since then alone, as upstream has it")
        return said

    def _warm_up(self, seam: WarmUp) -> None:
        # A warm-up that is shorter than upstream's least has two lengths, and only upstream knows which one counts.
        shortened = 0 < seam.iterations < seam.least
        self._steps.warm_up = 0 if shortened else max(seam.iterations, 0)
        self._steps.unknown = seam.least if shortened else -1
        self._steps.per_epoch = seam.per_epoch

    def _step(self, seam: OptimizerStep) -> None:
        self._steps.stepped = True

    def _load(self, act: Loading, proceed: Callable[[], Any]) -> Iterator[Any]:
        return self._steps.follow(act.epoch, iter(proceed()))

    def verify(self, live: Live) -> bool | None:
        """Whether steps were made after exactly the micro-steps of the rule, in the warm-up and after it."""
        if self._steps.wrong:
            self.trouble = self._steps.wrong
            return False
        return True if self._steps.right else None

    def undo(self) -> bool:
        """Leave what upstream has built: rate, decay and accumulation belong together."""
        return not self._set


class _Steps:
    """Follows micro-steps and steps by upstream's rule: a step once as many have passed since the last one.

    Attributes:
        times: Micro-steps of a step once the run is warm.
        warm_up: Iterations over which they grow from 1, evenly and rounded to the nearest.
        unknown: The last iteration of which it is not known how many there are; -1 where all are.
        per_epoch: Micro-steps of an epoch.
        stepped: Whether the optimizer has made a step since the last micro-step began.
        right: Steps that were made when they should.
        wrong: The first one that was not, in words.
    """

    def __init__(self) -> None:
        self.times = 1
        self.warm_up = 0
        self.unknown = -1
        self.per_epoch = 0
        self.stepped = False
        self.right = 0
        self.wrong = ""
        self._last: int | None = None  # not known before the first step that is seen
        self._epoch = -1

    def follow(self, epoch: int, batches: Iterator[Any]) -> Iterator[Any]:
        """Follow one pass over the training loader."""
        if epoch != self._epoch + 1:  # an epoch is made again, or the run is resumed
            self._last = None
        self._epoch = epoch
        for number, batch in enumerate(batches):
            self.stepped = False
            yield batch
            self._passed(epoch * self.per_epoch + number)

    def _passed(self, iteration: int) -> None:
        if self._last is not None and iteration > self.unknown and self.per_epoch:
            since, wanted = iteration - self._last, self._wanted(iteration)
            if self.stepped == (since >= wanted):
                self.right += self.stepped
            elif not self.wrong:
                made = "a step was made" if self.stepped else "no step was made"
                self.wrong = f"{made} after {since} batches, in iteration {iteration}, where {wanted} make one"
        if self.stepped:
            self._last = iteration

    def _wanted(self, iteration: int) -> int:
        if iteration >= self.warm_up:
            return self.times
        return max(1, round(1 + (self.times - 1) * iteration / self.warm_up))


def _left_open(batch: Any) -> bool:
    """Return whether the user has left it to somebody else to find the batch: then the nearest multiple will do."""
    return isinstance(batch, (int, float)) and batch < 1


def _neighbours(effective: int, batch: int) -> str:
    lower, upper = effective // batch * batch, (effective // batch + 1) * batch
    return f"effective={lower} or effective={upper}" if lower else f"effective={upper}, or a smaller batch"


def _short(value: float) -> float:
    return float(f"{value:.6g}")
