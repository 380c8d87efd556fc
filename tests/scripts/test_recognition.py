"""Whose `utils` it is: a checkout's, whatever its folder is called, or that of one of many other projects."""

from __future__ import annotations

import importlib
import shutil

import pytest

from tests.conftest import last_json

LOOKALIKE = """
import importlib.util, json, sys, time, types
beginning = time.perf_counter()
import utils
took = time.perf_counter() - beginning
ours = sorted(name for name in sys.modules if name.startswith("yolo_patches"))
import numpy, torch
from utils import dataloaders, general, torch_utils
from models import yolo
same = [m.torch is torch and m.np is numpy for m in (dataloaders, general, torch_utils, yolo)]
plain = type(dataloaders.create_dataloader) is types.FunctionType
builtin = type(torch.load) is types.FunctionType and torch.load.__module__ == "torch.serialization"
print(json.dumps([took, ours, [*same, plain, builtin, "wrapt" not in sys.modules], sys.argv[1:]]))
"""
OURS = [
    "yolo_patches",
    "yolo_patches._bootstrap",
    "yolo_patches.upstreams",
    "yolo_patches.upstreams.scripts",
    "yolo_patches.upstreams.scripts.recognition",
    "yolo_patches.upstreams.start",
]


def test_a_project_that_only_looks_alike_is_untouched(python, yolov9, tmp_path):
    """Same module names, same files beside it but one: nothing is wrapped, its flag stays its own, within 1 ms."""
    for name in ("utils/dataloaders.py", "utils/general.py", "utils/torch_utils.py", "models/yolo.py", "train_dual.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("import torch\nimport numpy as np\ndef create_dataloader(): ...\n")
    (tmp_path / "utils" / "__init__.py").write_text("")
    (tmp_path / "models" / "__init__.py").write_text("")
    (tmp_path / "train.py").write_text(LOOKALIKE)
    costs = []
    for _ in range(2):  # the first compiles
        took, ours, untouched, words = last_json(
            python(tmp_path / "train.py", "--patches", "all", YOLO_PATCHES="all", PYTHONDONTWRITEBYTECODE="")
        )
        assert ours == OURS
        assert untouched == [True] * 7
        assert words == ["--patches", "all"]
        costs.append(took)
    assert min(costs) < 0.002, costs  # a busy machine only adds
    # What makes the difference is content: with these files it is a checkout, whatever its name.
    for name in ("utils/loss_tal_dual.py", "utils/tal/assigner.py", "utils/torch_utils.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(yolov9 / name, tmp_path / name)
    code = "from yolo_patches.upstreams.scripts.recognition import find; print(find('.'))"
    assert python("-c", code).stdout.strip() == "yolov9"


ASKED = """
import json, sys
from importlib.util import find_spec
found = [find_spec(name) is not None for name in ("utils", "models", "yolov9", "yolov5")]
ours = sorted(name for name in sys.modules if name.startswith(("yolo_patches", "wrapt", "torch")))
import utils
print(json.dumps([found, ours, "yolo_patches.upstreams.yolov9" in sys.modules]))
"""


def test_whoever_only_asks_where_a_checkout_is_wakes_nobody(python, yolov9, package9, package5):
    paths = f"{yolov9}:{package9}:{package5}"
    found, ours, woken = last_json(python("-c", ASKED, fresh=True, PYTHONPATH=paths))
    assert found == [True] * 4
    assert ours == OURS
    assert woken, "an import does"


def test_an_import_does_not_fail_because_of_us(tmp_path, monkeypatch, capsys):
    pytest.importorskip("wrapt")
    from yolo_patches.upstreams.scripts.importing import Importing, install
    from yolo_patches.wrapping import Wrapping

    def before(module):
        raise IndexError("no such folder")

    (tmp_path / "module_of_somebody.py").write_text("import json\nanswer = 42\n")
    monkeypatch.syspath_prepend(tmp_path)
    wrapping = Wrapping()
    install(Importing(frozenset({"module_of_somebody"}), before), wrapping)
    try:
        module = importlib.import_module("module_of_somebody")
    finally:
        wrapping.undo()
    assert module.answer == 42
    assert type(module.__loader__).__name__ == type(module.__spec__.loader).__name__ == "SourceFileLoader"
    assert capsys.readouterr().err.count("module_of_somebody is left alone: IndexError: no such folder") == 1
