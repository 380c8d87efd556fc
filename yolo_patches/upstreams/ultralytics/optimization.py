"""Where Ultralytics' trainer chooses, builds, restores and steps its optimizer, and how long it warms up."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from yolo_patches.lifecycle import Run
from yolo_patches.seams import OptimizerBuilt, OptimizerChoice, OptimizerRestored, OptimizerStep, WarmUp
from yolo_patches.wrapping import bind

Call = Callable[..., Any]
Arguments = tuple[Any, ...]
Keywords = dict[str, Any]


class Optimization:
    """The wrappers around one trainer's optimizer."""

    def __init__(self, trainer: Any, run: Run) -> None:
        self.trainer = trainer
        self.run = run
        self._warmup_epochs: float | None = None
        for method in ("build_optimizer", "optimizer_step", "resume_training"):
            bind(trainer, method, getattr(self, f"_{method}"))
        for method in ("_build_train_pipeline", "_get_warmup_iterations"):  # since 8.4.20 and 8.4.120
            if hasattr(trainer, method):
                bind(trainer, method, getattr(self, method))

    def _build_optimizer(self, wrapped: Call, _: object, args: Arguments, kwargs: Keywords) -> Any:
        call = inspect.signature(wrapped).bind(*args, **kwargs)
        call.apply_defaults()
        batch = self.trainer.batch_size
        if str(call.arguments["name"]).lower() == "auto":
            images = len(self.trainer.train_loader.dataset)
            choice = OptimizerChoice(batch, images, self.trainer.epochs, call.arguments["iterations"])
            call.arguments["iterations"] = self.run.fire(choice).iterations
        return self.run.fire(OptimizerBuilt(wrapped(*call.args, **call.kwargs), batch)).optimizer

    def _build_train_pipeline(self, wrapped: Call, _: object, args: Arguments, kwargs: Keywords) -> Any:
        """Follow an out-of-memory retry that keeps the optimizer and sets its weight decay for the halved batch."""
        kept = getattr(self.trainer, "optimizer", None)
        result = wrapped(*args, **kwargs)
        if kept is not None and self.trainer.optimizer is kept:
            self.run.fire(OptimizerBuilt(kept, self.trainer.batch_size, fresh=False))
            self.trainer.scheduler.base_lrs = [group["initial_lr"] for group in kept.param_groups]
        return result

    def _optimizer_step(self, wrapped: Call, _: object, args: Arguments, kwargs: Keywords) -> Any:
        # Before upstream unscales: a factor commutes with the AMP scale, and an overflow stays one.
        self.run.fire(OptimizerStep(self.trainer.optimizer))
        return wrapped(*args, **kwargs)

    def _resume_training(self, wrapped: Call, _: object, args: Arguments, kwargs: Keywords) -> Any:
        result = wrapped(*args, **kwargs)
        if self.trainer.resume:
            self.run.fire(OptimizerRestored(self.trainer.optimizer))
        return result

    def _get_warmup_iterations(self, wrapped: Call, _: object, args: Arguments, kwargs: Keywords) -> int:
        return self._warm_up(wrapped(*args, **kwargs))

    def event(self, name: str) -> None:
        """Follow upstream's callbacks: up to 8.4.100 it computes the warm-up between these two, from its arguments."""
        if hasattr(self.trainer, "_get_warmup_iterations"):
            return
        arguments = self.trainer.args
        if name == "on_pretrain_routine_end":
            batches = len(self.trainer.train_loader)
            upstream = round(arguments.warmup_epochs * batches)
            longer = self._warm_up(upstream)
            if longer != upstream:
                self._warmup_epochs, arguments.warmup_epochs = arguments.warmup_epochs, longer / batches
        elif name == "on_train_start" and self._warmup_epochs is not None:
            arguments.warmup_epochs, self._warmup_epochs = self._warmup_epochs, None  # it is saved with checkpoints

    def _warm_up(self, iterations: int) -> int:
        longest = (self.trainer.epochs - 1) * len(self.trainer.train_loader)
        return self.run.fire(WarmUp(iterations, longest)).iterations
