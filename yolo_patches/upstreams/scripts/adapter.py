"""The adapter of a script upstream: which functions are wrapped, and where a plan is forecast."""

from __future__ import annotations

import functools
import os
import runpy
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from yolo_patches import registry
from yolo_patches.activation import activation
from yolo_patches.adapter import Adapter, Install
from yolo_patches.errors import PatchesError
from yolo_patches.forecast import Forecast, Foreseen, forecasting
from yolo_patches.seams import Seam
from yolo_patches.selection import parse
from yolo_patches.upstreams.scripts import command_line, importing, recognition
from yolo_patches.upstreams.scripts.layout import Layout
from yolo_patches.upstreams.scripts.session import Session, caller
from yolo_patches.wrapping import Wrapping

#: Modules that import pkg_resources.
IMPORTERS = ("utils.general", "utils.loggers")

Call = Callable[..., Any]
Arguments = tuple[Any, ...]
Keywords = dict[str, Any]


class Scripts(Adapter):
    """Adapter for the training scripts of one upstream, in a checkout or as an installed package.

    Args:
        layout: Of the upstream.
        install: Wraps what is in one of the criteria's modules, or the assigner's, given its name in a checkout.
        floored: Tells whether a criterion's class keeps its normaliser away from zero.
    """

    def __init__(
        self,
        layout: Layout,
        install: Callable[[Session, str, ModuleType], None],
        floored: Callable[[type], bool],
    ) -> None:
        self.name = layout.name  # type: ignore[misc]
        self.packages = (layout.name, *recognition.OF_A_CHECKOUT)  # type: ignore[misc]
        self.layout = layout
        self._install = install
        self._floored = floored
        self._sessions: dict[Path, Session] = {}

    def recognises(self, spec: ModuleSpec) -> bool:
        """Return whether a package is this upstream's, by the files that lie beside it."""
        return recognition.of_package(spec) == self.name

    def installed(self) -> bool:
        """Return whether this folder is a checkout, or the package is installed."""
        return recognition.home(self.name) is not None

    def hooks(self) -> Mapping[str, Install]:
        """Return the modules in which something is wrapped: those of a checkout, and those of the package."""
        return {
            prefix + module: functools.partial(self._imported, module)
            for module in self.layout.modules()
            for prefix in ("", f"{self.name}.")
        }

    def prepare(self, wrapping: Wrapping) -> None:
        """Be there before the first line of the modules whose imports fail."""
        names = frozenset(prefix + module for module in IMPORTERS for prefix in ("", f"{self.name}."))

        def before(module: ModuleType) -> Mapping[str, ModuleType]:
            session = self._session(module, wrapping)
            return {} if session is None else _only_here(session)

        importing.install(importing.Importing(names, before), wrapping)
        wrapping.then(self._sessions.clear)

    def missing(self) -> Mapping[type[Seam], str]:
        """Return the seams that the checkout, or the installed package, lacks."""
        from yolo_patches.upstreams.scripts import script_seams

        root = self._home()
        script = next((script for script in self.layout.scripts if (root / script).is_file()), "train.py")
        return script_seams.missing(self.layout, root, script)

    def version(self) -> str:
        """Return the package's version; a checkout has none."""
        from yolo_patches.upstreams.scripts.script_facts import version

        return version(self.layout, self._home())

    def command(self, words: list[str]) -> int:
        """Run one of the training scripts with these words: the first is its path."""
        script = str(Path(words[0]).resolve())
        arguments, given = command_line.split(words[1:])
        if given is not None:
            parse(given, registry.specs(), f"argument {command_line.FLAG}")
        activation.command_line = given
        sys.argv[:] = [words[0], *arguments]
        sys.path.insert(0, os.path.dirname(script))
        runpy.run_path(script, run_name="__main__")
        return 0

    def forecast(self, words: list[str]) -> Foreseen:
        """Let the script come as far as its `train()`, which has every argument and has made nothing."""
        script = Path(words[0]).resolve()
        if not any(script == Path(folder, name) for folder in script.parents for name in self._scripts(folder)):
            raise PatchesError(f"{words[0]} is no training script; {self.name} has {', '.join(self.layout.scripts)}")
        token = forecasting.set(True)
        try:
            self.command(words)
        except Forecast as forecast:
            return forecast.foreseen
        except PatchesError:
            raise
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]
            raise PatchesError(
                f"{words[0]} did not come as far as training: {type(error).__name__}: {lines[0]}"
            ) from error
        finally:
            forecasting.reset(token)
        raise PatchesError(f"'{' '.join(words)}' starts no training")

    def _scripts(self, folder: Path) -> list[str]:
        return list(self.layout.scripts) if recognition.find(folder) == self.name else []

    def _home(self) -> Path:
        home = recognition.home(self.name)
        if home is None:
            raise PatchesError(f"{self.name} is not installed, and this folder is no checkout of it")
        return Path(home)

    def _session(self, module: ModuleType, wrapping: Wrapping) -> Session | None:
        """Return the session of the checkout that a module belongs to, or None: many projects have a `utils`."""
        parts = module.__name__.split(".")
        depth = len(parts) - (parts[0] == self.name)
        origin = getattr(module.__spec__, "origin", None)
        if origin is None:
            return None
        file = Path(origin).resolve()
        root = file.parents[depth if file.name == "__init__.py" else depth - 1]
        if root not in self._sessions:
            if recognition.find(root) != self.name:
                return None
            self._sessions[root] = Session(self.layout, root, wrapping)
            self._into_script(self._sessions[root])
        return self._sessions[root]

    def _imported(self, name: str, module: ModuleType, wrapping: Wrapping) -> None:
        """Wrap what is called in a module that has just been imported."""
        session = self._session(module, wrapping)
        if session is None:
            return
        from yolo_patches.upstreams.scripts import functions

        functions.stand_in(session, module)
        functions.install(session, name, module)
        for task in self.layout.tasks.values():
            if name in task.criteria or name == task.assigner:
                self._install(session, name, module)
                break
        if name == "utils.torch_utils":
            if "select_device" not in vars(module) and session.script and session.selection.chosen:
                session.tell(f"yolo-patches: inactive, {module.__name__}.select_device does not exist")
            wrapping.wrap(module, "select_device", functools.partial(self._select_device, session))

    def _into_script(self, session: Session) -> None:
        """Let the script clip gradients, and load and save files, by way of us."""
        if session.module is not None and session.selection.chosen:
            from yolo_patches.upstreams.scripts import functions

            functions.stand_in(session, session.module, script=True)

    def _into_modules(self, session: Session) -> None:
        """Put stand-ins into the modules that have been imported before they were asked for."""
        from yolo_patches.upstreams.scripts import functions

        names = (prefix + module for module in self.layout.modules() for prefix in ("", f"{self.name}."))
        for module in [sys.modules[name] for name in names if name in sys.modules]:
            if self._session(module, session.wrapping) is session:
                functions.stand_in(session, module)

    def _select_device(self, session: Session, wrapped: Call, _: object, args: Arguments, kwargs: Keywords) -> Any:
        """Wrap `train()`: this is what main() calls right before it, on every rank, when the script is complete."""
        files = {(session.root / script).resolve(): script for script in self.layout.scripts}
        module = caller(lambda names: Path(str(names.get("__file__", ""))).resolve() in files and "train" in names)
        if module is not None:
            self._wrap_train(session, module, files[Path(str(module.__file__)).resolve()])
        elif session.script and session.selection.chosen:
            session.tell(f"yolo-patches: inactive, {session.script} has no function train")
        if forecasting.get():
            return import_module("torch").device("cpu")
        return wrapped(*args, **kwargs)

    def _wrap_train(self, session: Session, module: ModuleType, script: str) -> None:
        from yolo_patches.upstreams.scripts import functions, train_call

        before = session.wrapping.mark()
        try:
            session.hear()
            session.script, session.module = script, module  # it may be another than the one that imported the rest
            self._into_script(session)
            self._into_modules(session)
            session.wrap_once(module, "train", train_call.wrapper(session, self._floored))
            validation = vars(module).get("validate")
            if isinstance(validation, ModuleType) and "run" in vars(validation):
                session.wrap_once(validation, "run", functools.partial(functions.validate, session))
        except Exception as error:  # all of it or nothing, and upstream goes on
            session.wrapping.back_to(before)
            session.tell(f"yolo-patches: {script} trains as upstream has it: {type(error).__name__}: {error}")


def _only_here(session: Session) -> Mapping[str, ModuleType]:
    from importlib.util import find_spec

    from yolo_patches.upstreams import stack

    if find_spec(stack.PKG_RESOURCES) is not None or not session.asks(stack.PKG_RESOURCES):
        return {}
    session.filled.add(stack.PKG_RESOURCES)
    return {stack.PKG_RESOURCES: stack.pkg_resources()}
