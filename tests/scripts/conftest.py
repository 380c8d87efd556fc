"""Checkouts of YOLOv9 and YOLOv5, small models for their heads, and processes that run their scripts."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT

BACKBONE = [[-1, 1, "Conv", [8, 3, 2]], *([-1, 1, "Conv", [16, 3, 2]] for _ in range(4))]
LEVELS = [2, 3, 4]  # strides 8, 16, 32
HEADS = {
    "single": [LEVELS, 1, "DDetect", ["nc"]],
    "dual": [LEVELS * 2, 1, "DualDDetect", ["nc"]],
    "triple": [LEVELS * 3, 1, "TripleDetect", ["nc"]],
    "segment": [LEVELS, 1, "Segment", ["nc", 32, 16]],
    "dual-segment": [[*LEVELS, *LEVELS, 1, 1], 1, "DualDSegment", ["nc", 32, 16]],
    "panoptic": [LEVELS, 1, "Panoptic", ["nc", 163, 32, 16]],
}
ANCHORS = [[10, 13, 16, 30, 33, 23], [30, 61, 62, 45, 59, 119], [116, 90, 156, 198, 373, 326]]
HEADS5 = {
    "detect": [LEVELS, 1, "Detect", ["nc", "anchors"]],
    "segment": [LEVELS, 1, "Segment", ["nc", "anchors", 32, 16]],
}
FILES5 = ("data", "models", "segment", "utils", "export.py", "helpers.py", "train.py", "val.py", "__init__.py")


def source(name):
    """Return the unpacked folder of an upstream, or skip."""
    folder = os.environ.get("YOLO_PATCHES_UPSTREAMS")
    if folder is None or not Path(folder, name).is_dir():
        pytest.skip(f"no {name}: YOLO_PATCHES_UPSTREAMS names no folder with it ('dev.py test' makes one)")
    return Path(folder, name)


@pytest.fixture(scope="session")
def environment(environment):
    """Return the environment of child processes, which keep what they compile: that is half of their time."""
    return {name: value for name, value in environment.items() if name != "PYTHONDONTWRITEBYTECODE"}


@pytest.fixture(scope="session")
def yolov9(tmp_path_factory):
    """Return a YOLOv9 checkout, in a folder whose name says nothing."""
    root = Path(shutil.copytree(source("yolov9") / "yolov9", tmp_path_factory.mktemp("some") / "folder"))
    (root / "data" / "hyps").mkdir(parents=True)  # which the wheel leaves out
    shutil.copy(source("yolo9") / "yolo9/data/hyps/hyp.scratch-high.yaml", root / "data" / "hyps")
    return root


@pytest.fixture(scope="session")
def yolov5(tmp_path_factory):
    """Return what a YOLOv5 checkout looks like: the package's files, importing `utils` where it says `yolov5.utils`.

    No wheel holds a true checkout. Nothing but the roots of the imports is changed; the version, which a checkout does
    not have, is that of the package.
    """
    root = tmp_path_factory.mktemp("other") / "folder"
    for name in FILES5:
        path = source("yolov5") / "yolov5" / name
        (shutil.copytree if path.is_dir() else shutil.copy)(
            path, root / name
        ) if root.is_dir() or not root.mkdir() else 0
    for file in root.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        text = re.sub(r"^(\s*)from yolov5 import __version__.*$", r"\1__version__ = 'checkout'", text, flags=re.M)
        # Scripts in a subfolder put the root on the path below this line, which a checkout does not have.
        text = re.sub(r"^from yolov5\.utils\.roboflow .*$", "", text, flags=re.M)
        file.write_text(re.sub(r"^(\s*)(from|import) yolov5\.", r"\1\2 ", text, flags=re.M), encoding="utf-8")
    (root / "__init__.py").unlink()
    return root


@pytest.fixture(scope="session")
def package9(tmp_path_factory):
    """Return the folder in which YOLOv9 lies as a package: no wheel has it so; the roots of its imports are changed."""
    folder = tmp_path_factory.mktemp("packages")
    root = Path(shutil.copytree(source("yolov9") / "yolov9", folder / "yolov9"))
    names = "|".join(path.stem for path in root.iterdir())
    for file in root.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        file.write_text(
            re.sub(rf"^(\s*)(from|import) ({names})\b", r"\1\2 yolov9.\3", text, flags=re.M), encoding="utf-8"
        )
    for path in (root, *root.rglob("*")):
        if path.is_dir():
            (path / "__init__.py").touch()
    return folder


@pytest.fixture(scope="session")
def package5():
    """Return the folder in which the package `yolov5` lies."""
    return source("yolov5")


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Return a folder with a small model for every head, and the published hyperparameters."""
    folder = tmp_path_factory.mktemp("models")
    common = {"nc": 10, "depth_multiple": 1.0, "width_multiple": 1.0, "backbone": BACKBONE}
    for name, head in HEADS.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({**common, "anchors": 3, "head": [head]}))
    for name, head in HEADS5.items():
        (folder / f"v5-{name}.yaml").write_text(yaml.safe_dump({**common, "anchors": ANCHORS, "head": [head]}))
    shutil.copy(source("yolo9") / "yolo9/data/hyps/hyp.scratch-high.yaml", folder / "hyp9.yaml")
    shutil.copy(source("yolov5") / "yolov5/data/hyps/hyp.scratch-low.yaml", folder / "hyp5.yaml")
    return folder


@pytest.fixture(scope="session")
def data(digits, tmp_path_factory):
    """Return a function of the task that gives its data file; panoptic reads segments of stuff beside the labels."""

    @functools.cache
    def make(task):
        if task != "panoptic":
            return digits(task)
        root = Path(shutil.copytree(Path(digits("segment")).parent, tmp_path_factory.mktemp("panoptic") / "digits"))
        shutil.copytree(root / "labels", root / "stuff")
        values = yaml.safe_load((root / "data.yaml").read_text())
        values |= {"path": str(root), "stuff_names": [f"stuff {n}" for n in range(163)]}
        (root / "data.yaml").write_text(yaml.safe_dump(values))
        return str(root / "data.yaml")

    return make


@pytest.fixture
def script(python):
    """Return a function that runs one of a checkout's scripts."""

    def run(root, name, *words, **options):
        target = [name] if name == "-m" else [str(Path(root, name))]
        return python(*target, *map(str, words), **options)

    return run


@pytest.fixture
def drive(python, tmp_path):
    """Return a function that runs several scripts in one process, and returns what each did, with its log."""

    def start(runs, **environment):
        file = tmp_path / "runs.json"
        file.write_text(json.dumps(runs, default=str))
        done = python(ROOT / "tests" / "scripts" / "drive.py", file, **environment)
        logs = dict(log.split("\n", 1) for log in re.split("^=== ", done.stderr, flags=re.MULTILINE)[1:])
        seen = json.loads(file.read_text())
        return {run["name"]: {**run, "log": logs[run["name"]]} for run in seen}

    return start


def ports(number):
    """Return so many free ports."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    found = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return found


@pytest.fixture
def ranks(environment, interpreter, tmp_path):
    """Return a function that has two ranks make several runs by a script, and returns what each has seen of them."""

    def start(root, runs, script, **more):
        job = json.dumps({"runs": runs, "ports": ports(len(runs)), "out": str(tmp_path / "seen")})
        started = []
        for rank in range(2):
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1"}
            log = (tmp_path / f"log{rank}").open("w")
            started.append(
                subprocess.Popen(
                    [interpreter, str(script), job],
                    cwd=root,
                    env={**environment, **more, **{name: str(value) for name, value in place.items()}},
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )
        try:
            until = time.monotonic() + 300
            while any(rank.poll() is None for rank in started) and not any(rank.poll() for rank in started):
                if time.monotonic() > until:
                    raise subprocess.TimeoutExpired(str(script), 300)
                time.sleep(0.1)
        except subprocess.TimeoutExpired:
            pytest.fail("it hangs: " + "".join((tmp_path / f"log{rank}").read_text()[-1500:] for rank in range(2)))
        finally:
            for rank in started:
                rank.kill()
        logs = [(tmp_path / f"log{rank}").read_text() for rank in range(2)]
        assert [rank.returncode for rank in started] == [0, 0], "".join(log[-3000:] for log in logs)
        return [json.loads((tmp_path / f"seen.{rank}").read_text()) for rank in range(2)]

    return start


def run(name, root, script, words, patches=None, **more):
    """Return a run for `drive`.

    Args:
        name: Its name.
        root: Of the checkout.
        script: From the root.
        words: Its arguments.
        patches: A specification; None where it is among the words.
        more: `steps`, after which it is stopped; `edits` of files, and code `before` it; whether its modules are to be
            imported anew (`fresh`).
    """
    return {
        "name": name,
        "root": str(root),
        "script": script,
        "words": list(map(str, words)),
        "patches": patches,
        **more,
    }


def arguments(model, data, hyp, project, name="run", epochs=1, batch=4):
    """Return the arguments that all training scripts share."""
    return (
        "--weights", "", "--cfg", model, "--data", data, "--hyp", hyp, "--epochs", epochs, "--batch-size", batch,
        "--imgsz", 64, "--device", "cpu", "--workers", 0, "--project", project, "--name", name, "--exist-ok",
    )  # fmt: skip


def plan(folder):
    """Return what patches.json in a run's folder says."""
    return json.loads((Path(folder) / "patches.json").read_text())


def statuses(folder):
    """Return the status of every patch that patches.json in a run's folder tells of, and whether it is verified."""
    return {item["name"]: (item["status"], item["verified"]) for item in plan(folder)["patches"]}
