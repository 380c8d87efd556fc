"""Imports go one way: patches and layers know no upstream, adapters know no patch, the start-up hook knows nothing."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "yolo_patches"
#: Modules that a module must not import, by where it lies. `None` stands for the package's own top level.
FORBIDDEN = {
    "patches": ("yolo_patches.upstreams", "ultralytics", "models", "utils"),
    "nn": ("yolo_patches.upstreams", "yolo_patches.patches", "yolo_patches.lifecycle", "ultralytics"),
    "recipes": ("yolo_patches.upstreams", "yolo_patches.patches", "ultralytics"),
    "upstreams": ("yolo_patches.patches",),
    None: ("ultralytics",),
}
#: The commands, which are made of everything, and the one in which Ultralytics' own is run.
ABOVE = {"cli.py", "__main__.py", "verify.py", "api.py"}


def imported(file):
    """Return every module that a file imports at its top level, but for what only type checkers see."""
    names = []
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def files():
    return sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("room", list(FORBIDDEN), ids=str)
def test_imports_go_one_way(room):
    for file in files():
        parts = file.relative_to(PACKAGE).parts
        if (parts[0] if len(parts) > 1 else None) != room or (room is None and parts[0] in ABOVE):
            continue
        text = file.read_text()
        for name in FORBIDDEN[room]:
            assert not any(f"{found}.".startswith(f"{name}.") for found in imported(file)), (file.name, name)
            if room == "patches":  # not inside functions either
                assert f"import {name}" not in text and f"from {name}" not in text, (file.name, name)


def test_the_core_knows_no_adapter():
    for file in files():
        parts = file.relative_to(PACKAGE).parts
        if len(parts) == 1 and parts[0] not in ABOVE:
            assert not [name for name in imported(file) if name.startswith("yolo_patches.upstreams")], file.name


def test_there_is_no_circle():
    """No module is among those that it imports, directly or not, at the top level."""
    graph = {}
    for file in files():
        name = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        graph[name] = imported(file)
    known = set(graph)

    def reached(name, seen):
        for target in graph[name]:
            for module in (target, target.rpartition(".")[0]):
                if module in known and module not in seen and module != "yolo_patches":
                    seen.add(module)
                    reached(module, seen)
        return seen

    assert [name for name in graph if name in reached(name, set())] == []


def test_small_modules():
    """What grows beyond one reason to change is split."""
    long = {file.name: lines for file in files() if (lines := len(file.read_text().splitlines())) > 420}
    assert long == {}


def test_no_path_of_anybodys_machine():
    for file in [*files(), *Path(ROOT, "docs").glob("*.md"), ROOT / "README.md"]:
        assert str(ROOT) not in file.read_text(), file
        assert not re.search(r"""(^|[\s"'`(=])/(home|root|Users|mnt|tmp)/""", file.read_text()), file
