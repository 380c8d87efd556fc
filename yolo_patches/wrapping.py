"""Replacing upstream attributes by wrappers, and putting the original objects back."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import wrapt

from yolo_patches.errors import PatchesError

#: (wrapped, instance, args, kwargs) -> result, as wrapt calls it.
Wrapper = Callable[[Callable[..., Any], Any, tuple[Any, ...], dict[str, Any]], Any]


class LackingError(PatchesError):
    """Upstream has no attribute of this name."""


class Call:
    """The arguments of one call by name, wherever they stand: a user's override may take them as `**kwargs`.

    Args:
        function: What is called.
        args: Its positional arguments.
        kwargs: Its keyword arguments.

    Raises:
        TypeError: The function does not take them.
    """

    def __init__(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        signature = inspect.signature(function)
        self._bound = signature.bind(*args, **kwargs)
        self._bound.apply_defaults()
        rest = [p.name for p in signature.parameters.values() if p.kind is inspect.Parameter.VAR_KEYWORD]
        self._rest = rest[0] if rest else ""

    def __contains__(self, name: str) -> bool:
        return name in self._bound.arguments or name in self._bound.arguments.get(self._rest, {})

    def __getitem__(self, name: str) -> Any:
        arguments = self._bound.arguments
        return arguments[name] if name in arguments else arguments.get(self._rest, {})[name]

    def __setitem__(self, name: str, value: Any) -> None:
        arguments = self._bound.arguments
        (arguments if name in arguments else arguments[self._rest])[name] = value

    @property
    def args(self) -> tuple[Any, ...]:
        """The positional arguments."""
        return self._bound.args

    @property
    def kwargs(self) -> dict[str, Any]:
        """The keyword arguments."""
        return self._bound.kwargs


class Wrapping:
    """The wrappers that one adapter has put in place, each undone by handle."""

    def __init__(self) -> None:
        self._handles: list[tuple[Any, str, Any, Any]] = []
        self._callbacks: list[Callable[[], None]] = []

    def wrap(self, owner: Any, name: str, wrapper: Wrapper) -> None:
        """Replace `owner.name`, defined on `owner` itself, by a wrapper with the same signature.

        Args:
            owner: A module or class.
            name: Attribute name.
            wrapper: Called with (wrapped, instance, args, kwargs).

        Raises:
            LackingError: The attribute does not exist.
        """
        if name not in vars(owner):
            raise LackingError(f"{getattr(owner, '__name__', owner)}.{name} does not exist")
        self.replace(owner, name, wrapt.FunctionWrapper(vars(owner)[name], wrapper))

    def replace(self, owner: Any, name: str, replacement: Any) -> None:
        """Replace `owner.name`, defined on `owner` itself, by another object."""
        original = vars(owner)[name]
        setattr(owner, name, replacement)
        self._handles.append((owner, name, original, replacement))

    def then(self, undo: Callable[[], None]) -> None:
        """Have a function called by `undo`: for what is no attribute, such as an import hook."""
        self._callbacks.append(undo)

    def mark(self) -> tuple[int, int]:
        """Return how far wrapping has come, for `back_to`."""
        return len(self._handles), len(self._callbacks)

    def back_to(self, mark: tuple[int, int]) -> None:
        """Put back what has been replaced since a mark: nobody else has seen it yet."""
        handles, callbacks = mark
        while len(self._handles) > handles:
            owner, name, original, _ = self._handles.pop()
            setattr(owner, name, original)
        while len(self._callbacks) > callbacks:
            self._callbacks.pop()()

    def undo(self) -> None:
        """Put every original object back, last wrapped first.

        Raises:
            PatchesError: Somebody else has wrapped on top of us; nothing is changed then.
        """
        for owner, name, _, wrapped in self._handles:
            if vars(owner).get(name) is not wrapped:
                raise PatchesError(
                    f"cannot revert: {getattr(owner, '__name__', owner)}.{name} has been replaced after yolo-patches "
                    "wrapped it; undo that replacement first"
                )
        self.back_to((0, 0))


def bind(instance: Any, name: str, wrapper: Wrapper) -> None:
    """Wrap a bound method on one object only: subclasses' overrides are covered, and the class stays as it was."""
    setattr(instance, name, wrapt.FunctionWrapper(getattr(instance, name), wrapper))


@contextmanager
def instead(owner: Any, name: str, function: Any) -> Iterator[None]:
    """Have something else under a name of a module, a class or an object."""
    before = vars(owner).get(name, owner)
    setattr(owner, name, function)
    try:
        yield
    finally:
        if vars(owner).get(name) is function:  # else somebody has replaced it meanwhile, and it is theirs
            if before is owner:
                delattr(owner, name)
            else:
                setattr(owner, name, before)
