"""Train with an allocator that fails, and print as JSON what came of it: `oom_runs.py DATA PROJECT JOB`.

JOB: `runs`, a list of runs, each with upstream's `arguments` and

    points      [[where, number], ...]: in the "check" of mixed precision (played: it asks for memory, and draws),
                "prepare", "forward", "backward", "step", "ema", "validation", what it makes "detections" of, "save",
                the call of that number which asks for at least 4 KiB fails; a fraction is a share of those there are
    ranks       on which they fail, where there are several; all of them otherwise
    limit       any call of the model with more images fails
    exact       float64, BatchNorm frozen: parts have the gradient of the whole to rounding

A call is one operation of torch's, on the host: CUDA's allocator fails at the same places. Each run is compared with
the first one of its `exact` and `arguments`, which has no points: `difference` is that of the weights, relative to
what the training has changed. A launcher's ranks leave what they would print in PROJECT/rank0.json and so on after each
run, and end at the first that fails.
"""

import hashlib
import json
import os
import sys
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

LEAST = 4096


def memory(value):
    """Return what tells the memory of a tensor from that of others, and a view from none; None for anything else."""
    return value.untyped_storage()._cdata if isinstance(value, torch.Tensor) else None


class Allocator(TorchDispatchMode):
    """Counts calls that ask for memory, by where they come from, and lets some of them fail."""

    def __init__(self, points):
        super().__init__()
        self.points = {(where, number) for where, number in points}
        self.counts = {}
        self.where = None
        self.fired = []

    @contextmanager
    def at(self, where):
        before, self.where = self.where, where
        try:
            yield
        finally:
            self.where = before

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():  # as without a mode: what autograd has saved is a plain tensor
            result = func(*args, **(kwargs or {}))
        if self.where is None:
            return result
        held = {memory(leaf) for leaf in tree_leaves((args, kwargs))}
        new = [leaf for leaf in tree_leaves(result) if memory(leaf) not in {None, *held}]
        size = sum(t.numel() * t.element_size() for t in new)
        if size >= LEAST:
            self.counts[self.where] = number = self.counts.get(self.where, 0) + 1
            if (self.where, number) in self.points:
                self.fired.append([self.where, number])
                raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size} bytes.")
        return result


def inside(allocator, where, function):
    def call(*args, **kwargs):
        with allocator.at(where):
            return function(*args, **kwargs)

    return call


def train(data, project, job, points):
    from ultralytics import YOLO
    from ultralytics.engine import trainer as engine
    from ultralytics.nn.tasks import BaseModel

    exact, limit = job.get("exact", True), job.get("limit")
    allocator = Allocator(points)
    yolo = YOLO(job["arguments"].get("model", "yolov8n.yaml"))
    owner = yolo._smart_load("trainer")
    state = {"steps": 0}

    class Trainer(owner):
        def set_model_attributes(self):
            super().set_model_attributes()
            if exact:
                self.model.double()

        def preprocess_batch(self, batch):
            with allocator.at("prepare"):
                batch = super().preprocess_batch(batch)
            return {**batch, "img": batch["img"].double()} if exact else batch

        def optimizer_step(self):
            state["steps"] += 1
            with allocator.at("step"):
                super().optimizer_step()

        def validate(self):
            with allocator.at("validation"):
                return super().validate()

        def final_eval(self):
            on_model_end(self)  # `on_train_end` is rank 0's alone
            with allocator.at("validation"):
                return super().final_eval()

        def save_model(self):
            with allocator.at("save"):
                return super().save_model()

    def on_train_start(trainer):
        state["start"] = weights(module(trainer))
        trainer.ema.update = inside(allocator, "ema", trainer.ema.update)
        trainer.validator.postprocess = inside(allocator, "detections", trainer.validator.postprocess)
        if exact:
            trainer.validator.args.half = False

    def on_train_batch_start(trainer):
        if exact:
            for module in trainer.model.modules():
                if isinstance(module, torch.nn.BatchNorm2d):
                    module.eval()

    def on_model_end(trainer):
        state.update(end=weights(module(trainer)), ema=weights(trainer.ema.ema), trainer=trainer)
        state["figures"] = {name: float(value) for name, value in (trainer.metrics or {}).items()}
        state["optimizer"] = [
            v.double().flatten() for s in trainer.optimizer.state.values() for v in s.values() if torch.is_tensor(v)
        ]

    yolo.add_callback("on_train_start", on_train_start)
    yolo.add_callback("on_train_batch_start", on_train_batch_start)
    forward, backward = BaseModel.forward, torch.Tensor.backward

    def limited(model, x, *args, **kwargs):
        images = len(x["img"] if isinstance(x, dict) else x)
        if limit and images > limit and (torch.is_grad_enabled() or not isinstance(x, dict)) and "start" in state:
            allocator.fired.append(["limit", images])
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.50 GiB.")
        if not (torch.is_grad_enabled() and "start" in state):
            return forward(model, x, *args, **kwargs)
        return inside(allocator, "forward", forward)(model, x, *args, **kwargs)

    def check(model):
        return bool(torch.rand(LEAST).sum() < 0)

    check_amp, engine.check_amp = engine.check_amp, inside(allocator, "check", check)
    BaseModel.forward = limited
    torch.Tensor.backward = inside(allocator, "backward", backward)
    try:
        with allocator:
            yolo.train(
                trainer=Trainer,
                data=data,
                project=project,
                exist_ok=True,
                device="cpu",
                workers=0,
                plots=False,
                **{
                    "epochs": 2,
                    "imgsz": 64,
                    "batch": 8,
                    "nbs": 16,
                    "lr0": 1e-5,
                    "optimizer": "SGD",  # others divide by the gradient, where that is rounding, too
                    "warmup_bias_lr": 1e-5,
                    "seed": 1,
                    "verbose": False,
                    "model": "yolov8n.yaml",
                    "amp": True,  # which is tried, and then left alone on a CPU
                    **job["arguments"],
                },
            )
    except Exception as error:
        if "RANK" in os.environ:  # the others would wait for it: the launcher ends them
            raise
        return {"died": f"{type(error).__name__}: {error}"[:300], "fired": allocator.fired}, None, allocator
    finally:
        BaseModel.forward, torch.Tensor.backward = forward, backward
        left, engine.check_amp = engine.check_amp, check_amp
    result = {
        "fired": allocator.fired,
        "steps": state["steps"],
        "batch": state["trainer"].batch_size,
        "figures": state["figures"],
        "fitness": float(state["trainer"].best_fitness or 0),
        "random": [float(torch.rand(())), __import__("random").random()],
        "notes": notes(state["trainer"].save_dir),
        "names": sorted(vars(module(state["trainer"])).keys() & {"forward"}) + ["check"] * hasattr(left, "__wrapped__"),
        "digest": hashlib.sha256(state["end"].numpy().tobytes()).hexdigest(),
    }
    return result, state, allocator


def notes(folder):
    path = folder / "patches.json"
    entries = json.loads(path.read_text())["patches"] if path.exists() else []
    return next(
        ({k: e.get(k) for k in ("status", "verified", "notes", "reason")} for e in entries if e["name"] == "oom-guard"),
        None,
    )


def module(trainer):
    return getattr(trainer.model, "module", trainer.model)


def weights(model):
    return torch.cat([v.detach().double().flatten() for v in model.state_dict().values() if v.is_floating_point()])


def main(data, project, job):
    torch.set_num_threads(1)
    from yolo_patches.upstreams.ultralytics.rounding import leave_out

    leave_out()
    rank = int(os.environ.get("RANK", -1))
    references = {}
    results = []
    train(data, project, job["runs"][0], [])  # the first in a process finds no caches, and draws other random numbers
    for run in job["runs"]:
        key = json.dumps([run.get("exact", True), {k: v for k, v in run["arguments"].items() if k != "patches"}])
        counts = references[key][1].counts if key in references else {}
        points = [
            (where, number if isinstance(number, int) else max(1, round(number * counts[where])))
            for where, number in run.get("points", [])
            if rank in run.get("ranks", [rank]) and (isinstance(number, int) or where in counts)
        ]
        result, state, allocator = train(data, project, run, points)
        if key not in references:
            references[key] = state, allocator
            result["counts"] = allocator.counts
        elif state is not None:
            reference, _ = references[key]
            for name in ("end", "ema"):
                moved = (reference[name] - reference["start"]).norm()
                result[name] = float((state[name] - reference[name]).norm() / moved)
            mine, theirs = map(torch.cat, (state["optimizer"], reference["optimizer"]))
            result["optimizer"] = float((mine - theirs).norm() / theirs.norm())
        results.append({**result, "points": points})
        if rank >= 0:
            Path(project, f"rank{rank}.json").write_text(json.dumps(results))
    print()
    print(json.dumps(results))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))
