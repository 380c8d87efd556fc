"""Ultralytics' trainer: one class-level wrapper on BaseTrainer.__init__, the rest on the trainer object.

Wrappers on the object cover what subclasses and users' own trainers override, and are never pickled: checkpoints hold
the model and the arguments, DDP workers get the trainer's class.
"""

from __future__ import annotations

import errno
import inspect
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from yolo_patches import registry
from yolo_patches.activation import ABSENT, activation, environment
from yolo_patches.errors import PatchesError
from yolo_patches.lifecycle import Forecast, Run, forecasting
from yolo_patches.plan import FILE_NAME, recorded_selection
from yolo_patches.seams import (
    EpochLosses,
    ModelBuilt,
    Normaliser,
    OptimizerBuilt,
    OptimizerChoice,
    OptimizerRestored,
    OptimizerStep,
    Ranks,
    Seam,
    StackGap,
    TrainStart,
    ValLoader,
    WarmUp,
)
from yolo_patches.selection import NONE, Selection, parse
from yolo_patches.upstreams.ultralytics import launch, loss_wrappers, stack_gaps
from yolo_patches.upstreams.ultralytics.commands import KEY
from yolo_patches.upstreams.ultralytics.facts import facts, version
from yolo_patches.upstreams.ultralytics.optimization import Optimization
from yolo_patches.wrapping import Wrapping, bind

#: The parameters that each wrapped method must have; what upstream may add beside them does not matter.
SIGNATURES: Mapping[str, tuple[str, ...]] = {
    "__init__": ("cfg", "overrides", "_callbacks"),
    "train": (),
    "run_callbacks": ("event",),
    "get_dataloader": ("dataset_path", "batch_size", "mode"),
    "build_optimizer": ("model", "name", "lr", "decay", "iterations"),
    "optimizer_step": (),
    "set_model_attributes": (),
    "resume_training": ("ckpt",),
}
SEAMS: Mapping[type[Seam], tuple[str, ...]] = {
    ValLoader: ("get_dataloader",),
    TrainStart: ("run_callbacks",),
    OptimizerChoice: ("build_optimizer",),
    OptimizerBuilt: ("build_optimizer",),
    OptimizerRestored: ("resume_training",),
    OptimizerStep: ("optimizer_step",),
    WarmUp: ("run_callbacks",),
    ModelBuilt: ("set_model_attributes",),
}
#: Without these nothing can be patched at all, and nothing is.
REQUIRED = ("__init__", "train")
#: Errors that say "you may not write there", as against a fault of the disk.
UNWRITABLE = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST})


def defects(owner: type, methods: Iterable[str]) -> list[str]:
    """Return what is wrong with methods of a trainer class, one line each; empty where they are as they must be."""
    found = []
    for method in methods:
        function = getattr(owner, method, None)
        if function is None:
            found.append(f"{owner.__name__}.{method} does not exist")
            continue
        lacking = [name for name in SIGNATURES[method] if name not in inspect.signature(function).parameters]
        if lacking:
            found.append(f"{owner.__name__}.{method} has no parameter {', '.join(lacking)}")
    return found


def missing(owner: type) -> Mapping[type[Seam], str]:
    """Return the seams that a trainer class lacks -> why.

    Args:
        owner: BaseTrainer, or the class of a live trainer: a user's subclass may lack what upstream has.
    """
    found = {seam: defects(owner, methods) for seam, methods in SEAMS.items()}
    found[Normaliser] = loss_wrappers.defects()
    found[Ranks] = launch.defects(owner)
    found[StackGap] = []
    return {seam: "; ".join(why) for seam, why in found.items() if why}


def install(module: ModuleType, wrapping: Wrapping) -> None:
    """Wrap the trainer class; an upstream whose constructor we do not know is left alone, with a warning."""
    why = defects(module.BaseTrainer, REQUIRED)
    if why:
        module.LOGGER.warning(
            f"yolo-patches: Ultralytics {version()} is not supported, training goes on unpatched ({'; '.join(why)})"
        )
        return
    wrapping.wrap(module.BaseTrainer, "__init__", _init)


def _init(wrapped: Callable[..., None], trainer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    call = inspect.signature(wrapped).bind(*args, **kwargs)
    argument = ABSENT
    for name in ("cfg", "overrides"):  # overrides last: they beat the file, as upstream has it
        if name in call.arguments:
            call.arguments[name], found = _without_key(call.arguments[name])
            argument = argument if found is ABSENT else found
    selection = activation.selection(argument)
    if forecasting.get():
        raise Forecast(_forecast(type(trainer), call, selection))
    runs: list[Run] = []

    def decide() -> Run:
        chosen = _unasked(trainer.args.resume) if selection is None else selection
        lacking = missing(type(trainer))
        runs.append(Run(facts(type(trainer), vars(trainer.args), launch.wanted(chosen, lacking)), chosen, lacking))
        return runs[-1]

    try:
        with launch.constructing(trainer, decide):
            wrapped(*call.args, **call.kwargs)
    except OSError as error:
        if selection == NONE or error.errno not in UNWRITABLE or error.filename is None:
            raise
        raise PatchesError(
            f"cannot write the run directory: {error.filename}: {error.strerror}; choose another with project= and "
            "name="
        ) from error
    run = runs[-1] if runs else decide()
    if run.selection.chosen:
        _Attachment(trainer, run)


def _without_key(config: Any) -> tuple[Any, Any]:
    """Return a configuration without our key, and the key's value; the caller's own object is never edited."""
    from ultralytics.cfg import cfg2dict

    loaded = cfg2dict(config) if isinstance(config, (str, Path)) else config
    if not isinstance(loaded, dict) or KEY not in loaded:
        return config, ABSENT
    return {key: value for key, value in loaded.items() if key != KEY}, loaded[KEY]


def _unasked(resume: Any) -> Selection:
    """Return the selection where nobody said any: a resumed run goes on as it started, a new one takes `default`."""
    if not resume:
        return parse("default", registry.specs())
    recorded = recorded_selection(Path(str(resume)).parent.parent)
    return NONE if recorded is None else parse(recorded, registry.specs(), f"{FILE_NAME} of the resumed run")


def _forecast(owner: type, call: inspect.BoundArguments, selection: Selection | None) -> Run:
    """Return the run that this constructor call would make, without making anything."""
    from ultralytics.cfg import get_cfg

    call.apply_defaults()
    args = vars(get_cfg(call.arguments["cfg"], dict(call.arguments["overrides"] or {})))
    resume = args.get("resume")
    if resume:
        from ultralytics.utils.files import get_latest_run

        resume = resume if isinstance(resume, (str, Path)) else get_latest_run()
    return Run(facts(owner, args), _unasked(resume) if selection is None else selection, missing(owner))


class _Attachment:
    """The wrappers on one trainer object, and the run that they fire seams at."""

    def __init__(self, trainer: Any, run: Run) -> None:
        self.trainer = trainer
        self.run = run
        activation.last_run = run
        for method in ("train", "run_callbacks", "get_dataloader", "set_model_attributes"):
            if not defects(type(trainer), (method,)):
                bind(trainer, method, getattr(self, f"_{method}"))
        self.optimization = None
        if not defects(type(trainer), ("build_optimizer", "optimizer_step", "resume_training")):
            self.optimization = Optimization(trainer, run)

    def _train(self, wrapped: Callable[..., Any], _: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        before, activation.current = activation.current, self.run
        try:
            with environment(self.run.selection.text):  # what the DDP workers that this may start will read
                return wrapped(*args, **kwargs)
        finally:
            activation.current = before

    def _get_dataloader(
        self, wrapped: Callable[..., Any], _: object, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        call = inspect.signature(wrapped).bind(*args, **kwargs)
        call.apply_defaults()
        if call.arguments["mode"] == "val":
            per_rank = self.trainer.batch_size // self.run.plan.world_size
            seam = self.run.fire(ValLoader(call.arguments["batch_size"], per_rank))
            call.arguments["batch_size"] = seam.batch
        return wrapped(*call.args, **call.kwargs)

    def _set_model_attributes(
        self, wrapped: Callable[..., Any], _: object, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        result = wrapped(*args, **kwargs)
        self.run.fire(ModelBuilt(self.trainer.model))
        return result

    def _run_callbacks(
        self, wrapped: Callable[..., Any], _: object, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        event = args[0] if args else kwargs["event"]
        if self.optimization is not None:
            self.optimization.event(event)
        if event == "on_train_epoch_end" and self.run.listens(EpochLosses):
            self._share_losses()
        if event in ("on_train_start", "on_train_end"):
            self._record(announce=event == "on_train_start")
        return wrapped(*args, **kwargs)

    def _share_losses(self) -> None:
        losses = self.trainer.tloss  # a tensor, or since 8.4.120 a dict
        terms = list(losses.values()) if isinstance(losses, dict) else [losses]
        shared = self.run.fire(EpochLosses(torch.cat([term.detach().reshape(-1) for term in terms]))).values
        self.trainer.tloss = dict(zip(losses, shared)) if isinstance(losses, dict) else shared.reshape(losses.shape)

    def _record(self, announce: bool) -> None:
        """Check the live trainer and write the plan: at the start, and at the end for what changed on the way."""
        from ultralytics.utils import LOGGER, RANK

        live = TrainStart(
            val_loader=getattr(self.trainer, "test_loader", None),
            normalises=loss_wrappers.normalises(self.trainer.model),
            train_loader=self.trainer.train_loader,
            optimizer=self.trainer.optimizer,
            model=self.trainer.model,
            filled=stack_gaps.filled(),
        )
        self.run.verify(live, self.trainer.batch_size)
        if RANK not in {-1, 0}:
            return
        if announce:
            LOGGER.info(self.run.plan.banner())
            for line in self.run.warnings():
                LOGGER.warning(f"yolo-patches: {line}")
        self.run.write(Path(self.trainer.save_dir))
