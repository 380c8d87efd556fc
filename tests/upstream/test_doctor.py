"""Each of doctor's checks: a training that has the defect, and one without it; real files, upstream's own parsing."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import psutil
import pytest

from tests.conftest import NEWEST, ROOT, last_json

FLOOR = "8.0.200"
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
#: What a run has that nothing can be said against, on the data set below.
SOUND = {
    "model": "yolov8n.yaml",
    "imgsz": 64,
    "batch": 16,
    "nbs": 16,
    "epochs": 1000,
    "optimizer": "SGD",
    "lr0": 0.01,
    "warmup_epochs": 5,
    "workers": 8,
    "device": "cpu",
    "patience": 0,
    "amp": True,
}
BOX = "0 0.5 0.5 0.4 0.4"
GPU = [["a GPU", True]]
#: Weights to start from.
PT = {"model": "PT"}

WEIGHTS = """
import torch
from ultralytics import YOLO
torch.save({"model": YOLO("yolov8n.yaml").model, "train_args": {}}, "n.pt")
"""

#: Finding -> (severity, part of its figure, what to change, arguments that have the defect, its data set, machine).
DEFECTS = {
    "small-batch": ("warning", "4 images a rank", "batch=8", {"batch": 4}, "sound", {}),
    "memory-order": ("info", "2 a rank at 1280 px", "batch=8 with imgsz=640", {"batch": 2, "imgsz": 1280}, "sound", {}),
    "accumulation": ("warning", "16 x 2 = 32 images", "batch=15", {"nbs": 40, "patches": "none"}, "sound", {}),
    "auto-ignores": ("warning", "lr0=0.01", "optimizer=AdamW", {"optimizer": "auto"}, "sound", {}),
    "auto-flips": (
        "warning",
        "12000 steps at batch 16, 6000 at twice",
        "optimizer=SGD, or patches=linear-lr",
        {"optimizer": "auto", "epochs": 6000, "lr0": None},
        "sound",
        {},
    ),
    "finetune-lr": ("warning", "AdamW, lr0 0.01", "lr0=0.0001", {"optimizer": "AdamW", **PT}, "sound", {}),
    "long-warm-up": ("warning", "of 1000 epochs", "warmup_epochs=100", {"warmup_epochs": 600}, "sound", {}),
    "close-mosaic": ("warning", "close_mosaic 1000", "close_mosaic=100", {"close_mosaic": 1000}, "sound", {}),
    "patience-unjudged": ("warning", "patience 50", "val=True", {"val": False, "patience": 50}, "sound", {}),
    "amp-off": ("warning", "1 x a GPU", "amp=True", {"amp": False}, "sound", {"accelerators": GPU}),
    "workers-over": ("warning", "8 workers x 1 rank on 4", "workers=4", {}, "sound", {"cores": 4}),
    "workers-under": ("warning", "0 workers", "workers=16", {"workers": 0}, "sound", {"accelerators": GPU}),
    "cache-ram": ("error", "x 1 rank, 9.31e-10 GiB", "cache=disk", {"cache": "ram"}, "sound", {"memory": 1}),
    "imgsz-stride": ("warning", "imgsz 60, stride 32", "imgsz=64", {"imgsz": 60}, "sound", {}),
    "labels": ("error", "train: 2 image", "", {}, "broken", {}),
    "classes-train": ("warning", "1 of 2 classes without a box in train: one", "", {}, "absent", {}),
    "classes-val": ("warning", "1 of 2 classes without a box in val: one", "", {}, "absent", {}),
    "copy-paste": ("warning", "copy_paste 0.5, no polygon", "copy_paste=0.0", {"copy_paste": 0.5}, "sound", {}),
    "small-objects": ("warning", "median object 1.3 px", "imgsz=224", {}, "tiny", {}),
    "max-det": ("warning", "3 boxes in", "max_det=100", {"max_det": 2}, "dense", {}),
    "leak": ("error", "1 of 8 validation images", "", {}, "leaking", {}),
    "near-duplicates": ("warning", "1 of 8 validation images looked at", "", {}, "alike", {}),
    "validation-noise": ("warning", "with 8 validation images", "or patches=best", {"patience": 50}, "sound", {}),
    "data-set": ("error", "not found", "", {}, "nowhere", {}),
}  # fmt: skip
#: Where it takes more than the sound arguments: what does not have the defect, though it looks alike.
SOUND_TOO = {
    "small-batch": ({"batch": 8, "nbs": 8, "device": "0,1", "patches": "sync-bn"}, "sound", {}),
    "accumulation": ({"nbs": 32, "patches": "none"}, "sound", {}),
    "auto-ignores": ({"optimizer": "auto", "lr0": None}, "sound", {}),
    "auto-flips": ({"optimizer": "auto", "epochs": 100, "lr0": None}, "sound", {}),
    "finetune-lr": ({"optimizer": "AdamW", "lr0": 0.0001, **PT}, "sound", {}),
    "copy-paste": ({"copy_paste": 0.5}, "polygons", {}),
    "cache-ram": ({"cache": "ram"}, "sound", {}),
    "amp-off": ({"amp": False}, "sound", {"accelerators": [["an old GPU", False]]}),
    "max-det": ({"max_det": 3}, "dense", {}),
    "validation-noise": ({"patience": 50, "patches": "best:smooth=5"}, "sound", {}),
    "patience-unjudged": ({"val": False, "patience": None}, "sound", {}),
    "workers-under": ({"workers": 16}, "sound", {"accelerators": GPU}),
}


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Return data sets of 32 and 8 smooth random images: name -> yaml file."""
    import cv2
    import numpy as np

    root = tmp_path_factory.mktemp("sets")

    def picture(seed):
        coarse = np.random.default_rng(seed).integers(0, 255, (9, 9, 3), dtype=np.uint8)
        return cv2.resize(coarse, (128, 128), interpolation=cv2.INTER_CUBIC)

    def make(name, label=BOX, classes=1, first=()):
        home = root / name
        for part, count, start in (("train", 32, 0), ("val", 8, 100)):
            for folder in ("images", "labels"):
                (home / folder / part).mkdir(parents=True)
            for number in range(count):
                cv2.imwrite(str(home / "images" / part / f"{number}.jpg"), picture(start + number))
                (home / "labels" / part / f"{number}.txt").write_text(label)
        names = ["zero", "one"][:classes]
        (home / "data.yaml").write_text(f"path: {home}\ntrain: images/train\nval: images/val\nnames: {names}\n")
        return home

    make("sound")
    broken = make("broken")
    (broken / "labels/train/3.txt").write_text("0 0.5 1.5 0.2 0.2")
    torn = broken / "images/train/4.jpg"
    torn.write_bytes(torn.read_bytes()[:-2])
    make("absent", classes=2)
    make("tiny", "0 0.5 0.5 0.02 0.02")
    make("dense", f"{BOX}\n0 0.3 0.3 0.2 0.2\n0 0.6 0.6 0.3 0.2")
    make("polygons", "0 0.2 0.2 0.8 0.2 0.8 0.8 0.2 0.8")
    leaking = make("leaking")
    (leaking / "images/val/0.jpg").write_bytes((leaking / "images/train/0.jpg").read_bytes())
    alike = make("alike")
    half = cv2.resize(cv2.imread(str(alike / "images/train/5.jpg")), (80, 80), interpolation=cv2.INTER_AREA)
    cv2.imwrite(str(alike / "images/val/2.jpg"), half, [cv2.IMWRITE_JPEG_QUALITY, 60])
    nowhere = root / "nowhere"
    nowhere.mkdir()
    (nowhere / "data.yaml").write_text("path: nowhere\ntrain: images\nval: images\nnames: [zero]\n")
    return root


#: Ends trials, which alone leave auto-batch out; the training that is measured goes on.
NO_TRIALS = """
import os, sys
if sys.argv[0] == "-m" and "patches=none" in sys.argv:
    os.write(2, b"OSError: the disk is full\\n")
    os._exit(1)
"""
#: Prints what the adapter says of the largest batch with each selection of patches.
LARGEST = """
import json, sys
from yolo_patches import api, registry
api.watch()
adapter = registry.adapter("ultralytics")
words, said = sys.argv[2:], {}
for patches in json.loads(sys.argv[1]):
    asked = [*words, "patches=" + patches]
    found = adapter.at_largest_batch(asked, adapter.forecast(asked).plan, 0.1)
    said[patches] = found and [found.why, found.measured]
print(json.dumps(said))
"""


def contents(root):
    return {str(path): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture(scope="module", params=[FLOOR, NEWEST])
def examined(request, sets, environment, interpreter, release, tmp_path_factory):
    """Return doctor's answers about every training above, and what it left behind."""
    home = tmp_path_factory.mktemp("home")
    # The oldest release reads weights as torch did before 2.6.
    where = {**environment, **release(request.param), "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}
    subprocess.run([interpreter, "-c", WEIGHTS], cwd=home, env=where, check=True, capture_output=True)

    def words(changed, data):
        values = {**SOUND, "data": sets / data / "data.yaml", **changed}
        values["model"] = home / "n.pt" if values["model"] == "PT" else values["model"]
        return [f"{name}={value}" for name, value in values.items() if value is not None]

    questions = {name: [words(changed, data), machine] for name, (*_, changed, data, machine) in DEFECTS.items()}
    for name, (changed, data, machine) in {"sound": ({}, "sound", {}), **SOUND_TOO}.items():
        questions[f"{name}, sound"] = [words(changed, data), machine]
    questions["bad"] = [["model=yolov8n.yaml", "patches=nope"], {}]
    before = contents(sets), sorted(home.rglob("*"))
    done = subprocess.run(
        [interpreter, ROOT / "tests/upstream/examined.py", json.dumps(questions, default=str)],
        cwd=home,
        env=where,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert (contents(sets), sorted(home.rglob("*"))) == before, "doctor leaves nothing behind, and changes nothing"
    return last_json(done)


@pytest.mark.parametrize("name", list(DEFECTS))
def test_found_where_it_is(examined, name):
    severity, figure, change, *_ = DEFECTS[name]
    answer = examined[name]
    found = next((one for one in answer["findings"] if one["id"] == name), None)
    assert found is not None, answer
    assert figure in found["figure"]
    assert change in found["change"]
    assert found["severity"] == severity
    assert found["why"].endswith(".") or found["why"].endswith(".)")
    assert name in ("data-set",) or found["source"].startswith("https://")
    worst = {"info": 0, "warning": 1, "error": 2}
    assert answer["status"] == max(worst[one["severity"]] for one in answer["findings"])


@pytest.mark.parametrize("name", ["sound", *SOUND_TOO])
def test_not_found_where_it_is_not(examined, name):
    answer = examined[f"{name}, sound"]
    assert name not in [one["id"] for one in answer["findings"]], answer
    if name == "sound":
        assert (answer["status"], answer["findings"]) == (0, []), "each of the defects above is one change away from it"


def test_bad_input_is_no_finding(examined):
    assert (examined["bad"]["status"], examined["bad"]["findings"]) == (2, [])
    assert "unknown patch 'nope'" in examined["bad"]["complained"]


@pytest.mark.parametrize(
    ("version", "patches"), [(FLOOR, "none"), (NEWEST, "none,auto-batch:memory=8")], ids=[FLOOR, NEWEST]
)
def test_measured(version, patches, python, release, digits, tmp_path):
    """Processes train: as it is, with the largest batch, with other workers; nothing is left behind, and no process."""
    data = digits("detect", 8, 8)
    before = {path: path.stat().st_mtime for path in Path(data).parent.rglob("*")}
    words = [
        "model=yolov8n.yaml", f"data={data}", "imgsz=64", "batch=4", "workers=1", "cache=ram", "epochs=3",
        "device=cpu", f"patches={patches}",
    ]  # fmt: skip
    done = python("-m", "yolo_patches", "doctor", "--json", "--measure", "1.5", *words, check=False, **release(version))
    found = json.loads(done.stdout)["measured"]
    now = found["measured"]
    assert (now["batch"], now["batches"], found["epochs"]) == (4, 2, 3)
    assert now["epoch"] >= 2 * now["step"] > 0
    assert found["hours"] == pytest.approx(now["epoch"] * 3 / 3600)
    labels = Path(data).parent.glob("labels/train/*.txt")
    assert now["densest"] == max(len(file.read_text().splitlines()) for file in labels) > 0
    assert now["train_bytes"] > 1 << 28 and now["loading"] > now["batch"] / (now["step"] + now["wait"])
    assert [one["change"] for one in found["tried"]][:1] == ["workers=0" if CORES < 2 else "workers=2"]
    largest = found["largest"]
    if patches == "none":
        assert largest is None, "memory is not measured on a CPU without a limit"
    else:
        most = largest["measured"]
        assert (most["batch"], most["batches"]) == (8, 1), "the data set has no more, and 8 fit"
        assert largest["why"] == "tried: 8 fits into 8 GiB"
        assert largest["hours"] == pytest.approx(most["epoch"] * 3 / 3600)
        assert 1 << 28 < most["train_bytes"] < 8 << 30
    assert done.stderr.count("doctor: measuring ") == 1 + len(found["tried"])
    assert {path: path.stat().st_mtime for path in Path(data).parent.rglob("*")} == before
    assert list(tmp_path.iterdir()) == []
    assert not [one for one in psutil.process_iter(["cmdline"]) if str(data) in " ".join(one.info["cmdline"] or ())]
    bad = python("-m", "yolo_patches", "doctor", "--measure", "soon", check=False, **release(version))
    assert bad.returncode == 2 and "is no number of seconds" in bad.stderr


def test_a_trial_that_fails_is_told_and_memory_that_is_not_measured_is_not(python, release, digits, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(NO_TRIALS)
    where = release(NEWEST)
    where["PYTHONPATH"] = os.pathsep.join([str(tmp_path), where["PYTHONPATH"]])
    words = ["model=yolov8n.yaml", f"data={digits('detect', 8, 8)}", "imgsz=32", "batch=8", "workers=0", "device=cpu"]
    limited = "none,auto-batch:memory=8"
    done = python("-c", LARGEST, json.dumps(["none", "all", limited]), *words, **where)
    why = "Arguments: a trial with batch=8 failed: OSError: the disk is full"
    assert last_json(done) == {"none": None, "all": None, limited: [why, None]}
