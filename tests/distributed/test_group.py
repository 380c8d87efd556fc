"""No process group outlives its end: one that is alive when the interpreter exits can abort it.

A thread of gloo's that lets go of a tensor at that moment gets no interpreter any more: "terminate called without an
active exception", and a run that was complete ends with SIGABRT.
"""

from __future__ import annotations

import sys

import pytest

from tests.conftest import last_json
from tests.distributed.faults import inject

#: Notes, on each rank, whether the group is gone as soon as it has been destroyed.
WATCH = """
import os
if "TORCHELASTIC_RUN_ID" in os.environ:
    import weakref
    from pathlib import Path
    from torch import distributed
    destroy = distributed.destroy_process_group
    def watched(*args):
        group = weakref.ref(distributed.group.WORLD)
        destroy(*args)
        Path(os.environ["GROUPS_SEEN"], os.environ["RANK"]).write_text("alive" if group() else "gone")
    distributed.destroy_process_group = watched
"""


@pytest.fixture
def watched(tmp_path):
    """Return the variables with which ranks note it, and a function that returns what they have noted."""
    for name in ("site", "seen"):
        (tmp_path / name).mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(WATCH)
    variables = {"PYTHONPATH": str(tmp_path / "site"), "GROUPS_SEEN": str(tmp_path / "seen")}
    variables["PYTHON_EXEC"] = sys.executable  # ranks from their start: others do not look for sitecustomize
    return variables, lambda: {file.name: file.read_text() for file in (tmp_path / "seen").iterdir()}


def test_of_a_training(watched, environment, digits, tmp_path):
    variables, seen = watched
    done = inject(digits(), tmp_path, "all", "", "", 0, epochs=1, environment={**environment, **variables})
    assert done["status"] == 0, done["log"][-4000:]
    assert seen() == {"0": "gone", "1": "gone"}


def test_of_a_proof(watched, python):
    variables, seen = watched
    code = (
        "import json; from yolo_patches import verify\n"
        "verify.PATCHES = {'patched': verify.PATCHES['patched']}\n"
        "print(json.dumps(verify.verify('yolov8n.yaml', 2, steps=1)['errors']['patched']['gradient']))"
    )
    assert last_json(python("-c", code, **variables)) < 1e-6
    assert seen() == {"0": "gone", "1": "gone"}
