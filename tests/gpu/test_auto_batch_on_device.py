"""On machines with CUDA GPUs: auto-batch on one device, and on two."""

from __future__ import annotations

import json

import pytest

from tests.conftest import entry

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.mark.parametrize("devices", ["0", "0,1"])
def test_the_batch_that_was_found_trains_within_its_share(yolo, digits, tmp_path, devices):
    if torch.cuda.device_count() < len(devices.split(",")):
        pytest.skip("needs two CUDA devices")
    words = [
        "train", "model=yolov8n.yaml", f"data={digits('detect', 256, 16)}", "imgsz=640", "batch=-1", "epochs=1",
        f"device={devices}", "plots=False", f"project={tmp_path}", "name=run", "patches=auto-batch,val-batch,monitor",
    ]  # fmt: skip
    yolo(*words, timeout=1500)
    plan = json.loads((tmp_path / "run" / "patches.json").read_text())
    mine = entry(plan, "auto-batch")
    assert (mine["status"], mine["verified"]) == ("active", True), mine
    assert plan["global_batch"] == mine["changes"][0]["patched"] >= 8 * len(devices.split(","))
    row = (tmp_path / "run" / "patches.csv").read_text().splitlines()
    peaks = [
        float(value)
        for name, value in zip(row[0].split(","), row[-1].split(","))
        if name == "memory/train_gib" and value
    ]
    total = min(torch.cuda.get_device_properties(number).total_memory for number in range(torch.cuda.device_count()))
    assert peaks and max(peaks) * 2**30 < 0.65 * total
