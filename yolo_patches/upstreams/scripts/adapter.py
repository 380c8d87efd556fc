"""The adapter of a script upstream: which functions are wrapped, and where a plan is forecast."""

from __future__ import annotations

import functools
import os
import runpy
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from yolo_patches.activation import Adapter
from yolo_patches.errors import PatchesError
from yolo_patches.lifecycle import Forecast, forecasting
from yolo_patches.plan import Plan
from yolo_patches.seams import Seam
from yolo_patches.upstreams.scripts import importing, recognition
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
        self.layout = layout
        self._install = install
        self._floored = floored
        self._sessions: dict[Path, Session] = {}

    def hooks(self) -> Mapping[str, Callable[[ModuleType, Wrapping], None]]:
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
        from yolo_patches.upstreams.scripts.training import missing

        root = self._home()
        script = next((script for script in self.layout.scripts if (root / script).is_file()), "train.py")
        return missing(self.layout, root, script)

    def version(self) -> str:
        """Return the package's version; a checkout has none."""
        from yolo_patches.upstreams.scripts.training import version

        return version(self.layout, self._home())

    def command(self, words: list[str]) -> int:
        """Run one of the training scripts with these words: the first is its path."""
        script = str(Path(words[0]).resolve())
        sys.argv[:] = list(words)
        sys.path.insert(0, os.path.dirname(script))
        runpy.run_path(script, run_name="__main__")
        return 0

    def forecast(self, words: list[str]) -> Plan:
        """Let the script come as far as its `train()`, which has every argument and has made nothing."""
        script = Path(words[0]).resolve()
        if not any(script == Path(folder, name) for folder in script.parents for name in self._scripts(folder)):
            raise PatchesError(f"{words[0]} is no training script; {self.name} has {', '.join(self.layout.scripts)}")
        token = forecasting.set(True)
        try:
            self.command(words)
        except Forecast as forecast:
            return forecast.run.plan
        except PatchesError:
            raise
        except Exception as error:
            raise PatchesError(
                f"{words[0]} did not come as far as training: {type(error).__name__}: {error}"
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

        functions.stand_in(session, module, clip=None)
        functions.install(session, name, module)
        for task in self.layout.tasks.values():
            if name in task.criteria or name == task.assigner:
                self._install(session, name, module)
                break
        if name == "utils.torch_utils" and "select_device" in vars(module):
            wrapping.wrap(module, "select_device", functools.partial(self._select_device, session))

    def _into_script(self, session: Session) -> None:
        """Let the script clip gradients, and load files, by way of us."""
        if session.module is not None and session.selection.chosen:
            from yolo_patches.upstreams.scripts import functions

            functions.stand_in(session, session.module, clip=functions.clip(session))

    def _select_device(self, session: Session, wrapped: Call, _: object, args: Arguments, kwargs: Keywords) -> Any:
        """Wrap `train()`: this is what main() calls right before it, on every rank, when the script is complete."""
        files = {(session.root / script).resolve(): script for script in self.layout.scripts}
        module = caller(lambda names: Path(str(names.get("__file__", ""))).resolve() in files and "train" in names)
        if module is not None:
            self._wrap_train(session, module, files[Path(str(module.__file__)).resolve()])
        if forecasting.get():
            return import_module("torch").device("cpu")
        return wrapped(*args, **kwargs)

    def _wrap_train(self, session: Session, module: ModuleType, script: str) -> None:
        from yolo_patches.upstreams.scripts import functions
        from yolo_patches.upstreams.scripts.training import train

        if hasattr(module.train, "__wrapped__"):
            return
        why = self.layout.defects(session.root, script).get("script", [])
        if any("parameter" in line for line in why) or "ComputeLoss" not in vars(module):
            print(f"yolo-patches: {script} is not supported, training goes on unpatched {why}", file=sys.stderr)
            return
        if session.module is not module:  # imported by a command that had imported the rest before
            session.script, session.module = script, module
            self._into_script(session)
        session.wrapping.wrap(module, "train", train(session, self._floored))
        with suppress(AttributeError, KeyError):
            session.wrapping.wrap(module.validate, "run", functools.partial(functions.validate, session))


def _only_here(session: Session) -> Mapping[str, ModuleType]:
    from importlib.util import find_spec

    from yolo_patches.upstreams import stack

    if find_spec(stack.PKG_RESOURCES) is not None or not session.asks(stack.PKG_RESOURCES):
        return {}
    session.filled.add(stack.PKG_RESOURCES)
    return {stack.PKG_RESOURCES: stack.pkg_resources()}
