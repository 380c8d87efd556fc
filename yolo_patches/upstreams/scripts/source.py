"""What the source files of a checkout say. Nothing is imported for that, and comments do not count.

Several scripts have their callbacks commented out, line by line.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path


@cache
def _parsed(file: Path) -> ast.Module | None:
    try:
        return ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return None


@cache
def functions(file: Path) -> Mapping[str, tuple[str, ...]]:
    """Return the functions and methods that a file defines -> their parameters; empty where it cannot be read."""
    tree, found = _parsed(file), {}
    for node in tree.body if tree else ():
        members = [(f"{node.name}.", child) for child in node.body] if isinstance(node, ast.ClassDef) else [("", node)]
        for prefix, child in members:
            if isinstance(child, ast.FunctionDef):
                found[prefix + child.name] = tuple(argument.arg for argument in child.args.args)
    return found


@cache
def code(file: Path) -> str:
    """Return a file's code without its comments, quoted and spaced in one way; empty where it cannot be read."""
    tree = _parsed(file)
    return "" if tree is None else ast.unparse(tree)


@cache
def options(file: Path) -> Mapping[str, str]:
    """Return every long option of a script's argument parser, as an attribute would be spelled -> its attribute."""
    found = {}
    for names, keywords in _declared(file):
        attribute = ast.literal_eval(keywords["dest"]) if "dest" in keywords else names[0]
        found.update(dict.fromkeys(names, str(attribute)))
    return found


def default_file(file: Path, option: str) -> str | None:
    """Return the path, from the checkout's root, that an option of a script has as its default."""
    for names, keywords in _declared(file):
        if option in names and "default" in keywords:
            texts = [node.value for node in ast.walk(keywords["default"]) if isinstance(node, ast.Constant)]
            return str(texts[-1]) if texts else None
    return None


@cache
def validator(script: Path) -> str:
    """Return the module that a script calls `validate`, by its name in the checkout; empty where there is none."""
    tree = _parsed(script)
    for node in ast.walk(tree) if tree else ():
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            within = f"{node.module}." if isinstance(node, ast.ImportFrom) and node.module else ""
            named = [f"{within}{alias.name}" for alias in node.names if alias.asname == "validate"]
            if named:
                return named[0]
    return ""


@cache
def validation(file: Path) -> tuple[int, int] | None:
    """Return how many values a script takes from its validation, and how many figures the first of them has.

    None where what `.run(...)` returns is not unpacked into `results` and others, or `results` starts from no literal.
    """
    tree, values, figures = _parsed(file), 0, 0
    for node in ast.walk(tree) if tree else ():
        if not isinstance(node, ast.Assign):
            continue
        target, value = node.targets[0], node.value
        names = [getattr(name, "id", "") for name in target.elts] if isinstance(target, ast.Tuple) else []
        if names[:1] == ["results"] and isinstance(value, ast.Call) and getattr(value.func, "attr", "") == "run":
            values = values or len(names)
        if getattr(target, "id", "") == "results" and isinstance(value, ast.Tuple):
            figures = figures or len(value.elts)
    return (values, figures) if values and figures else None


def _declared(file: Path) -> Iterator[tuple[list[str], Mapping[str, ast.expr]]]:
    tree = _parsed(file)
    for node in ast.walk(tree) if tree else ():
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument":
            words = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
            names = [str(word)[2:].replace("-", "_") for word in words if str(word).startswith("--")]
            if names:
                yield names, {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg}
