"""monitor: every figure against another way to measure it, in the real trainer; loggers, ranks, and what goes wrong."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.conftest import NEWEST, entry, last_json

PROGRAM = Path(__file__).with_name("monitored_training.py")


@pytest.fixture
def train(python, release, digits, tmp_path):
    def run(version, name, **arguments):
        common = {
            "model": "yolov8n.yaml",
            "data": digits("detect", 16, 8),
            "epochs": 2,
            "imgsz": 64,
            "batch": 4,
            "nbs": 4,
            "workers": 0,
            "device": "cpu",
            "plots": False,
            "optimizer": "SGD",
            "project": str(tmp_path),
            "name": name,
        }
        arguments = {**common, **arguments}
        variables = release(version)
        if arguments.get("loggers"):
            variables["PYTHONPATH"] += os.pathsep + release("mlflow")["PYTHONPATH"]
            variables |= {"MLFLOW_TRACKING_URI": (tmp_path / "mlruns").as_uri(), "MLFLOW_ALLOW_FILE_STORE": "true"}
        done = python(PROGRAM, json.dumps(arguments), **variables)
        return last_json(done), done.stdout + done.stderr, tmp_path / name

    return run


@pytest.mark.parametrize("version", ["8.0.200", NEWEST])
def test_figures(version, train):
    seen, _, folder = train(version, "run", patches="monitor:plot=false,compat")
    rows = [{name: float(value) for name, value in row.items()} for row in seen["table"]]
    assert [row["epoch"] for row in rows] == [1, 2]
    for epoch, row in enumerate(rows):
        assert [row[f"grad_norm/{name}"] for name in ("median", "p95", "max")] == pytest.approx(
            seen["quantiles"][epoch], rel=1e-5
        )
        clipped = [norm for norm in seen["norms"][epoch] if norm > 10]
        assert row["grad_norm/clipped"] == pytest.approx(len(clipped) / 4)
        assert row["update_ratio"] == pytest.approx(seen["ratios"][epoch], rel=1e-3)
        assert (row["steps"], row["effective_batch"]) == (4, 4)
        rates = [row[name] for name in row if name.startswith("lr/")]
        assert rates == pytest.approx(seen["rates"][4 * epoch + 3])
        assert row["time/epoch_s"] == pytest.approx(seen["epochs"][epoch], rel=0.15, abs=0.1)
        assert sum(row[f"time/{part}"] for part in ("data", "step", "validation", "elsewhere")) == pytest.approx(1)
        validation = row["time/validation"] * row["time/epoch_s"]
        assert validation == pytest.approx(seen["validations"][epoch], rel=0.15, abs=0.1)
        training = (row["time/data"] + row["time/step"]) * row["time/epoch_s"]
        assert row["images_per_s"] == pytest.approx(16 / training)
        assert row["step/median_s"] <= row["step/longest_s"] <= row["time/step"] * row["time/epoch_s"]
        assert row["memory/host_gib"] == pytest.approx(seen["memory"][epoch], rel=0.1)
    found = entry(json.loads((folder / "patches.json").read_text()), "monitor")
    assert (found["status"], found["verified"]) == ("active", True)
    assert not (folder / "patches.png").exists(), "plots=False"


def test_loggers_and_nothing_else(train, tmp_path):
    """TensorBoard and MLflow get the figures; upstream's file, its metrics after the event, and the weights do not."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    seen, _, folder = train(NEWEST, "run", patches="monitor:plot=true", loggers=True)
    upstream, _, _ = train(NEWEST, "upstream", patches="none", loggers=True)
    assert seen["weights"] == upstream["weights"]
    assert seen["columns"] == upstream["columns"]
    assert (folder / "patches.png").read_bytes()[:4] == b"\x89PNG"
    assert seen["left"] == [] and upstream["table"] == []
    assert "patches/grad_norm/median" in seen["metrics"][0]
    want = [float(row["grad_norm/median"]) for row in seen["table"]]

    events = EventAccumulator(str(folder)).Reload()
    assert [event.value for event in events.Scalars("patches/grad_norm/median")] == pytest.approx(want)
    assert [event.step for event in events.Scalars("patches/images_per_s")] == [1, 2]

    (history,) = (tmp_path / "mlruns").glob("*/*/metrics/patches/grad_norm/median")
    assert [float(line.split()[1]) for line in history.read_text().splitlines()] == pytest.approx(want)


BREAK = """
import yolo_patches.monitoring.{module} as module
def broken(*args, **kwargs): raise RuntimeError("broken on purpose")
module.{name} = broken
"""


@pytest.mark.parametrize(("module", "name", "status"), [("steps", "_norms", "failed"), ("chart", "draw", "active")])
def test_broken(module, name, status, python, digits, tmp_path):
    """An error of ours ends no run: one in a figure drops the monitor, one in the chart is told."""
    words = (
        "model=yolov8n.yaml", f"data={digits('detect', 4, 4)}", "epochs=2", "imgsz=32", "batch=4", "device=cpu",
        "plots=False", f"project={tmp_path}", "name=run", "workers=0", "patches=monitor:plot=true",
    )  # fmt: skip
    code = BREAK.format(module=module, name=name) + f"import sys; sys.argv = ['yolo', 'train', *{words!r}]\n"
    done = python("-c", code + "from ultralytics.cfg import entrypoint; entrypoint()")
    assert (done.stdout + done.stderr).count("broken on purpose") == 1
    assert (tmp_path / "run" / "weights" / "best.pt").exists()
    found = entry(json.loads((tmp_path / "run" / "patches.json").read_text()), "monitor")
    assert found["status"] == status
