"""Each model's published augmentation: in the plan for every variant, and in the transforms of real trainings."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import yaml

from tests.conftest import NEWEST, OLDEST, ROOT, entry, last_json

PLANS = ROOT / "tests" / "upstream" / "augment_plans.py"
#: scale, mixup, copy_paste as published: YOLOv8's training logs and ultralytics#1509, YOLOv10's paper (Table 14),
#: ultralytics#16607, YOLOv12's README, Ultralytics' guide to YOLO26's training (Objects365). Upstream has .5, 0, 0.
PUBLISHED = {
    "yolov8": {"n": (0.5, 0, 0), "s": (0.5, 0, 0), "m": (0.9, 0.1, 0.1), "l": (0.9, 0.15, 0.3), "x": (0.9, 0.15, 0.3)},
    "yolov10": {
        "n": (0.5, 0, 0), "s": (0.5, 0, 0), "m": (0.9, 0.1, 0.1), "b": (0.9, 0.1, 0.1), "l": (0.9, 0.15, 0.3),
        "x": (0.9, 0.15, 0.3),
    },
    **{family: {
        "n": (0.5, 0, 0.1), "s": (0.9, 0.05, 0.15), "m": (0.9, 0.15, 0.4), "l": (0.9, 0.15, 0.5), "x": (0.9, 0.2, 0.6),
    } for family in ("yolo11", "yolo12", "yolo26")},
}  # fmt: skip
NAMES = ("scale", "mixup", "copy_paste")
DEFAULTS = dict(zip(NAMES, (0.5, 0.0, 0.0)))
FAMILIES = {OLDEST: ("yolov8", "yolov10"), NEWEST: tuple(PUBLISHED)}


def changes(plan):
    return {change["what"]: change["patched"] for change in plan["augment"]["changes"]}


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_every_variant(version, release, python):
    models = {
        f"{family}{size}": dict(zip(NAMES, values)) for family in FAMILIES[version] for size, values in
        PUBLISHED[family].items()
    }  # fmt: skip
    cases = []
    for name in models:
        model = f"{name}.yaml"
        cases += [
            [f"{name} scratch", {"model": model}],
            [f"{name} weights", {"model": model, "pretrained": "some.pt"}],
            [f"{name} file", {"model": f"{name}.pt"}],
            [f"{name} given", {"model": model, "scale": 0.5, "mixup": 0.7}],
        ]
    plans = last_json(python(PLANS, json.dumps(cases), **release(version)))
    for name, published in models.items():
        assert changes(plans[f"{name} scratch"]) == {
            key: value for key, value in published.items() if value != DEFAULTS[key]
        }
        for case in ("weights", "file"):
            assert plans[f"{name} {case}"]["augment"]["status"] == "inert"
            assert "starts from weights" in plans[f"{name} {case}"]["augment"]["reason"]
        given = plans[f"{name} given"]
        assert set(changes(given)) == ({"copy_paste"} if published["copy_paste"] else set())  # also where equal
        assert "mixup=0.7 is yours; published is" in " ".join(given["augment"]["notes"])


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_its_layers_say_which_model_it_is(version, release, python, tmp_path):
    folder = Path(os.environ["YOLO_PATCHES_UPSTREAMS"], version, "ultralytics", "cfg", "models", "v8")
    original = yaml.safe_load((folder / "yolov8.yaml").read_text())
    sizes = original["scales"]

    def write(name, **changed):
        (tmp_path / name).write_text(yaml.safe_dump({**original, **changed}, sort_keys=False))
        return name

    write("mine.yaml", nc=3, scales={"x": sizes["x"], "n": sizes["n"]}, scale="n")  # upstream builds the first
    write("yolov10m.yaml", scales={"m": sizes["l"]})  # in 8.4.190 a file in this folder comes before upstream's own
    head = [*original["head"][:-1], [[15, 18, 21], 1, "Detect", ["nc"]]]
    write("yolov8deeper.yaml", backbone=[*original["backbone"], [-1, 1, "Conv", [1024, 3, 1]]], head=head)
    weights = str(tmp_path / "weights.pt")
    cases = [
        ["by its layers", {"model": "mine.yaml"}],
        ["object", {"model": "mine.yaml", "yolo": True, "data": "coco8.yaml"}],
        ["misnamed", {"model": "yolov10m.yaml"}],
        ["nobody's", {"model": "yolov8deeper.yaml"}],
        ["loaded", {"model": "mine.yaml", "yolo": True, "load": weights, "data": "coco8.yaml"}],
        ["weights", {"model": weights, "yolo": True, "data": "coco8.yaml", "patches": "augment:finetune=true"}],
        ["reset", {"model": weights, "yolo": True, "pretrained": False, "data": "coco8.yaml"}],
        ["pose", {"model": "yolov8x-pose.yaml", "task": "pose"}],
        ["segment", {"model": "yolov8x-seg.yaml", "task": "segment"}],
        ["one-size", {"model": "yolov9c.yaml"}],
        ["weak", {"model": "yolov9c.yaml", "patches": "augment:confidence=low"}],
        ["full", {"model": "yolov10x.yaml", "batch": 320, "patches": "augment:full=true,linear-lr"}],
        ["auto", {"model": "yolov10x.yaml", "batch": 320}],
        ["some", {"model": "mine.yaml", "patches": "augment:recipe=yolov10x"}],
    ]
    plans = last_json(python(PLANS, json.dumps(cases), weights, **release(version)))
    large = {"scale": 0.9, "mixup": 0.15, "copy_paste": 0.3}
    for case in ("by its layers", "object", "segment", "some"):
        assert changes(plans[case]) == large, case
    assert "mine has the layers of yolov8x" in plans["by its layers"]["augment"]["notes"]
    assert "published for yolov8x, which detects" in " ".join(plans["segment"]["augment"]["notes"])
    if version == NEWEST:
        assert "yolov10m has the layers of yolov8l" in plans["misnamed"]["augment"]["notes"]
        assert changes(plans["misnamed"]) == large
    assert "yolov8deeper is no published model" in plans["nobody's"]["augment"]["reason"]
    assert plans["nobody's"]["augment"]["status"] == plans["loaded"]["augment"]["status"] == "inert"
    assert "starts from weights" in plans["loaded"]["augment"]["reason"]
    assert "the values that yolov8n was trained with" in plans["weights"]["augment"]["reason"]
    assert "published for training from scratch" in " ".join(plans["weights"]["augment"]["notes"])
    # Old releases take the weights of a .pt file whatever `pretrained=` says.
    reset = "nothing to change in the values that yolov8n" if version == NEWEST else "starts from weights"
    assert reset in plans["reset"]["augment"]["reason"]
    assert "nothing was published for pose" in plans["pose"]["augment"]["reason"]
    assert "augment:confidence=low takes them" in plans["one-size"]["augment"]["reason"]
    assert changes(plans["weak"]) == large
    full = changes(plans["full"])
    assert (full["optimizer"], full["epochs"], full["warmup_bias_lr"], full["scale"]) == ("SGD", 500, 0.0, 0.9)
    assert plans["full"]["linear-lr"]["reason"] == "x2 = effective batch 320 / base 160"
    notes = " ".join(plans["auto"]["augment"]["notes"])
    assert "published with optimizer=SGD" in notes
    assert "this run has optimizer=auto" in notes
    assert "the last 10 epochs are without mosaic" in notes
    assert plans["auto"]["linear-lr"]["reason"] == "x5 = effective batch 320 / base 64"


def test_copies_under_upstreams_name(release, python, tmp_path):
    """Others ship Ultralytics with models of their own: what they have added tells whose copy it is."""
    home = Path(release("8.3.100")["PYTHONPATH"], "ultralytics")
    copy = Path(shutil.copytree(home, tmp_path / "copy" / "ultralytics"))
    (copy / "cfg" / "models" / "v13").mkdir()
    layers = yaml.safe_load((home / "cfg" / "models" / "11" / "yolo11.yaml").read_text())
    layers["backbone"].append([-1, 1, "Conv", [1024, 1, 1]])
    layers["head"][-1][0] = [17, 20, 23]
    (copy / "cfg" / "models" / "v13" / "yolov13.yaml").write_text(yaml.safe_dump(layers, sort_keys=False))
    # Some constructors take keys out of their overrides that are no arguments: 8.4.101 its session.
    cases = [["theirs", {"model": "yolov13x.yaml", "session": None}], ["upstream's", {"model": "yolo11x.yaml"}]]
    plans = last_json(python(PLANS, json.dumps(cases), PYTHONPATH=str(copy.parent)))
    assert plans["theirs"]["version"] == "8.3.100 of iMoonLab/yolov13"
    assert "that yolov13x was trained with" in plans["theirs"]["augment"]["reason"]
    assert "that yolo11x was trained with" in plans["upstream's"]["augment"]["reason"]
    assert changes(plans["theirs"]) == changes(plans["upstream's"]) == {"scale": 0.9, "mixup": 0.2, "copy_paste": 0.6}


TRAIN = """
import json, sys
import torch
from ultralytics import YOLO

def names(compose):
    for part in compose.transforms:
        yield part
        if hasattr(part, "transforms"):
            yield from names(part)

seen = {}
def started(trainer):
    kinds = {type(part).__name__: part for part in names(trainer.train_loader.dataset.transforms)}
    seen["live"] = [kinds["RandomPerspective"].scale, kinds["MixUp"].p, kinds["CopyPaste"].p, kinds["Mosaic"].p]
    seen["folder"] = str(trainer.save_dir)

arguments = json.loads(sys.argv[1])
model = YOLO(arguments.pop("model"))
model.add_callback("on_train_start", started)
model.train(device="cpu", imgsz=32, batch=8, plots=False, verbose=False, workers=0, **arguments)
checkpoint = torch.load(seen["folder"] + "/weights/last.pt", weights_only=False)
seen["checkpoint"] = [checkpoint["train_args"][name] for name in ("scale", "mixup", "copy_paste", "mosaic")]
print()
print(json.dumps(seen))
"""


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_in_the_live_transforms(version, release, python, digits, tmp_path):
    """A real training, and what it leaves for a rerun without us."""

    def train(name, **arguments):
        common = {"model": "yolov8n.yaml", "data": digits(), "epochs": 2, "close_mosaic": 1, "project": str(tmp_path)}
        return last_json(python("-c", TRAIN, json.dumps({**common, "name": name, **arguments}), **release(version)))

    theirs = [0.9, 0.15, 0.3, 1.0]
    patched = train("patched", patches="augment:recipe=yolov10x")
    assert patched["live"] == theirs
    # Before ultralytics#16627 what close_mosaic switches off was switched off in the saved arguments, too.
    assert patched["checkpoint"] == (theirs if version == NEWEST else [0.9, 0.0, 0.0, 0.0])
    plan = json.loads((tmp_path / "patched" / "patches.json").read_text())
    assert entry(plan, "augment")["verified"] is True  # close_mosaic has changed the transforms since
    notes = " ".join(entry(plan, "augment")["notes"])
    assert "copy_paste does nothing here: no label has a polygon" in notes
    assert "this one has 16 images" in notes
    arguments = yaml.safe_load((tmp_path / "patched" / "args.yaml").read_text())
    assert [arguments[name] for name in ("scale", "mixup", "copy_paste")] == theirs[:3]
