"""Where Ultralytics' trainer chooses, builds, restores and steps its optimizer, and how long it warms up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from yolo_patches.lifecycle import Lifecycle
from yolo_patches.nn import common_step
from yolo_patches.nn.restorable_step import Slots
from yolo_patches.seams import (
    LossProof,
    OptimizerBuilt,
    OptimizerChoice,
    OptimizerRestored,
    OptimizerStep,
    Step,
    WarmUp,
)
from yolo_patches.step_seams import Accumulation, Ramp, WarmUpStep
from yolo_patches.upstreams import followed_clip, warming
from yolo_patches.upstreams.ultralytics.accumulation import Accumulating
from yolo_patches.wrapping import Call as Called
from yolo_patches.wrapping import bind

Call = Callable[..., Any]
Arguments = tuple[Any, ...]
Keywords = dict[str, Any]

#: Up to 8.4.100, of any warm-up.
LEAST_WARM_UP = 100


class Optimization:
    """The wrappers around one trainer's optimizer.

    Args:
        trainer: The trainer.
        lifecycle: Of its training.
        prove: Probes the live loss.
    """

    def __init__(self, trainer: Any, lifecycle: Lifecycle, prove: Callable[[], LossProof]) -> None:
        self.trainer = trainer
        self.lifecycle = lifecycle
        self.prove = prove
        self.accumulating = Accumulating(trainer, lifecycle)
        self._warmup_epochs: float | None = None
        self._warming: WarmUp | None = None
        self._warm_accumulate = 1
        self._batches = 0  # of this epoch, begun
        self._bias_lr: Any = None
        self._slots: tuple[Any, Slots] | None = None
        for method in ("build_optimizer", "optimizer_step", "resume_training"):
            bind(trainer, method, getattr(self, f"_{method}"))
        for method in ("_build_train_pipeline", "_get_warmup_iterations"):  # since 8.4.20 and 8.4.120
            if hasattr(trainer, method):
                bind(trainer, method, getattr(self, method))

    def _build_optimizer(self, wrapped: Call, _: object, args: Arguments, kwargs: Keywords) -> Any:
        self._bias_lr = getattr(self.trainer.args, "warmup_bias_lr", None)  # which `auto` may set to 0
        call = self.lifecycle.attempt(lambda: Called(wrapped, args, kwargs), Accumulation, OptimizerChoice)
        if call is not None:
            self.lifecycle.attempt(lambda: self.accumulating.building(call), Accumulation)
            self.lifecycle.attempt(lambda: self._choice(call), OptimizerChoice)
        optimizer = wrapped(*args, **kwargs) if call is None else wrapped(*call.args, **call.kwargs)
        built = self.lifecycle.attempt(lambda: self.lifecycle.fire(self._built(optimizer)).optimizer, OptimizerBuilt)
        return optimizer if built is None else built

    def _choice(self, call: Called) -> None:
        if str(call["name"]).lower() == "auto":
            seam = OptimizerChoice(
                self.trainer.batch_size,
                len(self.trainer.train_loader.dataset),
                self.trainer.epochs,
                call["iterations"],
                model=call["model"],
                loss=self.prove,
                accumulate=self.accumulating.in_force,
            )
            call["iterations"] = self.lifecycle.fire(seam).iterations

    def _built(self, optimizer: Any, fresh: bool = True) -> OptimizerBuilt:
        trainer = self.trainer
        timed = getattr(trainer.args, "time", None)  # then the number of epochs is a guess
        return OptimizerBuilt(
            optimizer,
            trainer.batch_size,
            accumulate=int(trainer.accumulate),
            micro_steps=0 if timed else len(trainer.train_loader) * trainer.epochs,
            fresh=fresh,
            loss=self.prove,
            nominal=self.accumulating.in_force,
        )

    def _build_train_pipeline(self, wrapped: Call, _: object, args: Arguments, kwargs: Keywords) -> Any:
        """Follow an out-of-memory retry that keeps the optimizer and sets its weight decay for the halved batch."""
        kept = getattr(self.trainer, "optimizer", None)
        result = wrapped(*args, **kwargs)
        if kept is not None and self.trainer.optimizer is kept:
            self.lifecycle.attempt(lambda: self.accumulating.kept(kept), Accumulation)
            self.lifecycle.attempt(lambda: self._keep(kept), OptimizerBuilt)
        return result

    def _keep(self, optimizer: Any) -> None:
        self.lifecycle.fire(self._built(optimizer, fresh=False))
        self.trainer.scheduler.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]

    def _optimizer_step(self, wrapped: Call, _: object, args: Arguments, kwargs: Keywords) -> Any:
        common_step.close()  # forward and backward pass of the last micro-step are done
        # Before upstream unscales: a factor commutes with the AMP scale, and an overflow stays one.
        self.lifecycle.attempt(lambda: self.lifecycle.fire(self._ready()), OptimizerStep)
        act = self.lifecycle.attempt(self._act, Step) if self.lifecycle.listens(Step) else None
        with followed_clip.followed(self.lifecycle):
            if act is None:
                return wrapped(*args, **kwargs)
            return self.lifecycle.around(act, lambda: wrapped(*args, **kwargs))

    def _ready(self) -> OptimizerStep:
        return OptimizerStep(self.trainer.optimizer, getattr(self.trainer, "scaler", None))

    def _act(self) -> Step:
        trainer = self.trainer
        ema = getattr(trainer, "ema", None)
        holders = tuple(holder for holder in (ema, getattr(trainer, "scaler", None)) if holder is not None)
        return Step(trainer.optimizer, int(trainer.accumulate), lambda: self._averaged(ema), holders)

    def _averaged(self, ema: Any) -> list[Any]:
        """Return the tensors of the EMA; where they are held is looked up once, for there are hundreds of modules."""
        model = getattr(ema, "ema", None)
        if model is None:
            return []
        if self._slots is None or self._slots[0] is not model:
            self._slots = model, Slots([model])
        return self._slots[1].tensors()

    def _resume_training(self, wrapped: Call, _: object, args: Arguments, kwargs: Keywords) -> Any:
        result = wrapped(*args, **kwargs)
        if getattr(self.trainer, "resume", False):
            self.lifecycle.attempt(self._restored, OptimizerRestored)
        return result

    def _restored(self) -> None:
        self.lifecycle.fire(OptimizerRestored(self.trainer.optimizer))

    def _get_warmup_iterations(self, wrapped: Call, _: object, args: Arguments, kwargs: Keywords) -> Any:
        upstream = wrapped(*args, **kwargs)
        longer = self.lifecycle.attempt(lambda: self._warm_up(upstream, least=0), WarmUp)
        return upstream if longer is None else longer

    def event(self, name: str) -> None:
        """Follow upstream's callbacks: up to 8.4.100 it computes the warm-up between these two, from its arguments."""
        self.accumulating.end()
        if name == "on_train_epoch_start":
            self._batches = 0
        elif name == "on_train_batch_start":
            self._batches += 1
        if not hasattr(self.trainer, "_get_warmup_iterations"):
            self.lifecycle.attempt(lambda: self._follow(name), WarmUp)

    def _follow(self, name: str) -> None:
        arguments = self.trainer.args
        if name == "on_pretrain_routine_end" and self.lifecycle.takes(WarmUp):
            batches = len(self.trainer.train_loader)
            asked = arguments.warmup_epochs
            upstream = max(round(asked * batches), LEAST_WARM_UP) if asked > 0 else 0
            length = self._warm_up(upstream, LEAST_WARM_UP)
            if length != upstream:
                self._warmup_epochs, arguments.warmup_epochs = asked, length / batches
        elif name == "on_train_start" and self._warmup_epochs is not None:
            arguments.warmup_epochs, self._warmup_epochs = self._warmup_epochs, None  # it is saved with checkpoints

    def _warm_up(self, iterations: int, least: int) -> int:
        trainer = self.trainer
        batches = len(trainer.train_loader)
        self._warm_accumulate = int(trainer.accumulate)
        seam = WarmUp(
            iterations,
            batches,
            trainer.epochs,
            images=len(trainer.train_loader.dataset),
            least=least,
            quirks=self._quirks(iterations, batches),
        )
        self._warming = self.lifecycle.fire(seam)
        return seam.iterations

    def _quirks(self, iterations: int, batches: int) -> tuple[str, ...]:
        """Say what upstream makes of its arguments for the warm-up, where it is something else than they say."""
        arguments, said = self.trainer.args, []
        asked = round(arguments.warmup_epochs * batches)
        if 0 < asked < iterations:
            said.append(f"upstream's least warm-up: {asked} -> {iterations} iterations")
        elif asked > iterations:
            said.append(f"upstream ends its warm-up before the last epoch: {asked} -> {iterations} iterations")
        if self._bias_lr != arguments.warmup_bias_lr:
            said.append(
                f"optimizer=auto: biases begin at lr {self._bias_lr:g} -> {arguments.warmup_bias_lr:g} (warmup_bias_lr)"
            )
        elif arguments.warmup_bias_lr:
            said.append(f"biases begin at lr {arguments.warmup_bias_lr:g} (warmup_bias_lr), everything else at 0")
        return tuple(said)

    def warm_up_step(self) -> None:
        """Tell the values that upstream has just set for this iteration: the forward pass comes next."""
        warm, iteration = self._warming, self._batches - 1
        if warm is None or not self.lifecycle.listens(WarmUpStep):
            return
        trainer, arguments = self.trainer, self.trainer.args
        iteration += len(trainer.train_loader) * trainer.epoch
        made = max(warm.iterations, warm.least) if warm.iterations > 0 else 0
        if iteration > made or not made:
            return
        decayed = trainer.lf(trainer.epoch)
        groups = trainer.optimizer.param_groups
        rates, strange = warming.ramps(groups, arguments.warmup_bias_lr, decayed, iteration / made)
        seam = self.lifecycle.fire(
            WarmUpStep(
                trainer.optimizer,
                iteration,
                warm.iterations,
                rates,
                Ramp(arguments.warmup_momentum, arguments.momentum),
                accumulate=trainer.accumulate if made > warm.iterations else None,
                warm_accumulate=self._warm_accumulate,
                strange=strange,
            )
        )
        if seam.accumulate is not None:
            trainer.accumulate = seam.accumulate
