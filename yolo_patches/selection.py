"""The `patches=` grammar: from what the user wrote to the patches and options that were asked for.

A specification is comma-separated; an item is `all`, `default`, `none`, `name`, `-name` or
`name:option=value[:option=value]`. Items are read from left to right and later items win. Lists and dicts are accepted
wherever a string is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from yolo_patches.errors import PatchesError, nearest

GROUPS = ("all", "default", "none")
#: The one value with a colon of its own, which does not begin another option: a device such as cuda:1.
DEVICE_NUMBER = re.compile(r"(=\s*[a-z]+):(?=\d+\s*(?::|$))")


@dataclass(frozen=True)
class Option:
    """One option of a patch.

    Attributes:
        kind: Type of the value: int, float, bool or str.
        help: One line for `yolo-patches list`.
        default: Value when the option is not given.
        minimum: Smallest valid number, inclusive.
        maximum: Largest valid number, inclusive.
        choices: Valid strings; empty means any.
        words: Words that are valid beside values of the type, e.g. "auto".
    """

    kind: type
    help: str
    default: Any = None
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    words: tuple[str, ...] = ()

    def describe(self) -> str:
        """Return what is valid, in words, e.g. "an int of at least 1"."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        words = {int: "an int", float: "a number", bool: "true or false", str: "a string"}[self.kind]
        bounds = []
        if self.minimum is not None:
            bounds.append(f"at least {self.minimum:g}")
        if self.maximum is not None:
            bounds.append(f"at most {self.maximum:g}")
        valid = words + (" of " + " and ".join(bounds) if bounds else "")
        return " or ".join([valid, *self.words])

    def parse(self, value: str) -> Any:
        """Return the text `value` as this option's type.

        Raises:
            ValueError: The value is of another type or out of range.
        """
        parsed: Any
        if value in self.words:
            return value
        if self.kind is bool:
            parsed = {"true": True, "false": False}.get(value.lower())
            if parsed is None:
                raise ValueError(value)
        else:
            parsed = self.kind(value)
        if self.choices and parsed not in self.choices:
            raise ValueError(value)
        if isinstance(parsed, float) and not math.isfinite(parsed):
            raise ValueError(value)
        if self.minimum is not None and parsed < self.minimum:
            raise ValueError(value)
        if self.maximum is not None and parsed > self.maximum:
            raise ValueError(value)
        return parsed


#: Options that every patch has.
COMMON_OPTIONS: Mapping[str, Option] = {
    "strict": Option(bool, "stop with an error where the installed upstream lacks what the patch needs", default=False),
}


@dataclass(frozen=True)
class Spec:
    """What the grammar must know about a registered patch."""

    default: bool
    options: Mapping[str, Option] = field(default_factory=dict)


@dataclass(frozen=True)
class Selection:
    """The patches that were asked for.

    Attributes:
        text: What the user wrote, as one string; parsing it again gives the same selection.
        chosen: Patch name -> the options given for it, parsed.
    """

    text: str
    chosen: Mapping[str, Mapping[str, Any]]

    def names(self, name: str) -> bool:
        """Return whether a patch was asked for by its own name, and not only through a group."""
        return any(item.partition(":")[0].strip() == name for item in self.text.split(","))


#: Exactly upstream.
NONE = Selection("none", {})


def parse(spec: Any, known: Mapping[str, Spec], source: str = "patches") -> Selection:
    """Parse a specification.

    Args:
        spec: A string, a list of items, a dict of patch name -> True, False or options; None and False mean "none" (the
            `yolo` command line turns the word none into None), True means "default".
        known: The registered patches.
        source: Where `spec` came from, for the error message.

    Returns:
        The selection.

    Raises:
        PatchesError: Unknown patch or option, bad value, empty item, removal of a patch that is not selected.
    """
    chosen: dict[str, dict[str, Any]] = {}
    items = _items(spec, source)
    for item in items:
        _apply_item(item, chosen, known, source)
    return Selection(",".join(items), chosen)


def _items(spec: Any, source: str) -> list[str]:
    """Return the specification as the grammar's items, whatever Python form it came in."""
    if spec is None or spec is False:
        return ["none"]
    if spec is True:
        return ["default"]
    if isinstance(spec, str):
        return [item.strip() for item in spec.split(",")]
    if isinstance(spec, (list, tuple)):
        parts = [_string(item, source) for item in spec]
    elif isinstance(spec, Mapping):
        parts = [_dict_item(name, value, source) for name, value in spec.items()]
    else:
        raise PatchesError(
            f"{source}: {spec!r} is a {type(spec).__name__}; give a string such as 'all,-val-batch', a list of such "
            "items, or a dict of patch name to True, False or options"
        )
    return _items(",".join(parts), source) if parts else ["none"]


def _string(item: Any, source: str) -> str:
    if not isinstance(item, str):
        raise PatchesError(f"{source}: item {item!r} is a {type(item).__name__}; it must be a string")
    return item


def _dict_item(name: Any, value: Any, source: str) -> str:
    name = _string(name, source)
    if value is False:
        return f"-{name}"
    if value is True or value is None:
        value = {}
    if not isinstance(value, Mapping):
        raise PatchesError(f"{source}: {name!r}: {value!r} is not valid; give True, False or a dict of options")
    return spell({name: value})[0]


def spell(chosen: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return patches and their options as items of the grammar."""
    return [
        ":".join([name, *(f"{key}={_text(value)}" for key, value in given.items())]) for name, given in chosen.items()
    ]


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _apply_item(item: str, chosen: dict[str, dict[str, Any]], known: Mapping[str, Spec], source: str) -> None:
    if not item:
        raise PatchesError(f"{source}: empty item; {_valid(known)}")
    if item in GROUPS:
        if item == "none":
            chosen.clear()
        chosen.update({n: {} for n, spec in known.items() if item == "all" or (item == "default" and spec.default)})
        return
    if item.startswith("-"):
        name = item[1:].strip()
        _check_name(name, item, known, source)
        if name not in chosen:
            selected = ", ".join(chosen) or "nothing"
            raise PatchesError(
                f"{source}: {item!r} removes a patch that is not selected (selected so far: {selected}); "
                f"write it after what it is taken from, e.g. 'all,{item}'"
            )
        del chosen[name]
        return
    name, *pairs = (part.strip() for part in DEVICE_NUMBER.sub(r"\1\0", item).split(":"))
    _check_name(name, item, known, source)
    valid = {**COMMON_OPTIONS, **known[name].options}
    options: dict[str, Any] = {}
    for pair in (pair.replace("\0", ":") for pair in pairs):
        key, equals, text = (part.strip() for part in pair.partition("="))
        if not equals:
            raise PatchesError(f"{source}: {pair!r} in {item!r} is not of the form option=value")
        if key not in valid:
            raise PatchesError(
                f"{source}: unknown option {key!r} in {item!r}{nearest(key, valid)}; {name} takes {', '.join(valid)}"
            )
        try:
            options[key] = valid[key].parse(text)
        except ValueError:
            raise PatchesError(
                f"{source}: {text!r} is not valid for {name}:{key}; it must be {valid[key].describe()}"
            ) from None
    chosen[name] = options


def _check_name(name: str, item: str, known: Mapping[str, Spec], source: str) -> None:
    if name not in known:
        raise PatchesError(
            f"{source}: unknown patch {name!r} in {item!r}{nearest(name, (*GROUPS, *known))}; {_valid(known)}"
        )


def _valid(known: Mapping[str, Spec]) -> str:
    return f"valid are {', '.join((*GROUPS, *sorted(known)))}, -name, and name:option=value"
