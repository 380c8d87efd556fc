"""On a machine with a CUDA GPU: a training that does not fit into a fraction of its memory."""

from __future__ import annotations

import json

import pytest

from tests.conftest import entry, last_json

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

TRAIN = """
import json, sys
import torch
from ultralytics import YOLO

def on_train_start(trainer):
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    room = torch.cuda.memory_reserved() + int(sys.argv[3]) * 2**20
    torch.cuda.set_per_process_memory_fraction(room / total)

model = YOLO("yolov8n.yaml")
model.add_callback("on_train_start", on_train_start)
model.train(data=sys.argv[1], project=sys.argv[2], exist_ok=True, imgsz=640, batch=32, epochs=2, workers=0, plots=False,
            device=0, patches="oom-guard")
print()
print(json.dumps([model.trainer.batch_size, json.load(open(model.trainer.save_dir / "patches.json"))]))
"""


def test_a_run_that_does_not_fit_is_computed_in_parts(python, digits, tmp_path):
    """32 images at 640 pixels take about 4 GiB; there is room for 2."""
    batch, plan = last_json(python("-c", TRAIN, digits(train=64), tmp_path, "2048"))
    found = entry(plan, "oom-guard")
    assert (batch, found["status"], found["verified"]) == (32, "active", True)
    assert any("parts of at most" in note for note in found["notes"]), json.dumps(found)
