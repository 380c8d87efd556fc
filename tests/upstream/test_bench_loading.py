"""bench-loading: the user's own images are read as upstream and each level would read them; nothing else happens."""

from __future__ import annotations

import json
from pathlib import Path

import psutil
import pytest

from tests.conftest import NEWEST, last_json
from yolo_patches import cores
from yolo_patches.patches.fast_load import FastLoad

COMMAND = ("-m", "yolo_patches", "bench-loading")
LEVELS = FastLoad.options["level"].choices
ONE = """
import json, sys
from dataclasses import asdict
from yolo_patches import registry
print(json.dumps(asdict(registry.adapter("ultralytics").loading(sys.argv[1:], "none", 0.2, 2))))
"""


def test_levels(python, release, digits, tmp_path):
    data = digits("segment")
    before = {path: path.stat().st_mtime for path in Path(data).parent.rglob("*")}
    words = (f"data={data}", "task=segment", "imgsz=64", "batch=4", "mosaic=1.0", "cache=disk")
    done = python(*COMMAND, "--seconds", "0.2", *words, "--json", **release(NEWEST))
    found = json.loads(done.stdout)
    assert list(found["arms"]) == ["upstream", *LEVELS]
    assert done.stderr.count("bench-loading: reading with patches=") == 1 + len(LEVELS)
    assert found["cores"] == cores.usable()
    for arm in found["arms"].values():
        assert (arm["images"], arm["batch"], arm["imgsz"]) == (16, 4, 64)
        assert arm["core"] > 0 and all(speed > 0 for speed in arm["workers"].values())
        assert set(map(int, arm["workers"])) >= {1}
        assert sum(arm["stages"].values()) == pytest.approx(1)
        assert {"warp", "HSV", "format", "collate"} <= arm["stages"].keys()
    assert found["advice"]
    assert {path: path.stat().st_mtime for path in Path(data).parent.rglob("*")} == before
    assert list(tmp_path.iterdir()) == []
    assert not [one for one in psutil.process_iter(["cmdline"]) if data in " ".join(one.info["cmdline"] or ())]


@pytest.mark.parametrize("task", ["classify"])
def test_the_oldest_release(task, python, release, digits, tmp_path):
    found = last_json(python("-c", ONE, f"data={digits(task)}", f"task={task}", "imgsz=64", **release("8.0.200")))
    assert found["core"] > 0 and found["workers"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "give data="),
        (("data=x.yaml", "patches=all"), "leave patches= out"),
        (("--seconds", "soon", "data=x.yaml"), "--seconds soon is no number of seconds"),
        (("data=nowhere.yaml",), "cannot be read"),
        (("data=coco8.yaml", "imgzs=64"), "imgzs"),
    ],
)
def test_bad_input(words, says, python, release):
    done = python(*COMMAND, *words, check=False, **release(NEWEST))
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
