"""One call of a script's `train()`: its facts, its seams, and the functions that it calls on the way."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import wrapt

from yolo_patches import registry
from yolo_patches.activation import activation, environment
from yolo_patches.errors import PatchesError
from yolo_patches.lifecycle import Forecast, Run, forecasting
from yolo_patches.plan import FILE_NAME, recorded_selection
from yolo_patches.seams import (
    Facts,
    ModelBuilt,
    Normaliser,
    OptimizerBuilt,
    OptimizerRestored,
    OptimizerStep,
    Seam,
    TrainStart,
    ValLoader,
    WarmUp,
)
from yolo_patches.selection import NONE, Selection, parse
from yolo_patches.upstreams import stack
from yolo_patches.upstreams.scripts.layout import Layout
from yolo_patches.upstreams.scripts.session import Session, fail

Call = Callable[..., Any]
Arguments = tuple[Any, ...]
Keywords = dict[str, Any]

#: Written into every script: the batch up to which it accumulates.
NBS = 64
#: Written into every script: its least number of warm-up iterations.
LEAST_WARM_UP = 100
RANK = int(os.getenv("RANK", "-1"))


class Training:
    """The objects of one `train()` call, as they come into being, and the run that they fire seams at."""

    def __init__(self, session: Session, run: Run, opt: Any) -> None:
        self.session = session
        self.run = run
        self.opt = opt
        self.batch = opt.batch_size
        self.train_loader: Any = None
        self.val_loader: Any = None
        self.val_batch: int | None = None
        self.optimizer: Any = None
        self.model: Any = None
        self.normalises = False
        self._restore: Callable[[], None] = lambda: None

    def model_built(self, model: Any) -> None:
        """Follow the model, complete and on its device."""
        self.run.fire(ModelBuilt(model))

    def batch_measured(self, batch: int) -> None:
        """Follow AutoBatch."""
        self.batch = batch

    def optimizer_built(self, optimizer: Any) -> Any:
        """Return the optimizer that the patches make of upstream's."""
        self.optimizer = self.run.fire(OptimizerBuilt(optimizer, self.batch)).optimizer
        return self.optimizer

    def optimizer_restored(self) -> None:
        """Follow a resumed run."""
        self.run.fire(OptimizerRestored(self.optimizer))

    def step(self) -> None:
        """Follow the gradients of one effective batch, right before they are clipped."""
        if self.optimizer is not None:
            self.run.fire(OptimizerStep(self.optimizer))

    def loader(self, call: inspect.BoundArguments, build: Callable[[], Any]) -> Any:
        """Return a loader, the first of which is for training and has the hyperparameters that the warm-up reads."""
        if call.arguments["augment"]:
            result = build()
            self.train_loader = result[0]
            self._warm_up(call.arguments["hyp"])
            return result
        seam = self.run.fire(ValLoader(call.arguments["batch_size"], self.batch // self.run.plan.world_size))
        call.arguments["batch_size"] = self.val_batch = seam.batch
        result = build()
        self.val_loader = result[0]
        return result

    def _warm_up(self, hyp: Any) -> None:
        batches = len(self.train_loader)
        upstream = max(round(hyp["warmup_epochs"] * batches), LEAST_WARM_UP)
        longer = self.run.fire(WarmUp(upstream, (self.opt.epochs - 1) * batches)).iterations
        if longer != upstream:
            before, hyp["warmup_epochs"] = hyp["warmup_epochs"], longer / batches
            self._restore = lambda: hyp.update(warmup_epochs=before)  # it is saved with the model

    def start(self, model: Any, criterion: Any) -> None:
        """Check the live objects and write the plan: everything is built, the criterion last."""
        self._restore()
        self.model = model
        self.normalises = isinstance(vars(type(criterion)).get("__call__"), wrapt.FunctionWrapper)
        self.record(announce=True)

    def record(self, announce: bool = False) -> None:
        """Check the live objects and write the plan."""
        live = TrainStart(
            val_loader=self.val_loader,
            normalises=self.normalises,
            train_loader=self.train_loader,
            optimizer=self.optimizer,
            model=self.model,
            filled=frozenset(self.session.filled),
        )
        self.run.verify(live, self.batch)
        if RANK not in (-1, 0):
            return
        if announce:
            self._log()
        self.run.write(Path(self.opt.save_dir))

    def _log(self) -> None:
        logger = vars(self.session.module)["LOGGER"]
        logger.info(self.run.plan.banner())
        for line in self.run.warnings():
            logger.warning(f"WARNING yolo-patches: {line}")


def train(session: Session, floored: Callable[[type], bool]) -> Call:
    """Return the wrapper of a script's `train()`; while it runs, it is the session's training.

    Args:
        session: The script's.
        floored: Tells whether a criterion's class keeps its normaliser away from zero.
    """

    def wrapper(wrapped: Call, _: object, args: Arguments, kwargs: Keywords) -> Any:
        call = inspect.signature(wrapped).bind(*args, **kwargs)
        opt = call.arguments["opt"]
        try:
            selection = _selection(opt)
            if not selection.chosen and not forecasting.get():
                return wrapped(*args, **kwargs)
            run = _decide(session, call.arguments["hyp"], opt, floored, selection)
        except PatchesError as error:
            if forecasting.get():
                raise
            fail(error)
        if forecasting.get():
            raise Forecast(run)
        session.own, session.named = Path(opt.save_dir) / "weights", [opt.weights, opt.resume]
        training = session.training = Training(session, run, opt)
        activation.last_run = run
        before, activation.current = activation.current, run
        try:
            with environment(run.selection.text):  # loaders' workers may be fresh processes that import the script
                result = wrapped(*args, **kwargs)
            if training.model is not None:
                training.record()
            return result
        except PatchesError as error:
            fail(error)
        finally:
            session.training = None
            activation.current = before

    return wrapper


def _decide(session: Session, hyp: Any, opt: Any, floored: Callable[[type], bool], selection: Selection) -> Run:
    known = facts(session, hyp, opt, floored(vars(session.module)["ComputeLoss"]))
    lacking = dict(missing(session.layout, session.root, session.script))
    if selection.chosen and not isinstance(vars(session.module).get("torch"), stack.Overlay):
        lacking[OptimizerStep] = f"{session.script} does not have torch as its global 'torch'"
    return Run(known, selection, lacking)


def _selection(opt: Any) -> Selection:
    """Return the selection; where nobody said any, a resumed run goes on as it started, a new one takes `default`."""
    given = activation.selection()
    if given is not None:
        return given
    if not opt.resume:
        return parse("default", registry.specs())
    recorded = recorded_selection(Path(opt.save_dir))
    return NONE if recorded is None else parse(recorded, registry.specs(), f"{FILE_NAME} of the resumed run")


def facts(session: Session, hyp: Any, opt: Any, floored: bool) -> Facts:
    """Return the facts of a run.

    Args:
        session: The script's.
        hyp: Hyperparameters, or the file that holds them.
        opt: The script's parsed arguments.
        floored: Whether its criterion keeps its normaliser away from zero.
    """
    layout, world_size = session.layout, int(os.getenv("WORLD_SIZE", "1"))
    return Facts(
        upstream=layout.name,
        version=version(layout, session.root),
        task=layout.scripts[session.script],
        world_size=world_size,
        global_batch=opt.batch_size,
        val_batch_factor=2,
        normaliser=layout.tasks[layout.scripts[session.script]].normaliser,
        nbs=NBS,
        lr0=float(_hyperparameters(hyp)["lr0"]),
        optimizer=opt.optimizer,
        model=Path(str(opt.cfg)).stem,
        scratch=not str(opt.weights).endswith(".pt"),
        floored=floored,
        own_sync_bn="--sync-bn" if getattr(opt, "sync_bn", False) else "",
        own_ranks=True,
        gaps=stack.gaps(),
    )


def _hyperparameters(hyp: Any) -> Mapping[str, Any]:
    if not isinstance(hyp, (str, Path)):
        values: Mapping[str, Any] = hyp
        return values
    import yaml

    try:
        loaded: Mapping[str, Any] = yaml.safe_load(Path(hyp).read_text(encoding="utf-8", errors="ignore"))
        float(loaded["lr0"])
        return loaded
    except (OSError, KeyError, TypeError, ValueError, yaml.YAMLError) as error:
        raise PatchesError(f"{hyp} holds no hyperparameters: {type(error).__name__}: {error}") from error


def version(layout: Layout, root: Path) -> str:
    """Return an installed package's version; a checkout has none."""
    try:
        text = (root / "__init__.py").read_text(encoding="utf-8")
    except OSError:
        return "checkout"
    found = re.search(r"""^__version__ = ["'](.+?)["']""", text, re.MULTILINE)
    return found.group(1) if found else "unknown"


#: Seam -> where it comes from, as `Layout.defects` names it.
SOURCES: Mapping[type[Seam], tuple[str, ...]] = {
    ModelBuilt: ("utils.general",),
    OptimizerBuilt: ("utils.torch_utils", "utils.autobatch"),
    OptimizerRestored: ("utils.torch_utils",),
    OptimizerStep: ("script", "utils.torch_utils"),
    TrainStart: ("script", "utils.torch_utils", "criteria"),
}


def missing(layout: Layout, root: Path, script: str) -> Mapping[type[Seam], str]:
    """Return the seams that a checkout lacks -> why, read from its source."""
    task = layout.tasks[layout.scripts[script]]
    defects = layout.defects(root, script)
    sources = {
        **SOURCES,
        ValLoader: (task.loaders, "script"),
        WarmUp: (task.loaders, "script"),
        Normaliser: ("criteria",),
    }
    found = {seam: [line for source in where for line in defects.get(source, ())] for seam, where in sources.items()}
    return {seam: "; ".join(why) for seam, why in found.items() if why}
