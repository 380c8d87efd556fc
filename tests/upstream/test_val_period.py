"""val-period: real trainings that leave validations out, in every release's own loop, and in checkouts."""

from __future__ import annotations

import csv
import json
import math

import pytest

from tests.conftest import MODELS, NEWEST, OLDEST, entry, last_json

TRAIN = """
import hashlib, json, math, sys
import torch
from ultralytics import YOLO

seen = {"validated": [], "fitness": [], "best": [], "told": []}
def on_val_start(validator):
    seen["validated"].append(seen["epoch"])
def on_train_epoch_start(trainer):
    seen["epoch"] = trainer.epoch
    if len(seen["told"]) == 0 and on_val_start not in trainer.validator.callbacks["on_val_start"]:
        trainer.validator.callbacks["on_val_start"].append(on_val_start)
def on_fit_epoch_end(trainer):
    seen["told"].append([trainer.epoch, any(math.isnan(value) for value in trainer.metrics.values())])
    seen["fitness"].append(None if trainer.fitness is None else float(trainer.fitness))
    seen["best"].append(trainer.best.exists())
def on_train_end(trainer):
    parameters = [p.detach().float().flatten() for p in trainer.ema.ema.parameters()]
    seen["weights"] = hashlib.sha256(torch.cat(parameters).numpy().tobytes()).hexdigest()

runs = json.loads(sys.argv[1])
found = []
for arguments in runs:
    seen = {"validated": [], "fitness": [], "best": [], "told": []}
    model = YOLO(arguments.pop("model", "yolov8n.yaml"))
    for callback in (on_train_epoch_start, on_fit_epoch_end, on_train_end):
        model.add_callback(callback.__name__, callback)
    common = {"device": "cpu", "imgsz": 32, "batch": 8, "verbose": False, "workers": 0, "deterministic": True}
    model.train(**{**common, **arguments})
    found.append(seen)
    seen["left"] = [f.__qualname__ for fs in model.callbacks.values() for f in fs if "yolo_patches" in f.__module__]
print()
print(json.dumps(found))
"""


def rows(folder):
    with open(folder / "results.csv") as file:
        return [{key.strip(): value.strip() for key, value in row.items()} for row in csv.DictReader(file)]


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_every_third_epoch(version, release, python, digits, tmp_path):
    """Seven epochs: the same weights as upstream's, and nothing of a skipped epoch is best."""
    # On the CPU upstream has no loader processes: its validation draws from the numbers that augmentation draws from.
    still = dict.fromkeys(("mosaic", "hsv_h", "hsv_s", "hsv_v", "translate", "scale", "fliplr", "erasing"), 0.0)
    common = {"data": digits(), "epochs": 7, "project": str(tmp_path), **still}
    runs = [
        {**common, "name": "upstream", "patches": "none", "plots": False},
        {**common, "name": "third", "patches": "val-period:every=3", "plots": False},
        {**common, "name": "ends", "patches": "val-period:every=100:last=2"},
        {**common, "name": "share", "patches": "val-period:share=0.001", "plots": False},
    ]  # fmt: skip
    upstream, third, ends, share = last_json(python("-c", TRAIN, json.dumps(runs), timeout=600, **release(version)))
    assert upstream["validated"][:7] == list(range(7))
    assert third["left"] == []  # in the callbacks of the user's YOLO object, which workers get pickled
    # The evaluation of the best weights at the end has a validation of its own.
    assert third["validated"][:3] == [2, 5, 6]
    assert [epoch for epoch, nan in third["told"][:7] if not nan] == [2, 5, 6]
    assert [value is None for value in third["fitness"][:7]] == [True, True, False, True, True, False, False]
    assert third["best"][:7] == [False, False, True, True, True, True, True]
    assert third["weights"] == upstream["weights"]
    assert ends["validated"][:2] == [5, 6]
    assert share["validated"][:2] == [0, 6]  # the first tells what one costs
    assert rows(tmp_path / "third")[0].keys() == rows(tmp_path / "upstream")[0].keys()
    for mine, theirs in zip(rows(tmp_path / "third"), rows(tmp_path / "upstream")):
        for name, value in mine.items():
            if name.startswith(("metrics/", "val/")):
                assert math.isnan(float(value)) == (int(mine["epoch"]) not in (3, 6, 7)), name
            elif name != "time":
                assert value == theirs[name], name
    assert (tmp_path / "ends" / "results.png").stat().st_size > 1000
    for name, made in (("third", 3), ("ends", 2), ("share", 2)):
        item = entry(json.loads((tmp_path / name / "patches.json").read_text()), "val-period")
        assert (item["status"], item["verified"]) == ("active", True), (name, item)
        if name != "share":
            assert item["changes"] == [{"what": "validations", "upstream": 7, "patched": made}]


def test_a_resumed_run_keeps_the_rhythm(release, python, digits, tmp_path):
    code = (
        TRAIN.replace(
            "def on_train_end",
            """
def on_model_save(trainer):
    if trainer.epoch == 3 and not trainer.args.resume:
        raise KeyboardInterrupt
def on_train_end""",
        )
        .replace("(on_train_epoch_start,", "(on_model_save, on_train_epoch_start,")
        .replace("    model.train(", "    try: model.train(")
        .replace("**arguments})\n    found", "**arguments})\n    except KeyboardInterrupt: pass\n    found")
    )
    common = {"data": digits(), "epochs": 7, "project": str(tmp_path), "name": "run", "plots": False}
    depth = {"model": MODELS["depth"], "data": digits("depth")}
    runs = [
        {**common, "patches": "val-period:every=3"},
        {"model": str(tmp_path / "run/weights/last.pt"), "resume": True},
        {**common, "name": "depth", "epochs": 2, "patches": "val-period:every=2", **depth},
    ]
    first, second, _ = last_json(python("-c", code, json.dumps(runs), **release(NEWEST)))
    assert first["validated"] == [2]
    assert second["validated"][:2] == [5, 6]
    # Upstream does not know what depth's figures are called before it has made some.
    skipped, validated = rows(tmp_path / "depth")
    assert skipped.keys() == validated.keys() and None not in validated.values()
    names = [name for name, value in skipped.items() if value == "nan"]
    assert "metrics/delta1" in names and "val/dlog_loss" in names and "metrics/mAP50(B)" not in skipped


def test_ranks_skip_together(release, python, digits, tmp_path):
    """Two ranks, each of which validates (8.3.225 on): by the rhythm, and by rank 0's clock."""
    for name, spec in (("every", "every=2"), ("share", "share=0.001")):
        words = ["model=yolov8n.yaml", f"data={digits()}", "epochs=3", "imgsz=32", "batch=8", "device=cpu", "workers=0"]
        words += [f"project={tmp_path}", f"name={name}", "plots=False", f"patches=torchrun,val-period:{spec}"]
        launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "yolo_patches", "train")
        python(*launch, *words, **release(NEWEST))
        item = entry(json.loads((tmp_path / name / "patches.json").read_text()), "val-period")
        assert (item["status"], item["verified"]) == ("active", True), item
        validated = [not math.isnan(float(row["metrics/mAP50(B)"])) for row in rows(tmp_path / name)]
        assert validated == ([False, True, True] if name == "every" else [True, False, True])


@pytest.mark.parametrize(("words", "message"), [
    ("val-period:every=0", "it must be an int of at least 1"),
    ("val-period:share=0", "it must be a number of at least 0.001 and at most 1"),
    ("val-period:last=x", "it must be an int of at least 1"),
])  # fmt: skip
def test_bad_input(words, message):
    from yolo_patches import registry
    from yolo_patches.errors import PatchesError
    from yolo_patches.selection import parse

    with pytest.raises(PatchesError, match=message):
        parse(words, registry.specs())
