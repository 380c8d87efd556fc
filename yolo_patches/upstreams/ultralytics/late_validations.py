"""Validations whose figures come late: upstream's bookkeeping of an epoch, put off until they are there."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from yolo_patches.lifecycle import Lifecycle
from yolo_patches.upstreams.ultralytics import validation_task
from yolo_patches.validation_seams import Deferral
from yolo_patches.wrapping import bind

Call = Callable[..., Any]
#: Random numbers that an image may draw in validation, at most; upstream's `Format` draws one.
DRAWS = 4


@dataclass
class _Pending:
    """An epoch whose figures are not there yet.

    Attributes:
        epoch: Its number, from 0.
        collect: Waits for the figures; None where there are none.
        task: What was sent to be validated.
        row: What upstream would have written to results.csv; None where it has not come to that.
        state: What callbacks read of the trainer.
    """

    epoch: int
    collect: Callable[[], Any]
    task: bytes
    row: Mapping[str, Any] | None = None
    state: Mapping[str, Any] | None = None


class LateValidations:
    """Puts off what upstream does with an epoch's figures, and does it when they are there.

    Args:
        trainer: The trainer.
        lifecycle: Its training's.
        judge: Makes of (metrics, fitness) and the best fitness before what upstream is to have.
        skip: Returns what upstream is to have for now.
    """

    def __init__(self, trainer: Any, lifecycle: Lifecycle, judge: Call, skip: Call) -> None:
        self._trainer = trainer
        self._lifecycle = lifecycle
        self._judge = judge
        self._skip = skip
        self.elsewhere = 0  # validations that the trainer's own validator has not made
        self._pending: _Pending | None = None
        self._followed = False
        self._stop = False
        self._trouble = ""
        self._before: bytes | None = None  # last.pt of the epoch before the pending one

    def deferral(self) -> Deferral:
        """Return what a patch needs to have a validation made elsewhere."""
        trainer = self._trainer
        images = len(getattr(getattr(trainer, "test_loader", None), "dataset", ()))
        return Deferral(
            module=validation_task.__name__,
            device=str(trainer.device),
            draws=DRAWS * images,
            hindrance=self._hindrance,
            setup=lambda device: validation_task.setup(trainer, device),
            task=lambda: validation_task.task(trainer),
            postpone=self._postpone,
            tell=self._lifecycle.tell,
        )

    def _hindrance(self) -> str:
        """Return why validations are upstream's own: also where it may have to recover, which it does at once."""
        model = getattr(getattr(self._trainer, "ema", None), "ema", None)
        why = self._trouble or validation_task.hindrance(self._trainer)
        return why or ("" if model is None or validation_task.all_finite(model) else "weights are not finite")

    def before_save(self) -> None:
        """Keep last.pt of an epoch whose figures are known: those of the one that is written next are not."""
        last = Path(getattr(self._trainer, "last", None) or "")
        recovers = hasattr(self._trainer, "_handle_nan_recovery")
        self._before = last.read_bytes() if recovers and self._pending is not None and last.is_file() else None

    def _postpone(self, task: bytes, collect: Callable[[], Any]) -> Any:
        if not self._followed:
            bind(self._trainer, "save_metrics", self._save_metrics)
            self._followed = True
        self.elsewhere += 1
        self._pending = _Pending(int(self._trainer.epoch), collect, task)
        return self._skip()

    def _save_metrics(self, wrapped: Call, _: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        pending, trainer = self._pending, self._trainer
        if pending is None or pending.epoch != trainer.epoch or pending.row is not None:
            return wrapped(*args, **kwargs)
        pending.row = dict(args[0] if args else kwargs["metrics"])
        pending.state = {name: getattr(trainer, name) for name in ("epoch", "tloss", "lr") if hasattr(trainer, name)}
        return None

    def keeps_back(self, event: str) -> bool:
        """Return whether an event belongs to an epoch whose figures are not there yet."""
        if event != "on_fit_epoch_end":
            return False
        if self._stop:  # upstream looks at it next, and tells the other ranks
            self._trainer.stop = True
        return self._pending is not None and self._pending.row is not None

    def file(self, callbacks: Call) -> None:
        """Wait for the figures of the epoch before, and do with them what upstream would have done.

        Args:
            callbacks: Runs an event.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return
        found = self._lifecycle.attempt(pending.collect, Deferral)
        if pending.row is None:  # upstream has not counted the epoch, and makes it again
            return
        with self._as_then(pending):
            metrics = dict(found) if found is not None else self._here(pending)
            stop = self._record(pending, metrics)
            callbacks("on_fit_epoch_end")
        self._stop |= stop

    @contextmanager
    def _as_then(self, pending: _Pending) -> Iterator[None]:
        trainer, then = self._trainer, pending.state or {}
        now = {name: getattr(trainer, name) for name in then}
        vars(trainer).update(then)
        try:
            yield
        finally:
            vars(trainer).update(now)

    def _here(self, pending: _Pending) -> dict[str, float]:
        """Validate the epoch's weights in the foreground; no figures where other ranks would have to take part."""
        trainer = self._trainer
        if self._lifecycle.plan.world_size > 1 or not getattr(trainer, "ema", None):
            return {}
        made = self._lifecycle.attempt(lambda: validation_task.weights(pending.task, trainer.device), Deferral)
        if made is None:
            return {}
        live, trainer.ema.ema = trainer.ema.ema, made
        self.elsewhere -= 1
        try:
            return dict(trainer.validator(trainer))
        finally:
            trainer.ema.ema = live

    def _record(self, pending: _Pending, metrics: dict[str, float]) -> bool:
        """Do what upstream does with an epoch's figures; return whether it would stop."""
        trainer, best = self._trainer, self._trainer.best_fitness
        fitness = metrics.pop("fitness", None)
        if fitness is not None and (not math.isfinite(fitness) or (best and not fitness)):
            fitness = self._recoverable(pending.epoch, fitness)
        if fitness is not None:
            if not best or best < fitness:
                trainer.best_fitness = fitness
            metrics, fitness = self._judge((metrics, fitness), best)
            trainer.metrics = metrics
        trainer.fitness = fitness
        trainer.save_metrics({name: metrics.get(name, value) for name, value in (pending.row or {}).items()})
        stop = bool(trainer.stopper(pending.epoch + 1, fitness))
        if not self._trouble:
            self._lifecycle.attempt(lambda: self._update_checkpoints(pending.epoch))
        return stop

    def _recoverable(self, epoch: int, fitness: float) -> float | None:
        """Let upstream recover from a fitness that it takes for a breakdown, one epoch late.

        It goes back to last.pt, which has those weights by now: it is the one of the epoch before again. What upstream
        makes of the next validation, in the foreground, is its own matter. A fitness that is no number is none here:
        nothing is better than it, so that early stopping would never see a better one.
        """
        self._trouble = f"the fitness of epoch {epoch + 1} is {fitness:g}, which upstream may have to recover from"
        if self._before is not None:
            before = self._before
            self._lifecycle.attempt(lambda: _write(Path(self._trainer.last), before))
        return fitness if math.isfinite(fitness) else None

    def _update_checkpoints(self, epoch: int) -> None:
        """Write the figures into the epoch's checkpoint, which is last.pt still; it is best.pt where it is the best."""
        trainer = self._trainer
        last = Path(trainer.last)
        if not last.is_file():
            return
        saved = torch.load(last, map_location="cpu", weights_only=False)
        if saved.get("epoch") != epoch:
            return
        saved["best_fitness"] = trainer.best_fitness
        saved["train_metrics"] = {**trainer.metrics, "fitness": trainer.fitness}
        if "stopper" in saved:
            saved["stopper"] = {name: getattr(trainer.stopper, name) for name in saved["stopper"]}
        if hasattr(trainer, "read_results_csv"):
            saved["train_results"] = trainer.read_results_csv()
        file = io.BytesIO()
        torch.save(saved, file)
        of_epoch = last.with_name(f"epoch{epoch}.pt")
        names = [last, *([of_epoch] if of_epoch.is_file() else [])]
        if trainer.fitness is not None and trainer.best_fitness == trainer.fitness:
            names.append(Path(trainer.best))
        for name in names:
            _write(name, file.getvalue())


def _write(file: Path, data: bytes) -> None:
    """Write a file as a whole, or not at all."""
    temporary = file.with_suffix(".part")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)
