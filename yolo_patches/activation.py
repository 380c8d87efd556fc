"""What is active in this process: the adapters that wait or have wrapped, and the selection in force."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import wrapt

from yolo_patches import registry
from yolo_patches._bootstrap import disarm
from yolo_patches.adapter import Install
from yolo_patches.selection import Selection, parse
from yolo_patches.wrapping import Wrapping

ENVIRONMENT = "YOLO_PATCHES"
ABSENT: Any = object()  # "not given", where None is a value that users write


class Activation:
    """The process-wide state behind `apply`, `revert` and the start-up hook; one instance, `activation`."""

    def __init__(self) -> None:
        self._wrappings: dict[str, Wrapping] = {}
        self._registered: set[str] = set()
        self._running: dict[str, list[Callable[[ModuleType], None]]] = {}  # modules whose first lines are under way
        self.left_alone: dict[str, str] = {}  # upstream module -> why nothing in it is wrapped
        self.command_line: str | None = None  # patches= of the `yolo` command that this process is
        self.argument: Selection | None = None  # patches= of the training call that is under way
        self.applied: Selection | None = None
        self.last_plan: Any = None  # of the last training in this process, for status()
        self.current: Any = None  # the Lifecycle of the training that is under way, for wrappers on classes

    @property
    def active(self) -> tuple[str, ...]:
        """Names of the adapters that have wrapped their upstream or wait for its import."""
        return tuple(self._wrappings)

    def watch(self, name: str) -> None:
        """Let the adapter `name` wrap its upstream's modules, at once where they are imported, else when they are."""
        if name in self._wrappings:
            return
        adapter = registry.adapter(name)
        if adapter is None:
            return
        wrapping = self._wrappings[name] = Wrapping()
        adapter.prepare(wrapping)
        for module, install in adapter.hooks().items():
            if getattr(getattr(sys.modules.get(module), "__spec__", None), "_initializing", False):
                self._running.setdefault(module, []).append(self._hook(name, install))  # the package that woke us
            elif name in self._registered:  # wrapt keeps its hooks for good: register once, ask at call time
                if module in sys.modules:
                    self._install(install, sys.modules[module], wrapping)
            else:
                wrapt.register_post_import_hook(self._hook(name, install), module)
        self._registered.add(name)

    def executed(self, module: ModuleType) -> None:
        """Wrap in a module that woke an adapter, now that all of its lines have run."""
        for hook in self._running.pop(module.__name__, []):
            hook(module)

    def _hook(self, name: str, install: Install) -> Callable[[ModuleType], None]:
        def hook(module: ModuleType) -> None:
            if name in self._wrappings:  # reverted in the meantime: upstream stays as it is
                self._install(install, module, self._wrappings[name])

        return hook

    def _install(self, install: Install, module: ModuleType, wrapping: Wrapping) -> None:
        """Wrap in a module, or leave it as it is: somebody's import must not fail because of us."""
        before = wrapping.mark()
        try:
            install(module, wrapping)
            self.left_alone.pop(module.__name__, None)
        except Exception as error:
            wrapping.back_to(before)
            self.left_alone[module.__name__] = f"{type(error).__name__}: {error}"

    def revert(self) -> None:
        """Put every upstream attribute back, forget the applied selection, and let the start-up hook rest."""
        for name, wrapping in list(self._wrappings.items()):
            wrapping.undo()
            del self._wrappings[name]
        disarm()
        self.applied = self.command_line = None

    def selection(self, argument: Any = ABSENT) -> Selection | None:
        """Return the selection in force by authority, or None where nobody speaks.

        The training call's `patches=` comes first, then the `yolo` command line's, then `argument`, then `apply`, then
        the environment variable.

        Args:
            argument: The `patches` key of upstream's own configuration, where it has one.

        Raises:
            PatchesError: The one that counts is not valid.
        """
        if self.argument is not None:
            return self.argument
        if self.command_line is not None:
            return parse(self.command_line, registry.specs())
        if argument is not ABSENT:
            return parse(argument, registry.specs())
        if self.applied is not None:
            return self.applied
        if ENVIRONMENT in os.environ:
            return parse(os.environ[ENVIRONMENT], registry.specs(), ENVIRONMENT)
        return None

    @contextmanager
    def call(self, argument: Any) -> Iterator[None]:
        """Hold a training call's `patches=` for its duration, for this process and for the children that it starts.

        Args:
            argument: The value, or ABSENT where the call has none.

        Raises:
            PatchesError: The value is not valid.
        """
        before = self.argument
        if self.command_line is not None:
            # In a `yolo` process the call's own argument can only come from a cfg= file, which the command line beats.
            argument = self.command_line
        if argument is not ABSENT:
            self.argument = parse(argument, registry.specs())
        # A tuner's children are `yolo` processes of their own, and hear of apply() only by the environment.
        in_force = self.argument or self.applied
        try:
            if in_force is None:
                yield
            else:
                with environment({ENVIRONMENT: in_force.text}):
                    yield
        finally:
            self.argument = before


activation = Activation()


def wake(name: str, spec: Any) -> None:
    """Activate the adapters that a package wakes, right before its first line runs."""
    for adapter in registry.adapters():
        if name in adapter.packages and adapter.recognises(spec):
            activation.watch(adapter.name)


@contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
    """Hand values to child processes: upstreams start workers as subprocesses that inherit the environment."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
