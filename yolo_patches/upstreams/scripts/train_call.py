"""The wrapper of a script's `train()`: what is decided before it runs, and what it runs inside of."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from yolo_patches.activation import ENVIRONMENT, activation, environment
from yolo_patches.agreement import RanksDisagreeError
from yolo_patches.doctor.subject import Absent
from yolo_patches.errors import PatchesError
from yolo_patches.facts import Facts
from yolo_patches.forecast import Forecast, Foreseen, forecasting
from yolo_patches.lifecycle import Lifecycle
from yolo_patches.seams import Arguments, OptimizerStep, Save, Seam, Step
from yolo_patches.selection import Selection
from yolo_patches.upstreams import stack
from yolo_patches.upstreams.scripts import script_facts, script_seams
from yolo_patches.upstreams.scripts.session import Session, fail
from yolo_patches.upstreams.scripts.training import Training

Call = Callable[..., Any]


def wrapper(session: Session, floored: Callable[[type], bool]) -> Call:
    """Return the wrapper of a script's `train()`; while it runs, it is the session's training.

    Args:
        session: The script's.
        floored: Tells whether a criterion's class keeps its normaliser away from zero.
    """

    def train(wrapped: Call, _: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        start = _prepared(session, floored, wrapped, args, kwargs)
        if start is None:
            return wrapped(*args, **kwargs)
        if forecasting.get():
            raise Forecast(start.foreseen())
        training = start.training()
        activation.last_plan = start.lifecycle.plan
        try:
            # Loaders' workers may be fresh processes that import the script.
            with environment({ENVIRONMENT: start.selection.text}), training.under_way(start.values.get("callbacks")):
                result = wrapped(*start.call.args, **start.call.kwargs)
                training.end()
                return result
        except RanksDisagreeError as error:
            fail(error)

    return train


def _prepared(
    session: Session, floored: Callable[[type], bool], wrapped: Call, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> _Start | None:
    """Return a decided start, or None where upstream is to train on its own."""
    try:
        chosen = activation.selection()
        if chosen is not None and not chosen.chosen and not forecasting.get():
            return None  # reads nothing of the run
        start = _Start(session, floored, inspect.signature(wrapped).bind(*args, **kwargs), chosen)
        if not start.selection.chosen and not forecasting.get():
            return None
        start.decide()
        return start
    except PatchesError as error:
        if forecasting.get():
            raise
        fail(error)
    except Exception as error:
        if forecasting.get():
            raise
        session.tell(f"yolo-patches: inactive for this training: {type(error).__name__}: {error}")
        return None


class _Start:
    """One call of `train()`, before it has begun.

    Args:
        session: The script's.
        floored: Tells whether a criterion's class keeps its normaliser away from zero.
        call: The call's arguments.
        selection: What was asked for, or None where nobody said anything.
    """

    def __init__(
        self,
        session: Session,
        floored: Callable[[type], bool],
        call: inspect.BoundArguments,
        selection: Selection | None,
    ) -> None:
        self.session = session
        self.call = call
        self.values = call.arguments
        self.opt = call.arguments["opt"]
        self._resumes = bool(getattr(self.opt, "resume", False))
        checkpoint = str(self.opt.weights) if self._resumes else ""
        self.selection, self._entries = session.taken_up(checkpoint, selection)
        self._floored = floored
        self._hyp = script_facts.hyperparameters(call.arguments["hyp"])
        if forecasting.get() and not self._hyp:
            raise PatchesError(f"{call.arguments['hyp']} holds no hyperparameters")
        layout, root, script = session.layout, session.root, session.script
        callbacks = call.arguments.get("callbacks")
        bindable = callable(getattr(callbacks, "run", None)) and hasattr(callbacks, "__dict__")
        self._events = bindable and script_seams.fires_step_event(layout, root, script)
        missing = {**script_seams.missing(layout, root, script), **self._out_of_reach()}
        version = script_facts.version(layout, root)
        self.lifecycle = Lifecycle(layout.name, version, self.selection, missing, session.tell)

    def _out_of_reach(self) -> Mapping[type[Seam], str]:
        """Return the seams that the script's own names keep from us."""
        if isinstance(self._names.get("torch"), stack.Overlay):
            return {}
        return dict.fromkeys(
            (OptimizerStep, Step, Save), f"{self.session.script} does not have torch as its global 'torch'"
        )

    @property
    def _names(self) -> Mapping[str, Any]:
        module = self.session.module
        assert isinstance(module, ModuleType), "train() has been found in it"
        return vars(module)

    def decide(self) -> None:
        """Let patches set what the user has not given, and then decide.

        Raises:
            PatchesError: The run is refused.
        """
        if not self._resumes and self.lifecycle.takes(Arguments):
            self._set(self.lifecycle.fire(script_facts.seam(self._facts(), self._hyp, self.opt)).values)
        self.lifecycle.decide(self._facts())

    def _set(self, values: Mapping[str, Any]) -> None:
        """Train with other values: upstream saves the arguments and hyperparameters that it has, and reads no file."""
        hyp = {name: value for name, value in values.items() if name in self._hyp}
        for name, value in values.items():
            if name not in hyp:
                setattr(self.opt, name, value)
        if hyp:
            self._hyp = self.values["hyp"] = {**self._hyp, **hyp}

    def foreseen(self) -> Foreseen:
        """Return what is known of the training beforehand; its data set is not read."""
        absent = Absent("the labels of a script's data set are not read")
        settings = script_facts.settings(self._hyp, self.opt)
        return Foreseen(self.lifecycle.plan, self.lifecycle.facts or self._facts(), settings, lambda: absent)

    def _facts(self) -> Facts:
        criterion = self._names.get("ComputeLoss")
        return script_facts.facts(
            self.session,
            self._hyp,
            self.opt,
            device=self._device(),
            floored=not isinstance(criterion, type) or self._floored(criterion),
            resumed=self._entries,
        )

    def _device(self) -> str:
        """Return the type of device; `doctor` knows only what the user has named."""
        if not forecasting.get():
            return str(getattr(self.values.get("device"), "type", ""))
        named = str(getattr(self.opt, "device", "") or "").replace("cuda:", "")
        return named if named in ("", "cpu", "mps") else "cuda"

    def training(self) -> Training:
        """Return the training, which begins now."""
        self.session.own = Path(self.opt.save_dir) / "weights"
        self.session.named = [getattr(self.opt, name, None) for name in ("weights", "resume")]
        return Training(self.session, self.lifecycle, self.opt, self._events)
