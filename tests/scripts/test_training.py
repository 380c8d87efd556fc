"""Every training script, on real images: to the end, with what the patches promise. A process for each upstream."""

from __future__ import annotations

import pytest

from tests.conftest import entry
from tests.scripts.conftest import arguments, plan, run, statuses

SCRIPTS9 = {
    "train_dual.py": ("dual", "detect"),
    "train.py": ("single", "detect"),
    "train_triple.py": ("triple", "detect"),
    "segment/train.py": ("segment", "segment"),
    "segment/train_dual.py": ("dual-segment", "segment"),
    "panoptic/train.py": ("panoptic", "panoptic"),
}
SCRIPTS5 = {"train.py": ("v5-detect", "detect"), "segment/train.py": ("v5-segment", "segment")}
#: A stand-in for setuptools 80, so that upstream alone comes as far as its next failure.
OLD_SETUPTOOLS = "from packaging.version import parse as parse_version\n"
#: Twice the base batch, with so many batches that five epochs of warm-up are more than upstream's 100 iterations.
LINEAR = "compat,linear-lr:base_batch=32"


def check(folder, seen, name, task):
    """Check one finished training's run directory, its plan, and what was seen of its loaders."""
    assert "error" not in seen, seen["log"][-3000:]
    assert (folder / "weights" / "best.pt").is_file()
    written = plan(folder)
    assert (written["upstream"]["name"], written["global_batch"], written["world_size"]) == (name, 4, 1)
    assert written["selection"] == "all"
    found = statuses(folder)
    assert found["val-batch"] == found["compat"] == ("active", True)
    # Segment and panoptic losses divide by a sum that may be zero; elsewhere one rank leaves nothing to normalise.
    unfloored = name == "yolov9" and task != "detect"
    assert found["loss-norm"] == (("active", True) if unfloored else ("inert", None))
    assert {found[patch] for patch in ("linear-lr", "sync-bn", "torchrun")} == {("inert", None)}
    assert entry(written)["changes"] == [{"what": "val batch per rank", "upstream": 8, "patched": 4}]
    assert {change["what"] for change in entry(written, "compat")["changes"]} >= {"pkg_resources", "torch.load"}
    assert seen["loaders"] == [[True, 16, 4], [False, 12, 4]]
    # panoptic/train.py validates in its last epochs only, where its run is longer than twice --close-mosaic.
    assert seen["validations"] == [4] * (1 if task == "panoptic" else 2)
    assert seen["left"] == []
    assert seen["log"].count("yolo-patches 0.") == 1
    assert "WARNING yolo-patches" not in seen["log"]
    assert "Traceback" not in seen["log"]
    assert "FutureWarning" not in seen["log"]


def linear(root, script, model, hyp, data, folder):
    """Return two runs of three steps, alone and at twice the base batch, with a longer warm-up."""
    words = (*arguments(model, data, hyp, folder, epochs=80, batch=1), "--noplots")
    return [
        run("alone", root, script, (*words, "--name", "alone"), "compat", steps=3),
        run("scaled", root, script, (*words, "--name", "scaled"), LINEAR, steps=3),
    ]


def check_linear(folder, done):
    """At twice the base batch: half the gradient before the clip, twice the rate, five epochs of warm-up."""
    alone, scaled = done["alone"], done["scaled"]
    assert "error" not in alone and "error" not in scaled
    assert alone["left"] == scaled["left"] == []
    assert scaled["norms"][0] == pytest.approx(alone["norms"][0] / 2, rel=1e-4)
    # To 0.01 in 3 epochs of 40 batches, to 0.02 in 5. The second step has two batches, or one where warm-up is long.
    assert alone["rates"][:2] == [[0, 0.0005], [pytest.approx(2 * 0.01 / 120), 0.0005]]
    assert scaled["rates"][:2] == [[0, 0.00025], [pytest.approx(0.02 / 200), 0.00025]]
    item = entry(plan(folder / "scaled"), "linear-lr")
    assert {change["what"]: change["patched"] for change in item["changes"]} == {
        "lr0": 0.02, "weight decay": 0.00025, "gradient before the clip": "x0.5", "warm-up epochs": 5.0
    }  # fmt: skip
    assert item["verified"] is True, "the loss has been measured to grow with the batch"
    assert "warmup_epochs: 3.0" in (folder / "scaled" / "hyp.yaml").read_text()


def test_yolov9(drive, python, digits, yolov9, models, data, tmp_path):
    hyp, runs = models / "hyp9.yaml", []
    for script, (model, task) in SCRIPTS9.items():
        words = arguments(models / f"{model}.yaml", data(task), hyp, tmp_path, script.replace("/", "-"))
        first = not runs
        words += ("--patches", "all") if first else ("--noplots",)
        runs.append(run(script, yolov9, script, words, None if first else "all"))
    runs += linear(yolov9, "train_dual.py", models / "dual.yaml", hyp, digits("detect", 40, 4), tmp_path)
    done = drive(runs)
    for script, (_, task) in SCRIPTS9.items():
        check(tmp_path / script.replace("/", "-"), done[script], "yolov9", task)
    folder = tmp_path / "train_dual.py"
    assert "--patches" not in (folder / "opt.yaml").read_text()
    assert "patches" not in (folder / "opt.yaml").read_text().replace(str(tmp_path), "")
    check_linear(tmp_path, done)
    # The checkpoint is upstream's own: it loads where yolo-patches cannot be imported.
    (tmp_path / "pkg_resources.py").write_text(OLD_SETUPTOOLS)
    code = "import sys, torch; print(type(torch.load(sys.argv[1], weights_only=False)['model']))"
    loaded = python("-c", code, folder / "weights" / "best.pt", absent=True, PYTHONPATH=f"{yolov9}:{tmp_path}")
    assert "models.yolo.DetectionModel" in loaded.stdout


def test_yolov5(drive, digits, yolov5, models, data, tmp_path):
    hyp, runs = models / "hyp5.yaml", []
    for script, (model, task) in SCRIPTS5.items():
        words = arguments(models / f"{model}.yaml", data(task), hyp, tmp_path, script.replace("/", "-"))
        first = not runs
        runs.append(
            run(script, yolov5, script, (*words, "--noplots", *["--patches=all"] * first), None if first else "all")
        )
    runs += linear(yolov5, "train.py", models / "v5-detect.yaml", hyp, digits("detect", 40, 4), tmp_path)
    done = drive(runs)
    for script, (_, task) in SCRIPTS5.items():
        check(tmp_path / script.replace("/", "-"), done[script], "yolov5", task)
    check_linear(tmp_path, done)


@pytest.mark.parametrize("name", ["yolov9", "yolov5"])
def test_package(python, name, package9, package5, models, data, tmp_path):
    home, module, model, hyp, version = {
        "yolov9": (package9, "yolov9.train_dual", "dual", "hyp9", "unknown"),
        "yolov5": (package5, "yolov5.train", "v5-detect", "hyp5", "7.0.14"),
    }[name]
    words = arguments(models / f"{model}.yaml", data("detect"), models / f"{hyp}.yaml", tmp_path)
    python("-m", module, *words, "--noplots", "--patches", "all", PYTHONPATH=str(home))
    assert plan(tmp_path / "run")["upstream"] == {"name": name, "version": version}
    for patch in ("val-batch", "compat"):
        assert statuses(tmp_path / "run")[patch] == ("active", True)


#: Sets arguments, and notes where the others come from.
RECIPE = """
from yolo_patches import registry
from yolo_patches.patches.compat import Compat
from yolo_patches.seams import Arguments
class Recipe(Compat):
    def handlers(self):
        return {**super().handlers(), Arguments: self.set}
    def set(self, seam):
        given = seam.facts.given
        run["origins"] = {name: given.origin(name) for name in ("lrf", "lr0", "epochs", "patience", "imgsz", "seed")}
        run["set"] = [seam.set(*value) for value in
                      (("lrf", 0.1), ("lr0", 0.002), ("epochs", 3), ("seed", 5), ("no_such", 1))]
registry.patches()["compat"] = Recipe
"""
#: Stands around every act.
RECORDER = """
from yolo_patches import registry
from yolo_patches.patches.compat import Compat
from yolo_patches.seams import Loading, Save, Validation
run["acts"] = []
class Recorder(Compat):
    def around(self):
        return {act: self.note for act in (Loading, Save, Validation)}
    def note(self, act, proceed):
        final = ["final"] if getattr(act, "final", False) else []
        run["acts"].append([type(act).__name__, act.epoch, *final])
        return proceed()
registry.patches()["compat"] = Recorder
"""


def test_arguments_and_acts(drive, yolov9, models, data, tmp_path):
    """Patches set what was not given, in memory: upstream saves what was trained with, the user's file is untouched."""
    hyp = tmp_path / "hyp.yaml"
    hyp.write_text((models / "hyp9.yaml").read_text().replace("lrf: 0.01", "lrf: 0.5"))
    before = hyp.read_text()
    words = (*arguments(models / "single.yaml", data("detect"), hyp, tmp_path), "--noplots", "--pat=7")
    events = (*arguments(models / "single.yaml", data("detect"), hyp, tmp_path, "events", epochs=2), "--noplots")
    masks = (*arguments(models / "segment.yaml", data("segment"), hyp, tmp_path, "masks", epochs=2), "--noplots")
    runs = [
        run("arguments", yolov9, "train.py", words, "compat", before=RECIPE),
        run("events", yolov9, "train.py", (*events, "--noval"), "compat", before=RECORDER),
        run("masks", yolov9, "segment/train.py", masks, "compat", before=RECORDER),
    ]
    done = drive(runs)
    assert not [seen["error"] for seen in done.values() if "error" in seen]
    assert done["arguments"]["origins"] == {
        "lrf": "file", "lr0": "default", "epochs": "command line", "patience": "command line", "imgsz": "command line",
        "seed": "default",
    }  # fmt: skip
    assert done["arguments"]["set"] == [False, True, False, True, False]
    assert hyp.read_text() == before
    saved, options = ((tmp_path / "run" / name).read_text() for name in ("hyp.yaml", "opt.yaml"))
    assert "lr0: 0.002" in saved and "lrf: 0.5" in saved
    assert "lr0: 0.002" in options and "seed: 5" in options and "patience: 7" in options
    assert max(rate for rate, _ in done["arguments"]["rates"]) <= 0.002

    # The last and the best, which with nothing found is the last again; they are validated at the end.
    saves = [["Save", epoch] for epoch in (0, 1) for _ in ("last", "best")]
    for name, validations in (("events", [1]), ("masks", [0, 1])):
        acts = done[name]["acts"]
        assert [act for act in acts if act[0] == "Loading"] == [["Loading", 0], ["Loading", 1]]
        assert [act for act in acts if act[0] == "Save"] == saves
        expected = [*(["Validation", epoch] for epoch in validations), ["Validation", 1, "final"]]
        assert [act for act in acts if act[0] == "Validation"] == expected
        assert acts[0] == ["Loading", 0]
