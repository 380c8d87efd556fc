"""Ultralytics' command line and its `YOLO(...)` methods: where users write `patches=`.

The key is consumed before upstream stores anything: it never reaches args.yaml, a checkpoint or a logger's config.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from pathlib import Path
from types import ModuleType
from typing import Any, Optional

from yolo_patches.activation import ABSENT, activation
from yolo_patches.errors import PatchesError
from yolo_patches.facts import Given
from yolo_patches.wrapping import LackingError, Wrapping

KEY = "patches"
COMMANDS = frozenset({"yolo", "yolo.exe", "ultralytics", "ultralytics.exe"})
TRAINING = ("train", "tune")
NOT_TRAINING = ("val", "predict", "track", "export", "benchmark", "embed")

#: What the user gave to the `train()` call that is under way.
given: ContextVar[Optional[Given]] = ContextVar("given", default=None)
#: The YOLO object whose `train()` it is.
subject: ContextVar[Any] = ContextVar("subject", default=None)


def take_argument(module: ModuleType, wrapping: Wrapping) -> None:
    """Take `patches=...` out of the `yolo` command's arguments, in place, before upstream parses them.

    In place, because upstream keeps the list under other names; this early, because the tuner starts its children as
    `python -m ultralytics.cfg.__init__`, a second copy of that module in which no wrapper of ours exists.
    """
    if _is_yolo_command():
        kept, activation.command_line = split(sys.argv[1:])
        sys.argv[1:] = kept


def _is_yolo_command() -> bool:
    if Path(sys.argv[0] if sys.argv else "").name in COMMANDS:
        return True
    # While `python -m` looks a module up, argv[0] is "-m" and only orig_argv (Python 3.10) names the module.
    command = getattr(sys, "orig_argv", ["ultralytics.cfg.__init__"])
    return sys.argv[:1] == ["-m"] and any(word.startswith("ultralytics.cfg") for word in command)


def split(arguments: list[str]) -> tuple[list[str], str | None]:
    """Split `patches=value` off a command's arguments, in every spelling that upstream allows for its own keys.

    Args:
        arguments: e.g. ["train", "patches=all", "epochs=1"]; also "patches = all", "--patches=all".

    Returns:
        The other arguments, and the value of the last one ("" where a value is missing, None where there is none).
    """
    kept: list[str] = []
    value: str | None = None
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        key, equals, text = word.partition("=")
        if key.lstrip("-") != KEY:
            kept.append(word)
            continue
        if not equals and rest and rest[0].startswith("="):
            text = rest.pop(0)[1:]  # patches =all
            if not text and rest:
                text = rest.pop(0)  # patches = all
        elif equals and not text and rest and "=" not in rest[0]:
            text = rest.pop(0)  # patches= all
        value = text
    return kept, value


def install(module: ModuleType, wrapping: Wrapping) -> None:
    """Wrap `ultralytics.cfg`: bad input ends in one message, and `yolo ... cfg=file.yaml` may hold the key."""
    wrapping.wrap(module, "entrypoint", _entrypoint)
    wrapping.wrap(module, "check_dict_alignment", _check_dict_alignment)


def _entrypoint(wrapped: Callable[..., Any], instance: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    try:
        return wrapped(*args, **kwargs)
    except PatchesError as error:
        print(f"yolo-patches: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def _check_dict_alignment(
    wrapped: Callable[..., Any], instance: object, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    base = args[0] if args else kwargs.get("base")
    # The command line's own check is the one whose valid keys include the modes. Everywhere else the key has been
    # consumed, or is the mistake that upstream says it is. `custom` must stay the caller's object: upstream edits it.
    if isinstance(base, dict) and {"train", "predict"} <= base.keys():
        extended = {**base, KEY: None}
        if args:
            args = (extended, *args[1:])
        else:
            kwargs = {**kwargs, "base": extended}
    return wrapped(*args, **kwargs)


def install_model(module: ModuleType, wrapping: Wrapping) -> None:
    """Wrap the methods of `Model` that take keyword arguments."""
    if not hasattr(module, "Model"):
        raise LackingError("Model does not exist")
    for names, wrapper in ((TRAINING, _train), (NOT_TRAINING, _without_effect)):
        for name in names:
            if name in vars(module.Model):
                wrapping.wrap(module.Model, name, wrapper)


def _train(wrapped: Callable[..., Any], instance: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    kwargs = dict(kwargs)
    with activation.call(kwargs.pop(KEY, ABSENT)):
        _warn_where_nothing_is_patched()
        tokens = given.set(_given(kwargs)), subject.set(instance)
        try:
            return wrapped(*args, **kwargs)
        finally:
            given.reset(tokens[0])
            subject.reset(tokens[1])


def _given(arguments: Mapping[str, Any]) -> Given:
    """Return what the user gave to `train()`; on the command line, upstream has put a file's values among them."""
    typed = {word.lstrip("-").partition("=")[0].strip() for word in sys.argv[1:]} if _is_yolo_command() else None
    if typed is None:
        origins = dict.fromkeys(arguments, "Python")
    else:
        elsewhere = "file" if "cfg" in typed else "Python"
        origins = {name: "command line" if name in typed else elsewhere for name in arguments}
    return Given(dict(arguments), origins)


def _warn_where_nothing_is_patched() -> None:
    """Say so where this training cannot be patched at all, unless `none` was asked for.

    Raises:
        PatchesError: A patch was asked for as `strict`.
    """
    why = activation.left_alone.get("ultralytics.engine.trainer")
    selection = activation.selection()
    if why is None or (selection is not None and not selection.chosen):
        return
    from ultralytics.utils import LOGGER

    asked = "default" if selection is None else selection.text
    line = f"patches={asked} has no effect, this Ultralytics is not supported ({why})"
    if selection is not None and any(options.get("strict") for options in selection.chosen.values()):
        raise PatchesError(line)
    LOGGER.warning(f"yolo-patches: {line}: training goes on unpatched")


def _without_effect(
    wrapped: Callable[..., Any], instance: object, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    kwargs = dict(kwargs)
    given = kwargs.pop(KEY, ABSENT) is not ABSENT
    if activation.argument is None and activation.command_line is not None:
        given, activation.command_line = True, None
    if given:
        from ultralytics.utils import LOGGER

        LOGGER.warning(f"yolo-patches: 'patches=' has no effect on {wrapped.__name__}: patches act on training only")
    return wrapped(*args, **kwargs)
