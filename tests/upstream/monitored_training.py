"""Train as told, measure it another way, and print both as one line of JSON: `monitored_training.py ARGUMENTS`."""

import csv
import hashlib
import json
import sys
import time
from pathlib import Path
from statistics import median

import numpy
import psutil
import torch

arguments = json.loads(sys.argv[1])
loggers = arguments.pop("loggers", False)
seen = {"norms": [], "ratios": [], "rates": [], "epochs": [], "validations": [], "memory": [], "metrics": []}
state = {"fit": None, "steps": 0}
clip = torch.nn.utils.clip_grad_norm_


def norm_by_hand(parameters, max_norm, *args, **kwargs):
    parameters = list(parameters)
    gradients = [p.grad.double().flatten() for p in parameters if p.grad is not None]
    seen["norms"][-1].append(float(torch.cat(gradients).norm()))
    return clip(parameters, max_norm, *args, **kwargs)


torch.nn.utils.clip_grad_norm_ = norm_by_hand


def flat(model):
    return torch.cat([p.detach().double().flatten() for p in model.parameters() if p.requires_grad])


def on_train_start(trainer):
    for event in (on_val_start, on_val_end):  # 8.0.200 does not hand the trainer's callbacks on
        if event not in trainer.validator.callbacks[event.__name__]:
            trainer.validator.callbacks[event.__name__].append(event)
    if not loggers:
        step = trainer.optimizer.step

        def watched(*args, **kwargs):
            before = flat(trainer.model)
            result = step(*args, **kwargs)
            seen["ratios"][-1].append(float((flat(trainer.model) - before).norm() / before.norm()))
            seen["rates"].append([group["lr"] for group in trainer.optimizer.param_groups])
            return result

        trainer.optimizer.step = watched


def on_train_epoch_start(trainer):
    seen["norms"].append([])
    seen["ratios"].append([])
    state["fit"] = state["fit"] or time.perf_counter()


def on_val_start(validator):
    state["val"] = time.perf_counter()


def on_val_end(validator):
    seen["validations"].append(time.perf_counter() - state["val"])


def on_fit_epoch_end(trainer):
    now = time.perf_counter()
    seen["epochs"].append(now - state["fit"])
    state["fit"] = now
    seen["memory"].append(psutil.Process().memory_full_info().pss / 2**30)
    seen["metrics"].append(sorted(name for name in trainer.metrics if name.startswith("patches/")))


from ultralytics import YOLO  # noqa: E402
from ultralytics.utils import SETTINGS  # noqa: E402

for name in ("tensorboard", "mlflow"):
    dict.__setitem__(SETTINGS, name, loggers)
if loggers:
    import mlflow

    # One new experiment in ten draws its number from the random numbers that augment images: not within a training.
    mlflow.set_experiment(arguments["project"])
model = YOLO(arguments.pop("model"))
for callback in (on_train_start, on_train_epoch_start, on_val_start, on_val_end, on_fit_epoch_end):
    model.add_callback(callback.__name__, callback)
model.train(**arguments)
folder = Path(model.trainer.save_dir)
seen["weights"] = hashlib.sha256(b"".join(v.numpy().tobytes() for v in model.trainer.ema.ema.state_dict().values()))
seen["weights"] = seen["weights"].hexdigest()
table = folder / "patches.csv"
seen["table"] = list(csv.DictReader(table.open())) if table.exists() else []
seen["columns"] = list(next(csv.DictReader((folder / "results.csv").open())))
seen["left"] = sorted(name for name in model.trainer.metrics if name.startswith("patches/"))
seen["quantiles"] = [numpy.quantile(norms, [0.5, 0.95, 1]).tolist() for norms in seen["norms"]]
seen["ratios"] = [
    median([ratio for number, ratio in enumerate(ratios, 1) if number & (number - 1) == 0]) if ratios else None
    for ratios in seen["ratios"]
]
print(json.dumps(seen))
