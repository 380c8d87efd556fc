"""best in a checkout: early stopping by a mean, with figures that are given."""

from __future__ import annotations

import csv
import shutil

import pytest

from tests.scripts.conftest import arguments, plan, run

#: mAP50-95 of each epoch; upstream's fitness is 0.9 of it.
NOISY = (0.2, 0.5, 0.3, 0.4, 0.45, 0.1, 0.1, 0.1)
JUDGED = "fi = fitness(np.array(results).reshape(1, -1))"


def check_monitor(folder, rows):
    """Check the rows of monitor, and that the script's TensorBoard has them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    for name in ("grad_norm/median", "images_per_s", "time/data", "memory/host_gib", "update_ratio", "steps"):
        values = [float(row[name]) for row in rows if row[name]]  # an epoch may be shorter than one effective batch
        assert any(value > 0 for value in values)
        assert [event.value for event in events.Scalars(f"patches/{name}")] == pytest.approx(values)
    parts = ("data", "step", "validation", "elsewhere")
    assert [sum(float(row[f"time/{part}"]) for part in parts) for row in rows] == pytest.approx([1] * len(rows))
    assert not (folder / "patches.png").exists()  # --noplots
    item = next(one for one in plan(folder)["patches"] if one["name"] == "monitor")
    assert (item["status"], item["verified"]) == ("active", True), item


def test_early_stopping_by_a_mean(drive, yolov9, models, data, tmp_path):
    root = shutil.copytree(yolov9, tmp_path / "checkout", ignore=shutil.ignore_patterns("*.jpg", "__pycache__"))
    text = (root / "train_dual.py").read_text()
    assert text.count(JUDGED) == 1
    given = f"results = (0.0, 0.0, 0.0, {NOISY}[epoch], 0.0, 0.0, 0.0)\n            {JUDGED}"
    (root / "train_dual.py").write_text(text.replace(JUDGED, given))
    runs = []
    for spec in ("compat", "compat,best:smooth=2:keep=2:skip=2,monitor", "compat,val-period:every=2,best:smooth=2"):
        words = arguments(models / "dual.yaml", data("detect"), models / "hyp9.yaml", tmp_path, spec, epochs=8)
        runs.append(run(spec, root, "train_dual.py", (*words, "--noplots", "--patience", "2"), spec))
    done = drive(runs)
    ends = []
    for spec, seen in done.items():
        assert "error" not in seen, (spec, seen["log"][-3000:])
        assert seen["left"] == []
        with open(tmp_path / spec / "results.csv") as file:
            ends.append(len(list(csv.DictReader(file))))
    # Upstream: two epochs after the second; by the mean of two: two after the fifth.
    assert ends[:2] == [4, 7]
    smooth = tmp_path / runs[1]["name"]
    with open(smooth / "patches.csv") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["best/fitness"]) for row in rows] == pytest.approx([0.9 * value for value in NOISY[:7]])
    check_monitor(smooth, rows)
    names = {file.name for file in (smooth / "weights").iterdir() if file.name.startswith("epoch")}
    assert names == {"epoch1.pt", "epoch4.pt", "epoch6.pt"}
    item = next(one for one in plan(smooth)["patches"] if one["name"] == "best")
    assert (item["status"], item["verified"]) == ("active", True), item
