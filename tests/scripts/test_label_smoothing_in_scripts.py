"""label-smoothing in checkouts: YOLOv9's losses learn from it; YOLOv5 has an argument of its own."""

from __future__ import annotations

from tests.conftest import entry
from tests.scripts.conftest import arguments, plan, run


def test_yolov9_learns_from_it_and_yolov5_is_left_alone(drive, yolov9, yolov5, models, data, tmp_path):
    jobs = {
        "yolov9": (yolov9, "train_dual.py", models / "dual.yaml", models / "hyp9.yaml"),
        "yolov5": (yolov5, "train.py", models / "v5-detect.yaml", models / "hyp5.yaml"),
    }
    for upstream, (root, script, model, hyp) in jobs.items():
        runs = []
        for spec in ("compat", "compat,label-smoothing:epsilon=0.2"):
            words = (*arguments(model, data("detect"), hyp, tmp_path, f"{upstream} {spec}", epochs=1), "--noplots")
            runs.append(run(f"{upstream} {spec}", root, script, words, spec))
        theirs, ours = drive(runs).values()
        for done in (theirs, ours):
            assert "error" not in done, done["log"][-3000:]
        state = entry(plan(tmp_path / f"{upstream} compat,label-smoothing:epsilon=0.2"), "label-smoothing")
        if upstream == "yolov9":
            assert (state["status"], state["verified"]) == ("active", True), state
            assert ours["digest"] != theirs["digest"]
        else:
            assert state["status"] == "unavailable" and "--label-smoothing" in state["reason"], state
            assert ours["digest"] == theirs["digest"]
