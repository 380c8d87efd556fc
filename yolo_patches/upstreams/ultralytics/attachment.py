"""The wrappers on one trainer object, and what each of them tells the patches.

Wrappers on the object cover what subclasses and users' own trainers override, and are never pickled: checkpoints hold
the model and the arguments, DDP workers get the trainer's class. In each of them upstream's own method is called in any
case: what we do before and after it may fail, and then the patches that need it are dropped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from yolo_patches.activation import ENVIRONMENT, activation, environment
from yolo_patches.agreement import once, told
from yolo_patches.handover import VARIABLE
from yolo_patches.lifecycle import Lifecycle
from yolo_patches.memory_seams import MicroStep
from yolo_patches.nn import common_step
from yolo_patches.seams import (
    EpochLosses,
    Live,
    Loading,
    ModelBuilt,
    Save,
    Validation,
    ValLoader,
)
from yolo_patches.step_seams import Accumulation, WarmUpStep
from yolo_patches.upstreams.epoch_rows import EpochRows
from yolo_patches.upstreams.fed_loaders import fed
from yolo_patches.upstreams.followed_loader import FollowedLoader
from yolo_patches.upstreams.judging import Judging
from yolo_patches.upstreams.ultralytics import batch_parts, evaluation
from yolo_patches.upstreams.ultralytics.late_validations import LateValidations
from yolo_patches.upstreams.ultralytics.live_objects import LiveObjects
from yolo_patches.upstreams.ultralytics.memory import Memory
from yolo_patches.upstreams.ultralytics.optimization import Optimization
from yolo_patches.upstreams.ultralytics.sample_parts import SampleParts
from yolo_patches.upstreams.ultralytics.seam_sources import LOADERS, OPTIMIZER, defects
from yolo_patches.validation_seams import Evaluation, Judged
from yolo_patches.wrapping import Call as Called
from yolo_patches.wrapping import bind

Call = Callable[..., Any]
Arguments = tuple[Any, ...]
Keywords = dict[str, Any]

#: Wrapped on the trainer object, where its class has them as we know them.
METHODS = (
    "train",
    "run_callbacks",
    "get_dataloader",
    "build_dataset",
    "set_model_attributes",
    "preprocess_batch",
    "validate",
    "final_eval",
    "save_model",
)


class Attachment:
    """One trainer and the lifecycle of its training.

    Args:
        trainer: A trainer whose constructor has run.
        lifecycle: Decided.
    """

    def __init__(self, trainer: Any, lifecycle: Lifecycle) -> None:
        self.trainer = trainer
        self.lifecycle = lifecycle
        self._objects = LiveObjects(trainer, lifecycle)
        self._begun = False  # a batch has begun: the next preprocessing is the step's own
        self._epochs = 0
        self._validations: int | None = None
        self._rows = EpochRows(lifecycle)
        self._judging = Judging(lifecycle, self._rows)
        self._late = LateValidations(trainer, lifecycle, self._judged, self._no_validation)
        self._evaluates = False  # the best weights, at the end
        self._unvalidated = False  # this epoch has no validation, or may not be called best
        self._trusted: dict[str, bool] = {}  # parts of validations
        self._memory = Memory(trainer, lifecycle)
        self._samples = SampleParts(trainer, lifecycle)
        self._build_dataset = self._samples.build_dataset
        before = dict(vars(trainer))
        self.optimization = None
        try:
            for method in METHODS:
                if not defects(type(trainer), (method,)):
                    bind(trainer, method, getattr(self, f"_{method}"))
            if not defects(type(trainer), OPTIMIZER):
                self.optimization = Optimization(trainer, lifecycle, self._objects.prove)
        except BaseException:  # all of them, or none
            vars(trainer).clear()
            vars(trainer).update(before)
            raise
        activation.last_plan = lifecycle.plan

    def _train(self, wrapped: Call, _: object, args: Arguments, kwargs: Keywords) -> Any:
        plan = self.lifecycle.plan
        values = {ENVIRONMENT: plan.selection}
        if plan.world_size > 1:
            values[VARIABLE] = self.lifecycle.handover().text()
        try:
            # The workers that this may start will read the environment.
            with self._samples, self._memory, self.lifecycle.under_way(), environment(values):
                return wrapped(*args, **kwargs)
        finally:
            common_step.close()

    def _get_dataloader(self, wrapped: Call, _: object, args: Arguments, kwargs: Keywords) -> Any:
        call = self.lifecycle.attempt(lambda: self._val_batch(Called(wrapped, args, kwargs)), ValLoader)
        args, kwargs = (args, kwargs) if call is None else (call.args, call.kwargs)
        training = lambda: bool(Called(wrapped, args, kwargs)["mode"] == "train")  # noqa: E731 - asked inside of what may fail
        with fed(self.lifecycle, LOADERS, training):
            return self._samples.loader(lambda: wrapped(*args, **kwargs), training)

    def _val_batch(self, call: Called) -> Called:
        if call["mode"] == "val":
            per_rank = self.trainer.batch_size // self.lifecycle.plan.world_size
            seam = self.lifecycle.fire(ValLoader(call["batch_size"], per_rank))
            call["batch_size"] = seam.batch
        return call

    def _set_model_attributes(self, wrapped: Call, _: object, args: Arguments, kwargs: Keywords) -> Any:
        result = wrapped(*args, **kwargs)
        self.lifecycle.attempt(lambda: self.lifecycle.fire(ModelBuilt(self.trainer.model)), ModelBuilt)
        return result

    def _preprocess_batch(self, wrapped: Call, _: object, args: Arguments, kwargs: Keywords) -> Any:
        if self.optimization is not None:
            self.optimization.accumulating.end()
        args, kwargs = self._samples.finished(args, kwargs)
        if not self._begun:
            return wrapped(*args, **kwargs)
        result = self._memory.prepared(wrapped, args, kwargs)
        self.lifecycle.attempt(lambda: self._samples.trained_on(result))
        # From here to the optimizer's step, or to the next callback, upstream does the same on every rank.
        self._begun = False
        if self.optimization is not None:
            self.lifecycle.attempt(self.optimization.warm_up_step, WarmUpStep)
        common_step.open_step()
        self.lifecycle.attempt(lambda: self._memory.expect(result), MicroStep)
        return result

    def _validate(self, wrapped: Call, _: object, args: Arguments, kwargs: Keywords) -> Any:
        self._unvalidated = False
        best = getattr(self.trainer, "best_fitness", None)
        act = self.lifecycle.attempt(self._validation, Validation) if self.lifecycle.listens(Validation) else None

        def validate() -> Any:
            made = self._validations
            try:
                with self._evaluation():
                    return wrapped(*args, **kwargs)
            except Exception:
                self._validations = made  # one that was not finished is none
                raise

        result = validate() if act is None else self.lifecycle.around(act, validate)
        return self._judged(result, best)

    def _judged(self, result: Any, best: Any) -> Any:
        """Return a validation's result as patches judge it, or upstream's own.

        Args:
            result: Upstream's metrics and fitness.
            best: The best fitness before it.
        """
        if not self.lifecycle.listens(Judged):
            return result
        return self.lifecycle.attempt(lambda: self._judge(result, best), Judged) or result

    def _judge(self, result: tuple[Any, Any], best: Any) -> tuple[Any, Any]:
        """Let patches judge a validation; what upstream has just taken for the best goes by them."""
        metrics, fitness = result
        if fitness is None or not metrics or not self._writes:
            return result
        figures = {
            name.partition("/")[2]: float(value) for name, value in metrics.items() if name.startswith("metrics/")
        }
        trainer = self.trainer
        seam = self._judging.judge(self._epoch, float(fitness), figures, Path(trainer.save_dir), self._first_epoch)
        if seam is None:
            return result
        if not seam.eligible:
            self._unvalidated, trainer.best_fitness = True, best
        elif seam.fitness != float(fitness):
            trainer.best_fitness = seam.fitness if not best or best < seam.fitness else best
        return metrics, fitness if seam.fitness == float(fitness) else seam.fitness

    @contextmanager
    def _evaluation(self) -> Iterator[None]:
        """Let a validation be made of the parts that patches have made of upstream's."""
        validator = getattr(self.trainer, "validator", None)
        with ExitStack() as stack:
            stack.enter_context(self._memory.predicting())
            if validator is not None and self.lifecycle.listens(Evaluation):
                self.lifecycle.attempt(lambda: stack.enter_context(self._parts()), Evaluation)
            yield

    def _parts(self) -> Any:
        before = evaluation.parts(self.trainer, self._trusted, told=self._evaluates)
        parts = self.lifecycle.fire(replace(before))
        return evaluation.in_place(self.lifecycle, self.trainer, parts, before)

    def _validation(self) -> Validation:
        epochs = int(self.trainer.epochs)
        return Validation(
            self._epoch,
            epochs=epochs,
            last=self._epoch + 1 >= epochs or bool(getattr(self.trainer, "stop", False)),
            skip=self._no_validation,
            agreed=once(self._agreed),
            deferral=self._late.deferral() if self._writes else None,
            model=getattr(getattr(self.trainer, "ema", None), "ema", None),
            together=self.lifecycle.plan.world_size > 1 and hasattr(self.trainer.validator, "gather_stats"),
        )

    def _no_validation(self) -> tuple[Any, None]:
        """Return metrics that are no numbers: results.csv keeps its columns, and says nothing that was not seen."""
        self._unvalidated = True
        metrics = getattr(self.trainer, "metrics", None)
        if metrics and not self._validations:  # ranks but the first have none
            metrics = self.lifecycle.attempt(lambda: evaluation.figures(self.trainer)) or metrics
        return (dict.fromkeys(metrics, math.nan) if metrics else metrics), None

    def _agreed(self, word: bool) -> bool:
        # Before 8.3.225 rank 0 validates alone, and nobody else comes here.
        if self.lifecycle.plan.world_size == 1 or not hasattr(self.trainer.validator, "gather_stats"):
            return word
        return told(str(word)) == str(True)

    def _final_eval(self, wrapped: Call, _: object, args: Arguments, kwargs: Keywords) -> Any:
        self._evaluates = True
        self._late.file(self.trainer.run_callbacks)

        def evaluate() -> Any:
            with self._evaluation():
                return wrapped(*args, **kwargs)

        together = self.lifecycle.plan.world_size > 1
        return self.lifecycle.around(Validation(self._epoch, final=True, together=together), evaluate)

    def _save_model(self, wrapped: Call, _: object, args: Arguments, kwargs: Keywords) -> Any:
        self.lifecycle.attempt(self._late.before_save)
        with self._nothing_is_best():
            return self.lifecycle.around(self._saving(), lambda: wrapped(*args, **kwargs))

    def _saving(self) -> Save:
        folder = getattr(self.trainer, "wdir", None)
        return Save(self._epoch, None if folder is None else Path(folder))

    @contextmanager
    def _nothing_is_best(self) -> Iterator[None]:
        """Where no epoch has been validated yet, keep upstream from taking no fitness for the best: None is None."""
        trainer = self.trainer
        fitness = getattr(trainer, "fitness", None)
        if not self._unvalidated or getattr(trainer, "best_fitness", 0) != fitness:
            yield
            return
        trainer.fitness = math.nan
        try:
            yield
        finally:
            trainer.fitness = fitness

    @property
    def _first_epoch(self) -> int:
        return int(getattr(self.trainer, "start_epoch", 0) or 0)

    @property
    def _epoch(self) -> int:
        return int(getattr(self.trainer, "epoch", 0))

    def _run_callbacks(self, wrapped: Call, _: object, args: Arguments, kwargs: Keywords) -> Any:
        event = args[0] if args else kwargs["event"]
        if event == "on_train_epoch_end":
            self._late.file(self.trainer.run_callbacks)
        elif event == "on_fit_epoch_end":
            self.lifecycle.attempt(self._end_row)
            if self._late.keeps_back(event):
                return None
        common_step.close()  # callbacks are anybody's, and many of them are rank 0's alone
        self._memory.forget()
        self._begun = False
        if self.optimization is not None:
            self.optimization.event(event)
        if event == "on_train_start":
            self.lifecycle.attempt(self._start)
        elif event == "on_train_epoch_start" and self.lifecycle.listens(Loading):
            self.lifecycle.attempt(self._follow_loader, Loading)
        elif event == "on_train_epoch_end":
            self.lifecycle.attempt(self._share_losses, EpochLosses)
            self._epochs += 1
            if self._epochs == 1:
                self.lifecycle.attempt(self._record)
        elif event == "on_train_end":
            self.lifecycle.attempt(self._record)
        with self._more_metrics() if event == "on_fit_epoch_end" else nullcontext():
            result = wrapped(*args, **kwargs)
        if event == "on_train_batch_start":
            self.lifecycle.first_step()
            self._begun = True
            if self.optimization is not None:
                self.lifecycle.attempt(self.optimization.accumulating.begin, Accumulation)
        return result

    def _end_row(self) -> None:
        if self._writes and not self._evaluates:
            self._rows.end(self._epoch, Path(self.trainer.save_dir), self._first_epoch)

    @contextmanager
    def _more_metrics(self) -> Iterator[None]:
        """Let loggers, which take the trainer's metrics, have what patches say of this epoch."""
        trainer = self.trainer
        logged, metrics = self._rows.logged(self._epoch), getattr(trainer, "metrics", None)
        if not logged or not isinstance(metrics, dict) or self._evaluates:
            yield
            return
        more = trainer.metrics = {**metrics, **logged}
        try:
            yield
        finally:
            if trainer.metrics is more:  # else a callback has set its own
                trainer.metrics = metrics

    def _share_losses(self) -> None:
        if not self.lifecycle.listens(EpochLosses):
            return
        losses = getattr(self.trainer, "tloss", None)  # a tensor, or since 8.4.120 a dict
        if not isinstance(losses, (torch.Tensor, dict)):  # on every rank alike: the log keeps rank 0's own
            return
        terms = list(losses.values()) if isinstance(losses, dict) else [losses]
        values = torch.cat([term.detach().reshape(-1) for term in terms])
        with common_step.common_step():  # every rank has made the epoch's last step, and does this next
            shared = self.lifecycle.fire(EpochLosses(values)).values
        self.trainer.tloss = dict(zip(losses, shared)) if isinstance(losses, dict) else shared.reshape(losses.shape)

    def _start(self) -> None:
        self.lifecycle.attempt(self._count_validations)
        self.lifecycle.attempt(self._follow_stopper, Judged)
        live = self.lifecycle.attempt(self._live)
        if live is not None:
            self.lifecycle.start(live, self._batch)
        if self._writes:
            from ultralytics.utils import LOGGER

            LOGGER.info(self.lifecycle.plan.banner())
            self.lifecycle.warn()
            self.lifecycle.write(Path(self.trainer.save_dir))

    def _count_validations(self) -> None:
        """Count what the validator does by its own event, but for the evaluation of the best weights at the end.

        Its callbacks are those of the user's YOLO object, which outlives the training: nothing of ours goes there.
        """
        validator = getattr(self.trainer, "validator", None)
        if validator is not None and self.lifecycle.listens(Validation):
            self._validations = 0
            bind(validator, "run_callbacks", self._validator_event)

    def _validator_event(self, wrapped: Call, _: object, args: Arguments, kwargs: Keywords) -> Any:
        if (args[0] if args else kwargs.get("event")) == "on_val_start" and self._validations is not None:
            self._validations += not self._evaluates
        return wrapped(*args, **kwargs)

    def _follow_stopper(self) -> None:
        if self.lifecycle.listens(Judged):
            self.trainer.stopper = self._judging.following(self.trainer.stopper, 1)

    def _best(self) -> tuple[float | None, float | None]:
        best = getattr(self.trainer, "best_fitness", None)
        return None if best is None else float(best), self._judging.best_for_stopping

    def _record(self) -> None:
        """Measure the patches' effect once more, and write the plan."""
        live = self.lifecycle.attempt(self._live)
        if live is not None:
            self.lifecycle.check(live, self._batch)
        if self._writes:
            self.lifecycle.warn()
            self.lifecycle.write(Path(self.trainer.save_dir))

    @property
    def _batch(self) -> Any:
        return getattr(self.trainer, "batch_size", self.lifecycle.plan.global_batch)

    @property
    def _writes(self) -> bool:
        from ultralytics.utils import RANK

        return RANK in {-1, 0}

    def _follow_loader(self) -> None:
        if not isinstance(self.trainer.train_loader, FollowedLoader):  # an out-of-memory retry builds another one
            self.trainer.train_loader = FollowedLoader(self.trainer.train_loader, self._pass)

    def _pass(self, loader: Any) -> Any:
        act = Loading(loader, self._epoch, batch_parts.images, self.lifecycle.tell)
        return self.lifecycle.around(act, lambda: iter(loader))

    def _live(self) -> Live:
        validator = getattr(self.trainer, "validator", None)
        rest = Live(
            validates=self._writes or hasattr(validator, "gather_stats"),  # before 8.3.225 rank 0 alone
            validations=None if self._validations is None else self._validations + self._late.elsewhere,
            best=self._best(),
            began=self._epochs > 0,
            deferral=self._late.deferral() if self._writes else None,
        )
        return self._objects.shown(rest)
