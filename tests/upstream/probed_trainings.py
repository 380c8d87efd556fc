"""Train without a probe, with one before the first step, with random numbers drawn there; print the weights' hashes.

probed_trainings.py TASKS      (TASKS: JSON, task -> data)
"""

from __future__ import annotations

import hashlib
import json
import random
import sys

import numpy
import torch
from ultralytics import YOLO

from yolo_patches.upstreams.ultralytics.loss_probe import prove

MODELS = {"detect": "yolov8n.yaml", "pose": "yolov8n-pose.yaml"}
growth = {}


def digest(module):
    state = hashlib.sha256()
    for tensor in module.state_dict().values():
        state.update(tensor.detach().contiguous().numpy().tobytes())
    return state.hexdigest()


def train(task, data, at_start):
    model, weights = YOLO(MODELS[task]), []
    model.add_callback("on_train_start", at_start)
    model.add_callback("on_train_epoch_end", lambda trainer: weights.append(digest(trainer.model)))
    model.train(
        data=data, epochs=2, imgsz=64, batch=4, workers=0, device="cpu", val=False, plots=False, project="runs", seed=3
    )
    return weights[-1]


def probe(trainer):
    growth[trainer.args.task] = prove(trainer.model, trainer.args.task).growth


def draw(trainer):
    torch.rand(1)
    random.random()
    numpy.random.rand()


def main():
    weights = {
        task: [train(task, data, at_start) for at_start in (lambda trainer: None, probe, draw)]
        for task, data in json.loads(sys.argv[1]).items()
    }
    print(json.dumps({"weights": weights, "growth": growth}))


if __name__ == "__main__":
    main()
