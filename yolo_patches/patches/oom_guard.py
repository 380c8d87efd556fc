"""oom-guard: a training that runs out of memory makes the same step in parts."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from yolo_patches.facts import Facts
from yolo_patches.memory_seams import MicroStep, PrecisionCheck, Prediction, Preparation
from yolo_patches.patch import Patch, Phase
from yolo_patches.plan import Change, Decision
from yolo_patches.seams import Act, Live, Loading, Save, Seam, Step, Validation
from yolo_patches.selection import Option

if TYPE_CHECKING:
    from torch import Tensor

    from yolo_patches.nn.micro_batches import Backward, Gradients, Work

#: Largest relative error of the probe of a loss that is computed in parts; as in loss-norm.
TOLERANCE = 1e-4
#: Growth of a loss that is multiplied by the number of images when there are twice as many; a mean's is 1.
SUMMED = 1.5
#: How often what only needs memory to be released is repeated.
REPEATS = 2


class OomGuard(Patch):
    """Go on when memory runs out, with the batch that was asked for.

    Upstream halves the batch, in the first epoch and on one device alone, and only where the forward or the backward
    pass has failed: a smaller batch is another training. Here the micro-batch that does not fit is computed in parts,
    whose gradients add up to its own, since each part divides by what the whole would divide by. BatchNorm is the
    exception: every part is normalised by its own images, and only the running statistics are the whole's.

    What fails elsewhere is repeated once memory has been released: the optimizer's step and its average of the weights
    from the state before them, a validation with predictions of fewer images at a time, a checkpoint.
    """

    name: ClassVar[str] = "oom-guard"
    summary: ClassVar[str] = "out of memory: compute the step in parts, with the same gradient, and go on"
    source: ClassVar[str] = "https://github.com/ultralytics/ultralytics/issues/7030"
    default: ClassVar[bool] = False
    options: ClassVar[Mapping[str, Option]] = {
        "micro": Option(int, "images of a part, at most, from the first step on", default=None, minimum=1),
    }
    needs: ClassVar[tuple[type[Seam], ...]] = (MicroStep,)
    phase: ClassVar[Phase] = Phase.GUARD

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self._largest: int | None = self.values["micro"]  # images of a part
        self._largest_predicted: int | None = None
        self._splits = True
        self._shares = self._summed = False
        self._steps = 0
        self._backward: Backward | None = None
        self._normalising: tuple[Any, list[Any]] | None = None
        self._tell_of_images: Callable[[str], None] = _untold

    def decide(self, facts: Facts) -> Decision:
        """Act on every rank: each computes its own share in parts, and tells the others what it owes them, once."""
        self._splits = not facts.model.rewritten
        if facts.model.rewritten:
            self.notes.append(f"{facts.model.rewritten} has the model: its step is not computed in parts")
        if facts.world_size > 1:
            self.notes.append(
                "a rank that runs out of memory computes its own share in parts; the other ranks wait for it meanwhile"
            )
        if self._largest is None:
            return Decision("active", "out of memory no longer ends the run or changes its batch")
        change = Change("images computed at once", facts.batch.size, f"at most {self._largest}")
        return Decision("active", f"the step is computed in parts of {self._largest} images at most", (change,))

    def around(self) -> Mapping[type[Act], Callable[[Any, Callable[[], Any]], Any]]:
        """Stand around everything that needs memory."""
        return {
            Preparation: self._again,
            PrecisionCheck: self._check,
            MicroStep: self._micro_step,
            Step: self._step,
            Validation: self._validate,
            Prediction: self._predict,
            Save: self._again,
            Loading: self._load,
        }

    def prove(self, live: Live) -> str:
        """Compare the loss of three images with that of its parts."""
        if not self._splits:
            return ""
        why = _synchronised(live.model)
        if why:
            self._splits = False
            self.notes.append(f"{why}: a step that does not fit ends the run")
            return ""
        proof = live.loss()
        exact = proof.error is not None and proof.error <= TOLERANCE
        self._shares = exact
        self._summed = proof.growth is not None and proof.growth > SUMMED
        if not exact and (proof.apart is None or proof.apart > TOLERANCE):
            self._splits = False
            why = proof.why or f"off by {proof.error or 0:.1e}"
            self.notes.append(
                f"the step cannot be computed in parts: the loss of parts could not be shown to be the whole's ({why})"
            )
        elif normalisation := _normalisation(live.model):
            self.notes.append(f"in parts, the gradient is the whole batch's, but for BatchNorm: {normalisation}")
        return ""

    def verify(self, live: Live) -> bool | None:
        """Ask whether steps have come through the guard: nobody is guarded where the model is called another way."""
        if live.began is False or not self._splits:
            return None
        self.trouble = "the model is not called where steps are guarded: upstream deals with their errors"
        return self._steps > 0

    def _micro_step(self, act: MicroStep, proceed: Callable[[], Any]) -> Any:
        from yolo_patches.nn.micro_batches import deferred, whole
        from yolo_patches.nn.out_of_memory import is_out_of_memory

        self._steps += 1
        if not self._splits:
            return proceed()
        work = self._work(act)
        if self._largest is not None and act.images > self._largest:
            return self._in_parts(act, work, None)
        try:
            with whole(work, act.share is not None):
                loss, items = proceed()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            failure = error
        else:
            return deferred(loss, self._expected(_Whole(self, act, work, loss).backward), act.parameters), items
        return self._in_parts(act, work, failure)

    def _work(self, act: MicroStep) -> Work:
        from yolo_patches.nn.micro_batches import Known, Work, mixed_precision
        from yolo_patches.nn.pooled_statistics import Counts, normalising

        if self._normalising is None or self._normalising[0] is not act.model:
            self._normalising = act.model, normalising(act.model)
        return Work(
            act.images,
            act.part,
            act.compute,
            act.model,
            act.parameters,
            act.sharing,
            self._shares or act.share is not None,
            self._summed,
            mixed_precision(next(iter(act.parameters)).device.type),
            Known(act.share or _alone),
            counts=Counts(self._normalising[1]),
        )

    def _in_parts(self, act: MicroStep, work: Work, failure: Exception | None) -> Any:
        """Return a loss whose gradients are there already: upstream logs its terms before it backpropagates."""
        from yolo_patches.nn import micro_batches

        scale = act.scale()
        loss, items, gradients = self._computed(act, work, failure, lambda loss: _filled(loss, scale))

        def backward(gradient: Tensor) -> Gradients:
            factor = float(gradient.flatten()[0]) / scale
            if bool((gradient != gradient.flatten()[0]).any()):  # somebody weighs the terms
                return self._computed(act, work, None, lambda _: gradient)[2]
            if factor != 1:
                _scale([gradient for gradient in gradients if gradient is not None], factor)
            return gradients

        return micro_batches.deferred(loss, self._expected(backward), act.parameters), items

    def _expected(self, call: Callable[[Tensor], Gradients]) -> Backward:
        """Return the backward pass that upstream makes next."""
        from yolo_patches.nn.micro_batches import Backward

        self._backward = Backward(call)
        return self._backward

    def close(self) -> None:
        """Let go of a step that was not finished; say what to change where the training ends for want of host memory.

        That a worker was killed, torch says in the main thread wherever that is at the moment.
        """
        error = sys.exc_info()[1]
        if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "DataLoader worker" in str(error)):
            self._tell_of_images(
                "oom-guard: the host has no memory left for the images: train with fewer workers=, cache=disk or "
                "cache=False in place of cache=ram, or a larger shared memory (docker: --shm-size); last.pt is the "
                "last whole epoch, and resume=True goes on from there"
            )
        if self._backward is not None:
            self._backward.forget()

    def _computed(
        self, act: MicroStep, work: Work, failure: Exception | None, seed: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Any, Gradients]:
        """Compute a micro-batch in parts that fit, and remember their size.

        Args:
            act: The step.
            work: What is computed.
            failure: Of the whole micro-batch, where it has been tried.
            seed: Returns the gradient of a part's loss.

        Raises:
            Exception: The last failure: one image is too much.
        """
        from yolo_patches.nn.micro_batches import compute
        from yolo_patches.nn.out_of_memory import asked, is_out_of_memory

        largest = min(self._largest or act.images, act.images)
        told = failure
        if failure is not None:
            largest = self._halved(act, largest, failure)
        while True:
            try:
                made = compute(work, largest, seed)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                failure = told = error
            else:
                break
            largest = self._halved(act, largest, failure)
        if told is not None:
            self._largest = largest
            line = (
                f"oom-guard: a step asked for {asked(told)} that was not there ({act.images} images of {act.shape}): "
                f"it is computed in parts of at most {largest} images from here on; batch and learning rate stay"
            )
            act.tell(line)
            self.notes.append(line)
        return made

    @staticmethod
    def _halved(act: MicroStep, largest: int, failure: Exception) -> int:
        from yolo_patches.nn.out_of_memory import asked, release

        release(failure)
        if largest == 1:
            act.tell(
                f"oom-guard: a single image of {act.shape} does not fit (it asked for {asked(failure)}): train with a "
                "smaller imgsz or a smaller model, or free the device of other processes"
            )
            raise failure
        return (largest + 1) // 2

    def _step(self, act: Step, proceed: Callable[[], Any]) -> Any:
        from yolo_patches.nn.out_of_memory import is_out_of_memory, release
        from yolo_patches.nn.restorable_step import Snapshot, repeated

        def failed(error: Exception) -> bool:
            release(error)
            return is_out_of_memory(error)

        return repeated(proceed, lambda device: Snapshot(act.optimizer, act.averaged(), act.holders, device), failed)

    def _check(self, act: PrecisionCheck, proceed: Callable[[], Any]) -> Any:
        return self._again(act, self._from_here(proceed))

    @staticmethod
    def _from_here(proceed: Callable[[], Any]) -> Callable[[], Any]:
        """Return a function that begins each time with the random numbers that stand now."""
        from yolo_patches.nn.random_numbers import noted

        put_back = noted()

        def again() -> Any:
            put_back()
            return proceed()

        return again

    def _validate(self, act: Validation, proceed: Callable[[], Any]) -> Any:
        """Repeat a validation as a whole: its counts begin anew, and so do the random numbers that it draws.

        Where ranks wait for each other in it, what they have told each other by then is not told again.
        """
        from yolo_patches.nn.retelling import Retelling

        validate = self._from_here(proceed)
        if not act.together:
            return self._again(act, validate)
        with Retelling() as told:
            return self._again(act, validate, told.again)

    def _predict(self, act: Prediction, proceed: Callable[[], Any]) -> Any:
        from yolo_patches.nn.micro_batches import joined
        from yolo_patches.nn.out_of_memory import asked, is_out_of_memory, release

        largest = self._largest_predicted or act.images
        while True:
            try:
                if act.images <= largest:
                    return proceed()
                edges = _edges(act.images, largest)
                outputs = [act.compute(start, stop) for start, stop in edges]
                return joined(outputs, [stop - start for start, stop in edges])
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                failure = error
            release(failure)
            outputs = []
            largest = min(largest, act.images)
            if largest == 1:
                raise failure
            largest = (largest + 1) // 2
            self._largest_predicted = largest
            act.tell(
                f"oom-guard: a validation asked for {asked(failure)} that was not there: it predicts at most {largest} "
                "images at a time from here on"
            )

    def _again(self, act: Act, proceed: Callable[[], Any], possible: Callable[[], bool] = lambda: True) -> Any:
        """Repeat what only needs the caches to be released, as long as that is possible."""
        from yolo_patches.nn.out_of_memory import lacked_memory, release

        for _ in range(REPEATS):
            try:
                return proceed()
            except Exception as error:
                if not (lacked_memory(error) and possible()):
                    raise
                failure = error
            release(failure)
        return proceed()

    def _load(self, act: Loading, proceed: Callable[[], Any]) -> Iterator[Any]:
        self._tell_of_images = act.tell
        batches: Iterator[Any] = proceed()
        return batches


class _Whole:
    """The backward pass of a micro-batch that was computed at once; in parts, where it does not fit."""

    def __init__(self, guard: OomGuard, act: MicroStep, work: Work, loss: Tensor) -> None:
        self._guard, self._act, self._work = guard, act, work
        self._loss: Tensor | None = loss

    def backward(self, gradient: Tensor) -> Gradients:
        """Return the gradients of the parameters."""
        import torch

        from yolo_patches.nn.out_of_memory import is_out_of_memory

        loss, self._loss = self._loss, None
        if loss is None:
            raise RuntimeError("the graph of this loss has been backpropagated, and its memory is freed")
        try:
            return list(torch.autograd.grad([loss], self._act.parameters, [gradient], allow_unused=True))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            failure = error
        del loss
        try:
            return self._guard._computed(self._act, self._work, failure, lambda _: gradient)[2]
        except Exception as error:
            if error is not failure and not is_out_of_memory(error):
                self._act.tell(f"oom-guard: the step could not be computed in parts: {type(error).__name__}: {error}")
                raise failure from error
            raise


def _normalisation(model: Any) -> str:
    """Return what parts are normalised by, where anything is normalised by its batch."""
    from yolo_patches.nn.pooled_statistics import normalising
    from yolo_patches.nn.sync_batchnorm import synchronises

    layers = normalising(model)
    if any(map(synchronises, layers)):
        return "the first part of a rank speaks for all of its images, and the others have the moments that come of it"
    return "each part has its own moments" if layers else ""


def _synchronised(model: Any) -> str:
    """Return why a rank cannot begin a step anew alone; nothing where it can."""
    from yolo_patches.nn.sync_batchnorm import lasting

    return next(filter(None, map(lasting, model.modules())), "")


def _alone(seam: Any) -> Any:
    return seam


def _untold(line: str) -> None:
    pass


def _filled(loss: Tensor, value: float) -> Tensor:
    import torch

    return torch.full_like(loss, value)


def _scale(gradients: list[Tensor], factor: float) -> None:
    import torch

    torch._foreach_mul_(gradients, factor)


def _edges(images: int, largest: int) -> list[tuple[int, int]]:
    """Return parts of at most that many images, not all of one size: sizes tell which dimension is that of images."""
    starts = [*range(0, images, largest), images]
    if len({stop - start for start, stop in zip(starts, starts[1:])}) == 1 and largest > 1:
        starts.insert(-1, images - 1)
    return list(zip(starts, starts[1:]))
