"""Train as told, and print as JSON what came of it: `validated_trainings.py [arguments, ...]`.

Two trainings are the same where `weights` (of all epochs), `results` and `random` are. Arguments beside upstream's:

    crowd        validations between epochs see that many candidates an image, around the real objects
    unwatched    nobody listens to the validator
    wrong        code that breaks something of ours, for this training
    interrupt    Ctrl-C after the checkpoint of that epoch
    fitness      what validations find, epoch by epoch, whatever the weights are worth
"""

import contextlib
import csv
import hashlib
import json
import random
import sys
from importlib import import_module, reload
from pathlib import Path

import numpy
import psutil
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from validation import Crowd

PARTS = {
    "validation": ("kept_batches", "matching", "scaled_images", "suppression"),
    "loading": ("blend", "canvas", "masks", "planes", "polygons"),
}


def digest(model):
    values = [v.detach().half().float().flatten() for v in model.state_dict().values() if v.dtype.is_floating_point]
    return hashlib.sha256(torch.cat(values).cpu().numpy().tobytes()).hexdigest()[:16]


def train(arguments):
    from ultralytics import YOLO

    wrong = arguments.pop("wrong", "")
    packages = PARTS.items() if wrong else ()
    parts = {name: import_module(f"yolo_patches.{package}.{name}") for package, names in packages for name in names}
    exec(wrong, {"torch": torch, **parts})

    seen = {"weights": [], "random": [], "fitness": [], "events": [], "maps": [], "best": []}

    def on_fit_epoch_end(trainer):
        seen["events"].append(f"fit {trainer.epoch}")
        seen["random"].append(random.getstate()[1][-1])
        seen["fitness"].append(None if trainer.fitness is None else float(trainer.fitness))

    def on_train_epoch_end(trainer):
        seen["events"].append(f"epoch {trainer.epoch}")

    def on_model_save(trainer):
        seen["events"].append(f"save {trainer.epoch}")
        seen["weights"].append(digest(trainer.ema.ema))
        if trainer.epoch == interrupt:
            raise KeyboardInterrupt

    def on_val_end(validator):
        box = getattr(validator.metrics, "box", None)
        seen["maps"].append([] if box is None else [float(value) for value in box.maps])
        if crowd and validator.training:
            del model.trainer.ema.ema.forward
            if "yolo_patches" not in seen.pop("loss").__module__:
                del model.trainer.ema.ema.loss

    crowd, interrupt = arguments.pop("crowd", 0), arguments.pop("interrupt", None)
    fitness, unwatched = arguments.pop("fitness", None), arguments.pop("unwatched", False)

    def on_train_start(trainer):
        # 8.0.200 does not hand the trainer's callbacks on.
        for event in () if unwatched else (on_val_start, on_val_end):
            if event not in trainer.validator.callbacks[event.__name__]:
                trainer.validator.callbacks[event.__name__].append(event)
        if fitness:
            found = trainer.validator.get_stats

            def get_stats():
                value = fitness[min(trainer.epoch, len(fitness) - 1)]
                return {**found(), "fitness": value, "metrics/mAP50-95(B)": value, "metrics/recall(B)": 1 - value}

            trainer.validator.get_stats = get_stats
        if crowd:
            seen["crowd"] = Crowd(crowd, list(trainer.test_loader), trainer.data["nc"])

    def on_val_start(validator):
        if crowd and validator.training:
            seen["crowd"].turn = 0
            model.trainer.ema.ema.forward = seen["crowd"]
            seen["loss"] = vars(model.trainer.ema.ema).setdefault("loss", lambda *_: (None, model.trainer.loss_items))

    model = YOLO(arguments.pop("model", "yolov8n.yaml"))
    callbacks = [on_train_start, on_fit_epoch_end, on_train_epoch_end, on_model_save]
    for callback in callbacks if unwatched else [*callbacks, on_val_start, on_val_end]:
        model.add_callback(callback.__name__, callback)
    common = {"device": "cpu", "imgsz": 64, "batch": 8, "verbose": False, "workers": 0, "deterministic": True}
    try:
        model.train(**{**common, **arguments})
    except KeyboardInterrupt:
        seen["interrupted"] = True
    for part in parts.values():
        reload(part)
    folder = Path(model.trainer.save_dir)
    with open(folder / "results.csv") as file:
        rows = [{key.strip(): value.strip() for key, value in row.items()} for row in csv.DictReader(file)]
    seen["results"] = [{key: value for key, value in row.items() if key != "time"} for row in rows]
    for name in ("best", "last"):
        file = folder / "weights" / f"{name}.pt"
        saved = torch.load(file, weights_only=False) if file.exists() else {}
        seen[name] = digest((saved.get("ema") or saved["model"]).float()) if saved else None
    seen["files"] = sorted(file.name for file in (folder / "weights").iterdir())
    table = folder / "patches.csv"
    seen["table"] = list(csv.DictReader(table.read_text().splitlines())) if table.exists() else None
    plan = folder / "patches.json"
    seen["plan"] = {one["name"]: one for one in json.loads(plan.read_text())["patches"]} if plan.exists() else {}
    left = [f for functions in model.callbacks.values() for f in functions if "yolo_patches" in f.__module__]
    seen.pop("crowd", None)
    children = psutil.Process().children(recursive=True)
    seen["helpers"] = sum("helper_process" in " ".join(child.cmdline()) for child in children)
    seen["left"] = [function.__qualname__ for function in left]
    return seen


def main():
    torch.set_num_threads(1)
    numpy.trapz = getattr(numpy, "trapz", None) or numpy.trapezoid  # what NumPy 2.4 has no more
    torch.load = lambda *args, load=torch.load, **kwargs: load(*args, **{**kwargs, "weights_only": False})
    with contextlib.redirect_stdout(sys.stderr):
        found = [train(arguments) for arguments in json.loads(sys.argv[1])]
    print()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
