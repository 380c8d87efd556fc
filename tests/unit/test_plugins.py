"""Third-party patches: found through entry points as ours are, and skipped with a warning when broken."""

from __future__ import annotations

import json

GOOD = """
from yolo_patches.plan import Decision
from yolo_patches.patch import Patch

class Hello(Patch):
    name, summary, source, default, needs = "hello", "says hello", "https://example.org", False, ()
    def decide(self, facts): return Decision("active", "hello")
    def handlers(self): return {}
    def verify(self, live): return True
"""


def plugin(folder, name, module, text, points):
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[yolo_patches.patches]\n" + "\n".join(points))
    (folder / f"{module}.py").write_text(text)


def listed(python, folder):
    done = python("-m", "yolo_patches", "list", "--json", PYTHONPATH=str(folder))
    return {row["name"] for row in json.loads(done.stdout)["patches"]}, done.stderr


def test_a_third_party_patch_is_listed(python, tmp_path):
    plugin(tmp_path / "site", "hello", "hello_patch", GOOD, ["hello = hello_patch:Hello"])
    names, stderr = listed(python, tmp_path / "site")
    assert {"hello", "val-batch"} <= names
    assert "skipped" not in stderr


def test_broken_ones_are_skipped_with_a_warning(python, tmp_path):
    points = ["gone = no_such_module:Patch", "dead = dead_patch:Patch", "wrong = dead_patch_not:nothing"]
    plugin(tmp_path / "site", "dead", "dead_patch", "raise RuntimeError('dead')", points)
    plugin(tmp_path / "site", "misnamed", "hello_patch", GOOD, ["other = hello_patch:Hello", "int = builtins:int"])
    names, stderr = listed(python, tmp_path / "site")
    assert "val-batch" in names
    assert not names & {"gone", "dead", "wrong", "other", "int"}
    for name in ("gone", "dead", "wrong", "other", "int"):
        assert f"plugin '{name}'" in stderr
    assert "RuntimeError: dead" in stderr
