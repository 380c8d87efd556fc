"""What is active in this process: the adapters that wait or have wrapped, and the selection in force."""

from __future__ import annotations

import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any, ClassVar

import wrapt

from yolo_patches._bootstrap import disarm
from yolo_patches.plan import Plan
from yolo_patches.seams import Seam
from yolo_patches.selection import Selection, parse
from yolo_patches.wrapping import Wrapping

ENVIRONMENT = "YOLO_PATCHES"
ABSENT: Any = object()  # "not given", where None is a value that users write


class Adapter(ABC):
    """One upstream: the only code that knows its names. It decides no value.

    Attributes:
        name: Top-level import name, which is also the entry point's name.
    """

    name: ClassVar[str]

    @abstractmethod
    def hooks(self) -> Mapping[str, Callable[[ModuleType, Wrapping], None]]:
        """Return upstream module name -> function that wraps in that module, called once it has been imported."""

    def prepare(self, wrapping: Wrapping) -> None:  # noqa: B027 - most have nothing to prepare
        """Put in place what upstream's first import must meet; called whenever the adapter begins to wait."""

    @abstractmethod
    def missing(self) -> Mapping[type[Seam], str]:
        """Return the seams that the installed upstream lacks -> why. Imports upstream."""

    @abstractmethod
    def version(self) -> str:
        """Return upstream's version without importing it."""

    @abstractmethod
    def command(self, words: list[str]) -> int:
        """Run upstream's own command line with these words and return its exit status."""

    @abstractmethod
    def forecast(self, words: list[str]) -> Plan:
        """Return the plan of the training that upstream's command line would start with these words.

        Raises:
            PatchesError: These words start no training, or the training is refused.
        """


class Activation:
    """The process-wide state behind `apply`, `revert` and the start-up hook; one instance, `activation`."""

    def __init__(self) -> None:
        self._wrappings: dict[str, Wrapping] = {}
        self._registered: set[str] = set()
        self.command_line: str | None = None  # patches= of the `yolo` command that this process is
        self.argument: Selection | None = None  # patches= of the training call that is under way
        self.applied: Selection | None = None
        self.last_run: Any = None  # the Run of the last training in this process, for status()
        self.current: Any = None  # the Run of the training that is under way, for wrappers on classes

    @property
    def active(self) -> tuple[str, ...]:
        """Names of the adapters that have wrapped their upstream or wait for its import."""
        return tuple(self._wrappings)

    def watch(self, name: str) -> None:
        """Let the adapter `name` wrap its upstream's modules, at once where they are imported, else when they are."""
        from yolo_patches import registry

        if name in self._wrappings:
            return
        adapter = registry.adapter(name)
        if adapter is None:
            return
        wrapping = self._wrappings[name] = Wrapping()
        adapter.prepare(wrapping)
        for module, install in adapter.hooks().items():
            if name in self._registered:  # wrapt keeps its hooks for good: register once, ask at call time
                if module in sys.modules:
                    install(sys.modules[module], wrapping)
            else:
                wrapt.register_post_import_hook(self._hook(name, install), module)
        self._registered.add(name)

    def _hook(self, name: str, install: Callable[[ModuleType, Wrapping], None]) -> Callable[[ModuleType], None]:
        def hook(module: ModuleType) -> None:
            if name in self._wrappings:  # reverted in the meantime: upstream stays as it is
                install(module, self._wrappings[name])

        return hook

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
        from yolo_patches import registry

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
        from yolo_patches import registry

        if argument is ABSENT and self.command_line is None:
            yield
            return
        before = self.argument
        # In a `yolo` process the call's own argument can only come from a cfg= file, which the command line beats.
        selection = parse(argument if self.command_line is None else self.command_line, registry.specs())
        self.argument = selection
        try:
            with environment(selection.text):
                yield
        finally:
            self.argument = before


activation = Activation()


@contextmanager
def environment(text: str) -> Iterator[None]:
    """Hand a selection to child processes: upstreams start workers as subprocesses that inherit the environment."""
    before = os.environ.get(ENVIRONMENT)
    os.environ[ENVIRONMENT] = text
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(ENVIRONMENT, None)
        else:
            os.environ[ENVIRONMENT] = before
