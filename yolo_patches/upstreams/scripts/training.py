"""One call of a script's `train()`: the objects of it as they come into being, and the seams that they are fired at.

Whatever of ours fails here drops the patches that need it; upstream's own functions are called in any case, once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import wrapt

from yolo_patches.errors import PatchesError
from yolo_patches.lifecycle import Lifecycle
from yolo_patches.memory_seams import MicroStep
from yolo_patches.nn import common_step
from yolo_patches.seams import (
    Live,
    Loading,
    LossProof,
    ModelBuilt,
    Normaliser,
    OptimizerBuilt,
    OptimizerRestored,
    OptimizerStep,
    Save,
    Seam,
    TrainSet,
    Validation,
    ValLoader,
    WarmUp,
)
from yolo_patches.step_seams import Ramp, WarmUpStep
from yolo_patches.upstreams import warming
from yolo_patches.upstreams.epoch_rows import EpochRows
from yolo_patches.upstreams.followed_loader import FollowedLoader
from yolo_patches.upstreams.judging import Judging
from yolo_patches.upstreams.scripts import evaluation, loggers, script_facts, source
from yolo_patches.upstreams.scripts.accumulation import Accumulating
from yolo_patches.upstreams.scripts.memory import Memory
from yolo_patches.upstreams.scripts.script_facts import rank
from yolo_patches.upstreams.scripts.session import Session
from yolo_patches.upstreams.scripts.steps import Steps
from yolo_patches.upstreams.scripts.validations import Validations
from yolo_patches.validation_seams import Judged
from yolo_patches.wrapping import Call, instead

#: Written into every script: its least number of warm-up iterations.
LEAST_WARM_UP = 100


class Training:
    """The training that is under way.

    Args:
        session: The script's.
        lifecycle: Decided.
        opt: The script's parsed arguments.
        by_events: Whether the script's callbacks say where a step begins.
    """

    def __init__(self, session: Session, lifecycle: Lifecycle, opt: Any, by_events: bool) -> None:
        self.session = session
        self.lifecycle = lifecycle
        self.opt = opt
        self.batch = opt.batch_size
        self.epoch = -1
        self.model: Any = None
        self.optimizer: Any = None
        self.criterion: Any = None
        self.train_loader: Any = None
        self.val_loaders: list[Any] = []
        self.val_batch: int | None = None
        self.memory = Memory(lifecycle)
        self._rows = EpochRows(lifecycle)
        self._judging = Judging(lifecycle, self._rows)
        self._validations = Validations(session, opt, self._judging)
        code = source.code(session.root / session.script)
        self._accumulating = Accumulating(lifecycle, lambda: int(self.batch), code)
        self._start = 0
        self._callbacks: Any = None
        self.steps = Steps(self._first_step, self._epoch_begins, self._epoch_over, self._epoch_ended, by_events)
        self._started = self._epoch_checked = self._probing = False
        self._restore: Callable[[], None] | None = None
        self._warming: WarmUp | None = None
        self._hyp: Mapping[str, Any] = {}
        self._batches = 0  # of this epoch, begun
        self.replaced = ExitStack()  # functions of upstream's, until the training ends

    @contextmanager
    def under_way(self, callbacks: Any) -> Iterator[None]:
        """Be the session's training, and listen to the script's events, until it ends in whatever way."""
        self.session.training = self
        self._callbacks = callbacks
        try:
            with self.replaced, self.lifecycle.under_way(), self.steps.listening(callbacks), self._followed_names():
                yield
        finally:
            common_step.close()
            self.memory.forget()
            self.session.training = None

    @contextmanager
    def _followed_names(self) -> Iterator[None]:
        """Follow how good each epoch is found to be, and who stops early: both are names of the script."""
        module, names = self.session.module, vars(self.session.module)
        with ExitStack() as stack:
            stack.enter_context(self._accumulating.followed(module))
            if "fitness" in names and self.lifecycle.listens(Judged):
                stack.enter_context(instead(module, "fitness", partial(self._fitness, names["fitness"])))
            if "EarlyStopping" in names and (self.lifecycle.listens(Judged) or self.lifecycle.listens(Validation)):
                stack.enter_context(instead(module, "EarlyStopping", partial(self._stopper, names["EarlyStopping"])))
            yield

    def _stopper(self, made: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return self._judging.following(made(*args, **kwargs), 0)

    def _fitness(self, upstreams: Callable[..., Any], results: Any) -> Any:
        fitness = upstreams(results)
        judged = self.lifecycle.attempt(lambda: self._judged(results, fitness), Judged)
        return fitness if judged is None else judged

    def _judged(self, results: Any, fitness: Any) -> Any:
        """Return what the script is to take for an epoch's fitness: an array of one, as it is."""
        names = script_facts.metrics(self.session.layout.scripts[self.session.script])
        figures = dict(zip(names, map(float, results[0])))
        seam = self._judging.judge(self.epoch, float(fitness[0]), figures, Path(self.opt.save_dir), self._start)
        if seam is None:
            return None
        fitness = fitness.copy()
        fitness[0] = seam.fitness if seam.eligible else math.nan  # which is never the best
        return fitness

    def model_built(self, model: Any) -> None:
        """Follow the model, complete and on its device."""
        self.model = model
        if model is not None:
            self.lifecycle.fire(ModelBuilt(model))

    def batch_measured(self, batch: int) -> None:
        """Follow AutoBatch."""
        self.batch = batch

    def _known_batch(self) -> int:
        if self.batch < 1:
            raise PatchesError("the batch that upstream has measured is not known")
        return int(self.batch)

    def optimizer_built(self, optimizer: Any) -> Any:
        """Return the optimizer that the patches make of upstream's."""
        self.optimizer = optimizer
        seam = self.lifecycle.attempt(lambda: self.lifecycle.fire(self._optimizer(optimizer)), OptimizerBuilt)
        if seam is not None:
            self.optimizer = seam.optimizer
        return self.optimizer

    def _optimizer(self, optimizer: Any) -> OptimizerBuilt:
        batch = self._known_batch()
        # Its length is not known: the training loader is built after it.
        return OptimizerBuilt(optimizer, batch, self._accumulating.in_force, loss=self._early_proof)

    def optimizer_restored(self, result: Any) -> None:
        """Follow a resumed run: upstream has loaded the optimizer's state, and says with which epoch it goes on."""
        self.lifecycle.attempt(lambda: self._resumes_at(result[1]))
        self.lifecycle.attempt(lambda: self.lifecycle.fire(OptimizerRestored(self.optimizer)), OptimizerRestored)

    def _resumes_at(self, epoch: int) -> None:
        self.epoch, self._start = int(epoch) - 1, int(epoch)

    def clip(self) -> None:
        """Follow the gradients of one effective batch, right before they are clipped: the end of a step."""
        self._begin()
        if self.optimizer is not None:
            self.lifecycle.attempt(self._warm_up_step, WarmUpStep)
            with common_step.common_step():  # every rank clips
                self.lifecycle.attempt(lambda: self.lifecycle.fire(OptimizerStep(self.optimizer)), OptimizerStep)
        common_step.close()

    def loader(self, wrapped: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Build a loader: for training, where its images are augmented, with the hyperparameters of the warm-up."""
        call = self.lifecycle.attempt(lambda: _loader_call(wrapped, args, kwargs), ValLoader, *self._served_by_loader())
        if call is None:
            return wrapped(*args, **kwargs)
        if not call["augment"]:
            self.lifecycle.attempt(lambda: self._val_batch(call), ValLoader)
            result = wrapped(*call.args, **call.kwargs)
            self.lifecycle.attempt(lambda: self.val_loaders.append(result[0]), ValLoader)
            if self.lifecycle.listens(Validation):
                return (FollowedLoader(result[0], self._validations.passing), *result[1:])
            return result
        result = wrapped(*call.args, **call.kwargs)
        self.lifecycle.attempt(lambda: self._warm_up(result[0], call["hyp"]), WarmUp)
        return self.lifecycle.attempt(lambda: self._followed(*result), *self._served_by_loader()) or result

    def _served_by_loader(self) -> tuple[type[Seam], ...]:
        """Return what comes of the training loader: where a script has no events, it says where a step begins."""
        return (WarmUp, Loading) if self.steps.by_events else (WarmUp, Loading, ModelBuilt, Normaliser)

    def _val_batch(self, call: Call) -> None:
        per_rank = self._known_batch() // self.lifecycle.plan.world_size
        seam = self.lifecycle.fire(ValLoader(call["batch_size"], per_rank))
        call["batch_size"] = self.val_batch = seam.batch

    def _followed(self, loader: Any, *rest: Any) -> tuple[Any, ...]:
        self.train_loader = loader
        needed = not self.steps.by_events or self.lifecycle.listens(Loading)
        return (FollowedLoader(loader, self._pass) if needed else loader, *rest)

    def _pass(self, loader: Any) -> Iterator[Any]:
        if not self.steps.by_events:
            self._end_row()
            self._epoch_begins()
        act = Loading(loader, self.epoch, lambda batch: len(batch[0]), self.lifecycle.tell)
        return self.steps.passing(self.lifecycle.around(act, lambda: iter(loader)))

    def _warm_up(self, loader: Any, hyp: dict[str, Any]) -> None:
        batches = len(loader)
        upstream = max(round(hyp["warmup_epochs"] * batches), LEAST_WARM_UP)
        self._hyp = hyp
        seam = WarmUp(upstream, batches, self.opt.epochs, images=len(loader.dataset), least=LEAST_WARM_UP)
        self._warming = self.lifecycle.fire(seam)
        longer = seam.iterations
        if longer != upstream:
            before, hyp["warmup_epochs"] = hyp["warmup_epochs"], longer / batches
            self._restore = lambda: hyp.update(warmup_epochs=before)  # it is saved with the model

    def _warm_up_step(self) -> None:
        """Tell the rates of the warm-up right before the step, the first moment after it that we are called in."""
        warm = self._warming
        if warm is None or not self.lifecycle.listens(WarmUpStep):
            return
        iteration = self._batches - 1 + self.epoch * warm.per_epoch
        made = max(warm.iterations, warm.least)
        if iteration > made:
            return
        groups, share = self.optimizer.param_groups, iteration / made
        last = groups[-1]  # the biases are the first: this one begins at 0, whatever the schedule
        decayed = last["lr"] / (share * last["initial_lr"]) if share else 1.0
        rates, strange = warming.ramps(groups, self._hyp["warmup_bias_lr"], decayed, share)
        momentum = Ramp(self._hyp["warmup_momentum"], self._hyp["momentum"])
        self.lifecycle.fire(WarmUpStep(self.optimizer, iteration, warm.iterations, rates, momentum, strange=strange))

    def criterion_built(self, model: Any, criterion: Any) -> None:
        """Follow the criterion, the last thing that is built before the first step."""
        if not self._probing:
            self.model, self.criterion = model, criterion
            self._begin()

    def validate(self, wrapped: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Let a validation take place. What upstream calls its batch is only what it prints."""
        common_step.close()
        self.memory.forget()
        self._begin()
        if kwargs.get("dataloader") is not None and kwargs["dataloader"] not in self.val_loaders:
            self.val_loaders.append(kwargs["dataloader"])
        if self.val_batch is not None and "batch_size" in kwargs:
            kwargs = {**kwargs, "batch_size": self.val_batch}
        final = self._validations.final = bool(kwargs.get("verbose"))
        act: Validation | None = Validation(self.epoch, final=final)
        if not final and self.lifecycle.listens(Validation):
            model = kwargs.get("model")
            act = self.lifecycle.attempt(lambda: self._validations.act(self.epoch, self.model, model), Validation)

        def proceed() -> Any:
            parts = evaluation.in_place(self.lifecycle, vars(self.session.module).get("validate"), kwargs)
            with self.memory.predicting(kwargs.get("model")), parts as (call, told):
                result = told(wrapped(*args, **call))
            if not final and self.lifecycle.listens(Validation):
                self.lifecycle.attempt(lambda: self._validations.follow(result), Validation)
            return result

        result = proceed() if act is None else self.lifecycle.around(act, proceed)
        self._epoch_ended()
        return result

    def save(self, write: Callable[[], None]) -> None:
        """Let a checkpoint be written: the last, the best, and those of a period are one file each."""
        self.lifecycle.around(Save(self.epoch, Path(self.opt.save_dir) / "weights"), write)

    def _first_step(self) -> None:
        self._batches += 1
        self._begin()
        self.lifecycle.first_step()
        self.lifecycle.attempt(lambda: self.memory.expect(self.model, self.optimizer, self.criterion), MicroStep)

    def _epoch_begins(self) -> None:
        self.epoch += 1
        self._batches = 0

    def _begin(self) -> None:
        """Prove the patches on the live objects, and write the plan: everything is built, no step has been made."""
        if self._started:
            return
        self._started = True
        if self._restore is not None:
            self._restore()
        self.lifecycle.attempt(lambda: self.lifecycle.start(self._live(), self.batch))
        if rank() in (-1, 0):
            self.lifecycle.attempt(self._announce)
            self._write()

    def _epoch_ended(self) -> None:
        """Measure the patches' effect after the first epoch, too."""
        if not self._epoch_checked:
            self._epoch_checked = True
            self.lifecycle.attempt(lambda: self.lifecycle.check(self._live(), self.batch))
            self._write()

    def _epoch_over(self) -> None:
        """Follow the end of an epoch where the script says so, before whoever listens to it."""
        if self._end_row():
            self.lifecycle.attempt(lambda: loggers.log(self._callbacks, self.epoch, self._rows.logged(self.epoch)))

    def _end_row(self) -> bool:
        """File the epoch's row; return whether that had not been done."""
        if self.epoch < self._start or rank() not in (-1, 0):
            return False
        return bool(self.lifecycle.attempt(lambda: self._rows.end(self.epoch, Path(self.opt.save_dir), self._start)))

    def end(self) -> None:
        """Measure once more: the training has come to its end."""
        self._begin()
        self._end_row()
        self.lifecycle.attempt(lambda: self.lifecycle.check(self._live(), self.batch))
        self._write()

    def _announce(self) -> None:
        vars(self.session.module)["LOGGER"].info(self.lifecycle.plan.banner())

    def _write(self) -> None:
        if rank() in (-1, 0):
            self.lifecycle.attempt(self.lifecycle.warn)
            self.lifecycle.attempt(lambda: self.lifecycle.write(Path(self.opt.save_dir)))

    def _live(self) -> Live:
        validates = rank() in (-1, 0)
        return Live(
            validates=validates,
            val_loaders=tuple(self.val_loaders) if self.val_loaders or not validates else (None,),
            train_loader=self.train_loader,
            optimizer=self.optimizer,
            model=self.model,
            normalises=isinstance(vars(type(self.criterion)).get("__call__"), wrapt.FunctionWrapper),
            loss=lambda: self._proof,
            targets=lambda change: self.lifecycle.attempt(lambda: self._reaction(change)),
            filled=frozenset(self.session.filled),
            validations=self._validations.made,
            best=(None, self._judging.best_for_stopping),
            began=self._epoch_checked,
            train_set=lambda: self.lifecycle.attempt(self._train_set),
        )

    def _train_set(self) -> TrainSet | None:
        """Read the training set: it takes its hyperparameters anew for every image."""
        dataset = getattr(self.train_loader, "dataset", None)
        hyp = getattr(dataset, "hyp", None)
        if dataset is None or not isinstance(hyp, Mapping):
            return None
        values = {**hyp, "mosaic": hyp.get("mosaic", 0.0) if getattr(dataset, "mosaic", False) else 0.0}
        segments = getattr(dataset, "segments", None)
        return TrainSet(len(dataset), values, None if segments is None else any(map(len, segments)))

    @cached_property
    def _proof(self) -> LossProof:
        if self.criterion is None:
            return LossProof(None, None, "the criterion is not one that we know")
        return self._prove(self.criterion)

    def _prove(self, criterion: Any) -> LossProof:
        from yolo_patches.upstreams.scripts.loss_probe import prove

        return prove(self.model, criterion, self.session.layout.scripts[self.session.script])

    def _reaction(self, change: Callable[[Any], Any]) -> float | None:
        from yolo_patches.upstreams.scripts.loss_probe import reaction

        if self.criterion is None:
            return None
        return reaction(self.model, self.criterion, self.session.layout.scripts[self.session.script], change)

    def _early_proof(self) -> LossProof:
        """Probe the loss while the optimizer is built: upstream makes its criterion later, from the same model."""
        try:
            hyp: Mapping[str, Any] = self.opt.hyp
            with instead(self.model, "hyp", dict(hyp)), self._probe():
                return self._prove(vars(self.session.module)["ComputeLoss"](self.model))
        except Exception as error:
            return LossProof(None, None, f"the loss cannot be probed yet: {type(error).__name__}: {error}")

    @contextmanager
    def _probe(self) -> Iterator[None]:
        self._probing = True
        try:
            yield
        finally:
            self._probing = False


def _loader_call(wrapped: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """Return a call's arguments by name, those that we read among them."""
    call = Call(wrapped, args, kwargs)
    lacking = [name for name in ("augment", "batch_size") if name not in call]
    if lacking:
        raise PatchesError(f"create_dataloader has no parameter {', '.join(lacking)}")
    return call
