"""Ultralytics' trainer: one wrapper on the class's constructor, which prepares a training and attaches to it."""

from __future__ import annotations

import errno
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from yolo_patches import registry
from yolo_patches.activation import ABSENT, activation
from yolo_patches.errors import PatchesError
from yolo_patches.facts import Facts, Given
from yolo_patches.forecast import Forecast, Foreseen, forecasting
from yolo_patches.handover import Handover
from yolo_patches.lifecycle import Lifecycle
from yolo_patches.resumption import taken_up
from yolo_patches.seams import Arguments, Seam
from yolo_patches.selection import NONE, Selection, parse
from yolo_patches.upstreams.ultralytics import examination, launch, seam_sources
from yolo_patches.upstreams.ultralytics.attachment import Attachment
from yolo_patches.upstreams.ultralytics.commands import KEY, given
from yolo_patches.upstreams.ultralytics.facts import described_version, facts, is_worker, launcher
from yolo_patches.upstreams.ultralytics.trials import Trials
from yolo_patches.wrapping import LackingError, Wrapping

#: Errors that say "you may not write there", as against a fault of the disk.
UNWRITABLE = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST})


def install(module: ModuleType, wrapping: Wrapping) -> None:
    """Wrap the trainer class.

    Raises:
        LackingError: It is not the class that we know, so nothing is patched at all.
    """
    from yolo_patches.upstreams.ultralytics import below_floor

    if below_floor():
        raise LackingError(below_floor())
    owner = getattr(module, "BaseTrainer", None)
    if owner is None:
        raise LackingError("BaseTrainer does not exist")
    why = seam_sources.defects(owner, seam_sources.REQUIRED)
    if why:
        raise LackingError("; ".join(why))
    wrapping.wrap(owner, "__init__", _init)


def _init(wrapped: Callable[..., None], trainer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    try:
        call = inspect.signature(wrapped).bind(*args, **kwargs)
    except TypeError:  # upstream's own error is better than ours
        return wrapped(*args, **kwargs)
    argument = ABSENT
    for name in ("cfg", "overrides"):  # overrides last: they beat the file, as upstream has it
        if name in call.arguments:
            call.arguments[name], found = without_key(call.arguments[name])
            argument = argument if found is ABSENT else found
    selection = activation.selection(argument)
    if selection == NONE and not forecasting.get():  # reads nothing of the run
        return wrapped(*call.args, **call.kwargs)
    start = _Start(trainer, call, selection)
    if forecasting.get():
        raise Forecast(start.forecast())
    start.arguments()
    return start.construct(wrapped)


def without_key(config: Any) -> tuple[Any, Any]:
    """Return a configuration without our key, and the key's value; the caller's own object is never edited.

    A file that cannot be read is upstream's to complain about.
    """
    loaded = config
    if isinstance(config, (str, Path)):
        import yaml

        try:
            loaded = yaml.safe_load(Path(config).read_text(encoding="utf-8", errors="ignore"))
        except (OSError, yaml.YAMLError):
            return config, ABSENT
    if not isinstance(loaded, dict) or KEY not in loaded:
        return config, ABSENT
    return {key: value for key, value in loaded.items() if key != KEY}, loaded[KEY]


class _Start:
    """The construction of one trainer, and what is decided on the way.

    Args:
        trainer: The object, before its constructor has run.
        call: The constructor's arguments, without our key.
        selection: What was asked for, or None where nobody said anything.
    """

    def __init__(self, trainer: Any, call: inspect.BoundArguments, selection: Selection | None) -> None:
        self.trainer = trainer
        self.owner = type(trainer)
        self.call = call
        self.selection = selection
        self.handover = Handover.received() if is_worker() else None
        self.given = self.handover.given if self.handover else self._given()
        self.inherited = self.handover.entries if self.handover else {}
        self.missing: Mapping[type[Seam], str] = {}
        self.resumed: Mapping[str, Any] = {}
        self.lifecycle: Lifecycle | None = None

    def _overrides(self) -> dict[str, Any]:
        return dict(self.call.arguments.get("overrides") or {})

    def _given(self) -> Given:
        """Return what the user gave: to `train()`, to the command line, or straight to this constructor."""
        typed = given.get()
        values = self._overrides() if typed is None else dict(typed.values)
        origins = {} if typed is None else dict(typed.origins)
        base = self.call.arguments.get("cfg")
        if isinstance(base, (dict, str, Path)):
            from ultralytics.utils import DEFAULT_CFG_DICT

            loaded, _ = without_key({KEY: None, **base} if isinstance(base, dict) else base)
            for name, value in (loaded if isinstance(loaded, dict) else {}).items():
                if DEFAULT_CFG_DICT.get(name, ABSENT) != value:
                    values.setdefault(name, value)
                    origins.setdefault(name, "Python" if isinstance(base, dict) else "file")
        return Given(values, origins)

    def arguments(self) -> None:
        """Let patches set what the user has not given. A resumed run takes its arguments from the checkpoint."""
        try:
            if self._overrides().get("resume"):
                return
            lifecycle = self._lifecycle("")
            if not lifecycle.takes(Arguments):
                return
            seam = lifecycle.fire(self._seam())
            if seam.values:
                self.call.arguments["overrides"] = {**self._overrides(), **seam.values}
        except PatchesError:
            raise
        except Exception as error:  # what upstream makes of its arguments shows in its constructor
            self._tell(f"arguments are upstream's: {type(error).__name__}: {error}")

    def _seam(self) -> Arguments:
        from ultralytics.utils import DEFAULT_CFG_DICT

        args = self._resolved()
        known = facts(self.owner, args, given=self.given, inherited=self.inherited, device=self._certain(args))
        defaults = {key: value for key, value in DEFAULT_CFG_DICT.items() if key not in self.given}
        return Arguments(known, defaults, trial=self._trials(known), foretold=bool(forecasting.get()))

    @staticmethod
    def _certain(args: Mapping[str, Any]) -> str:
        """Return "cpu" where upstream has nothing else to choose; empty where the arguments say it, or it chooses."""
        import torch

        return "" if args.get("device") not in (None, "") or torch.cuda.is_available() else "cpu"

    def _trials(self, known: Facts) -> Trials | None:
        """Return trials of this training; none where a rank would make them, or another trainer than upstream's own."""
        if is_worker() or launcher() is not None or not self.owner.__module__.startswith("ultralytics."):
            return None
        assert self.lifecycle is not None, "it fires this seam"
        return Trials({**self.given.values, **self._overrides()}, self.lifecycle.selection.chosen, known)

    def _resolved(self) -> dict[str, Any]:
        """Return the arguments as upstream's constructor will resolve them, without making anything.

        Overrides that are no arguments are the constructor's own: 8.4.101 takes its HUB session out of them. Others are
        mistakes, of which it tells.
        """
        from ultralytics.cfg import get_cfg
        from ultralytics.utils import DEFAULT_CFG_DICT

        self.call.apply_defaults()
        known = {name: value for name, value in self._overrides().items() if name in DEFAULT_CFG_DICT}
        return vars(get_cfg(self.call.arguments["cfg"], known))

    def _lifecycle(self, resume: Any) -> Lifecycle:
        if self.lifecycle is None:
            selection, entries = self._selection(resume)
            self.missing = seam_sources.missing(self.owner)
            self.lifecycle = Lifecycle(
                "ultralytics", described_version(), selection, self.missing, self._tell, self.handover
            )
            self.resumed = entries
        return self.lifecycle

    def _selection(self, resume: Any) -> tuple[Selection, Mapping[str, Any]]:
        """Return the selection, `default` for a new run where nobody said any, and a resumed run's plan, by patch."""
        if resume:
            return taken_up(str(resume), self.selection, self._tell)
        return self.selection or parse("default", registry.specs()), {}

    def decide(self) -> Lifecycle:
        """Decide, with the arguments that upstream has resolved.

        Raises:
            PatchesError: The run is refused.
        """
        args = dict(vars(self.trainer.args))
        if getattr(self.trainer, "resume", False):  # up to 8.1 the arguments are the checkpoint's, and do not say so
            args["resume"] = args.get("resume") or args.get("model")
        lifecycle = self._lifecycle(args.get("resume"))
        ranks = launch.wanted(lifecycle.selection, self.missing)
        if ranks is None and launch.left_out(lifecycle.selection, self.missing):
            lifecycle.warn()  # upstream will end in an error of its own: this is why
        device = getattr(getattr(self.trainer, "device", None), "type", "")
        lifecycle.decide(facts(self.owner, args, ranks, self.given, device, self.resumed, self.inherited))
        return lifecycle

    def forecast(self) -> Foreseen:
        """Return what is known of this training, without making anything."""
        args = self._resolved()
        resume = args.get("resume")
        if resume:
            from ultralytics.utils.files import get_latest_run

            resume = resume if isinstance(resume, (str, Path)) else get_latest_run()
        lifecycle = self._lifecycle(resume)
        if not resume and lifecycle.takes(Arguments):
            seam = lifecycle.fire(self._seam())
            args = {**args, **seam.values}
        known = facts(self.owner, args, given=self.given, resumed=self.resumed, device=self._certain(args))
        lifecycle.decide(known)
        return Foreseen(
            lifecycle.plan,
            lifecycle.facts or known,
            examination.settings(self.owner, args),
            lambda: examination.data_set(args),
        )

    def construct(self, wrapped: Callable[..., None]) -> None:
        """Run upstream's constructor, decide when its arguments are resolved, and attach to the trainer."""
        decided: list[Lifecycle] = []

        def decide() -> Lifecycle:
            decided.append(self.decide())
            return decided[-1]

        try:
            with launch.constructing(self.trainer, decide):
                wrapped(*self.call.args, **self.call.kwargs)
        except OSError as error:
            if error.errno not in UNWRITABLE or error.filename is None:
                raise
            raise PatchesError(
                f"cannot write the run directory: {error.filename}: {error.strerror}; choose another with project= and "
                "name="
            ) from error
        try:
            lifecycle = decided[-1] if decided else self.decide()
            if lifecycle.selection.chosen:
                Attachment(self.trainer, lifecycle)
        except PatchesError:
            raise
        except Exception as error:  # the trainer stands: it trains as upstream has it
            self._tell(f"inactive for this training: {type(error).__name__}: {error}")

    @staticmethod
    def _tell(line: str) -> None:
        from ultralytics.utils import LOGGER

        LOGGER.warning(line if line.startswith("yolo-patches") else f"yolo-patches: {line}")
