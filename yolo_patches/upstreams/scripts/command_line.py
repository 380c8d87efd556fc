"""The command line of a training script: our flag on it, and what the user has typed of the script's own."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping

from yolo_patches.errors import PatchesError

FLAG = "--patches"


def split(arguments: list[str]) -> tuple[list[str], str | None]:
    """Split `--patches SPEC` and `--patches=SPEC` off a script's arguments.

    Returns:
        The other arguments, and the value of the last one, or None.

    Raises:
        PatchesError: The flag comes without a value.
    """
    kept: list[str] = []
    value: str | None = None
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        key, equals, text = word.partition("=")
        if key != FLAG:
            kept.append(word)
            continue
        if not equals:
            # "-val-batch" would be a removal from nothing, "--epochs" is the next argument: neither is a value.
            if not rest or rest[0].startswith("-"):
                raise PatchesError(f"argument {FLAG}: expected one argument, e.g. {FLAG} all")
            text = rest.pop(0)
        value = text
    return kept, value


def value(flag: str) -> str:
    """Return a flag's value on this process's command line, empty where it has none."""
    for word, following in zip(sys.argv, [*sys.argv[1:], "-"]):
        key, equals, text = word.partition("=")
        if key == flag:
            return text if equals else "" if following.startswith("-") else following
    return ""


def typed(options: Mapping[str, str], attributes: Iterable[str]) -> set[str]:
    """Return the attributes of a script's arguments that this process's command line has set.

    Args:
        options: Long options, spelled as attributes are -> their attributes.
        attributes: All of them. `fire`, with which the package's command parses, takes any; argparse, any beginning.
    """
    known = {**{attribute: attribute for attribute in attributes}, **options}
    found: set[str] = set()
    for word in sys.argv[1:]:
        name = word.partition("=")[0]
        if not name.startswith("--"):
            continue
        name = name[2:].replace("-", "_")
        matches = [name] if name in known else [option for option in known if option.startswith(name)]
        targets = {known[match] for match in matches}
        if len(targets) == 1:
            found |= targets
    return found
