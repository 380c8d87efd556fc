"""One checkout in this process: which of its scripts runs, what was asked for, and what is unpickled on whose word."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn

from yolo_patches import registry
from yolo_patches.activation import activation
from yolo_patches.errors import PatchesError
from yolo_patches.forecast import forecasting
from yolo_patches.lifecycle import consult
from yolo_patches.resumption import taken_up
from yolo_patches.seams import StackGap
from yolo_patches.selection import NONE, Selection, parse
from yolo_patches.upstreams.scripts import command_line
from yolo_patches.upstreams.scripts.layout import Layout
from yolo_patches.wrapping import Wrapper, Wrapping

if TYPE_CHECKING:
    from yolo_patches.upstreams.scripts.training import Training

#: Arguments with which users name files that upstream unpickles.
NAMING = ("--weights", "--resume")


def fail(error: PatchesError) -> NoReturn:
    """End the script as its own argument parser would."""
    print(f"{Path(sys.argv[0]).name}: error: {error}", file=sys.stderr)
    raise SystemExit(2) from None


class Session:
    """A checkout, or installed package, some of whose modules are being imported.

    Args:
        layout: Of the upstream.
        root: Where its modules lie.
        wrapping: Records what is replaced.
    """

    def __init__(self, layout: Layout, root: Path, wrapping: Wrapping) -> None:
        self.layout = layout
        self.root = root
        self.wrapping = wrapping
        self.filled: set[str] = set()
        self.own: Path | None = None  # the weights folder of the run under way
        self.named: list[Any] = []  # files that the user named, beside those on the command line
        self._once: dict[tuple[ModuleType, str], Any] = {}
        self.training: Training | None = None  # the one that is under way
        self.script, self.module = self._running()
        self.selection = self._selection()

    def wrap_once(self, module: ModuleType, name: str, wrapper: Wrapper) -> None:
        """Wrap a function of a module, unless that has been done: several trainings may share it."""
        if self._once.get((module, name), self) is not vars(module)[name]:
            self.wrapping.wrap(module, name, wrapper)
            self._once[module, name] = vars(module)[name]

    def hear(self) -> None:
        """Take up what was asked for since the checkout was imported."""
        self.selection = activation.selection() or self.selection

    def tell(self, line: str) -> None:
        """Log one line of warning as the script does, or on stderr where it has no logger yet."""
        logger = None if self.module is None else vars(self.module).get("LOGGER")
        if logger is None:
            print(line, file=sys.stderr)
        else:
            logger.warning(f"WARNING {line}")

    def asks(self, gap: str, trusted: bool = False) -> bool:
        """Return whether a selected patch wants a gap of the stack filled; `doctor` must come through in any case."""
        if forecasting.get():
            return True
        try:
            return consult(self.selection, StackGap(gap, trusted)).fill
        except Exception as error:  # a patch of somebody's, while upstream is imported or loads a file
            print(f"yolo-patches: nothing stands in for {gap}: {type(error).__name__}: {error}", file=sys.stderr)
            return False

    def trusts(self, file: Any) -> bool:
        """Return whether a file may be unpickled without restrictions."""
        try:
            path = Path(file).resolve()
        except (TypeError, OSError, ValueError):  # an open file: nobody named it
            return False
        own = self.own is not None and path.parent == self.own.resolve()
        named = any(path == _local(str(name)) for name in self._named())
        latest = "--resume" in sys.argv and not command_line.value("--resume") and path.name.startswith("last")
        return self.asks("torch.load", own or named or latest)

    def _named(self) -> list[Any]:
        return [name for name in (*self.named, *map(command_line.value, NAMING)) if name]

    def _running(self) -> tuple[str, ModuleType | None]:
        """Return the training script that imports us, from the root, and its module; empty where there is none."""
        files = {(self.root / script).resolve(): script for script in self.layout.scripts}
        frame = sys._getframe()
        while frame is not None:
            script = files.get(Path(str(frame.f_globals.get("__file__", ""))).resolve())
            if script is not None:
                return script, _module(frame.f_globals)
            frame = frame.f_back  # type: ignore[assignment]
        return "", None

    def _selection(self) -> Selection:
        try:
            if self.script or self._is_command():
                sys.argv[1:], given = command_line.split(sys.argv[1:])
                if given is not None:
                    parse(given, registry.specs(), f"argument {command_line.FLAG}")
                    activation.command_line = given
            chosen = activation.selection()
        except PatchesError as error:
            if forecasting.get():
                raise
            if not self.script and not self._is_command():
                return NONE  # it does not train: what it was given for training is no concern of it
            fail(error)
        return chosen or self.taken_up(command_line.value("--resume"))[0]

    def taken_up(
        self, checkpoint: str, said: Selection | None = None
    ) -> tuple[Selection, Mapping[str, Mapping[str, Any]]]:
        """Return the selection, `default` for a new run where nobody said any, and a resumed run's plan, by patch.

        Args:
            checkpoint: What is resumed; empty for a new run, and where upstream will look for its latest.
            said: The selection that somebody has asked for, or None.
        """
        if checkpoint:
            return taken_up(checkpoint, said, lambda line: self.tell(f"yolo-patches: {line}"))
        return said or parse("default", registry.specs()), {}

    def _is_command(self) -> bool:
        """Return whether this process is `yolov5 train`, or `python -m yolov5.train`, of an installed package.

        While `python -m` looks its module up, argv[0] is "-m", and only orig_argv (Python 3.10) names the module.
        """
        scripts = {f"{self.layout.name}.{script[:-3].replace('/', '.')}" for script in self.layout.scripts}
        by_name = sys.argv[:1] == ["-m"] and not scripts.isdisjoint(getattr(sys, "orig_argv", ()))
        return by_name or (Path(sys.argv[0]).stem == self.layout.name and "train" in sys.argv[1:3])


def _local(name: str) -> Path:
    """Return where upstream looks for a file that the user names; it downloads a URL into this folder."""
    return Path(name.partition("?")[0].rpartition("/")[2] if "://" in name else name).resolve()


def _module(namespace: Mapping[str, Any]) -> ModuleType | None:
    return next((m for m in list(sys.modules.values()) if getattr(m, "__dict__", None) is namespace), None)


def caller(test: Callable[[Mapping[str, Any]], bool]) -> ModuleType | None:
    """Return the nearest module on the stack whose globals pass a test."""
    frame = sys._getframe()
    while frame is not None:
        if test(frame.f_globals):
            return _module(frame.f_globals)
        frame = frame.f_back  # type: ignore[assignment]
    return None
