"""One rank of training scripts in DistributedDataParallel on the CPU, whose allocator fails, one run after the other.

Started in a checkout whose scripts make DistributedDataParallel on the CPU, too, and compute in float64, with a job:
runs with module, patches, arguments, and

    points      of each rank, [[where, number], ...] as in `tests.upstream.oom_runs`
    frozen      whether BatchNorm is: then parts have the gradient of the whole

Each run is compared with the first one, which has no points: `difference` is that of the weights, relative to what the
training has changed.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import sys
from datetime import timedelta
from functools import partial
from pathlib import Path

sys.path.insert(0, os.getcwd())
job = json.loads(sys.argv.pop(1))
sys.argv = ["oom_rank.py"]

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.parallel import DistributedDataParallel  # noqa: E402

from tests.upstream.oom_runs import Allocator, inside, weights  # noqa: E402
from yolo_patches import api  # noqa: E402

torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
torch.cuda.device_count = lambda: 2
torch.cuda.set_device = lambda device: None
dist.is_nccl_available = lambda: False
dist.init_process_group = partial(dist.init_process_group, timeout=timedelta(seconds=60))
RANK = os.environ["RANK"]
state = {"frozen": True, "allocator": Allocator([])}


def training(layer):
    return vars(layer).get("trains", True) and not state["frozen"]


nn.BatchNorm2d.training = property(training, lambda layer, value: vars(layer).update(trains=value))


def at(where, function):
    """Return a function whose calls ask for their memory there."""

    def call(*args, **kwargs):
        return inside(state["allocator"], where, function)(*args, **kwargs)

    return call


def single(function):
    """Return a function that computes as upstream does: what it fuses and validates is of single precision."""

    def call(*args, **kwargs):
        torch.set_default_dtype(torch.float32)
        try:
            return function(*args, **kwargs)
        finally:
            torch.set_default_dtype(torch.float64)

    return call


def on_cpu(model, device_ids, output_device, **more):
    model.double()  # anchors, too
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_var.fill_(0.1)  # so that something is left of an image behind the last layer
    made = DistributedDataParallel(model, **more)
    state["model"], state["start"] = model, weights(model)
    return made


def prepare(script):
    """Give train() the CPU, and say where its memory is asked for."""
    train, script.prepared = script.train, True
    script.train = lambda hyp, opt, device, callbacks: train(hyp, opt, torch.device("cpu"), callbacks)
    torch_utils, tasks = (importlib.import_module(name) for name in ("utils.torch_utils", "models.yolo"))
    torch_utils.DDP = on_cpu
    forward = tasks.BaseModel._forward_once

    def called(model, *args, **kwargs):
        steps = torch.is_grad_enabled() and model is state.get("model")  # and not what measures strides
        return (at("forward", forward) if steps else forward)(model, *args, **kwargs)

    tasks.BaseModel._forward_once = called
    torch.Tensor.backward = at("backward", torch.Tensor.backward)
    torch.optim.SGD.step = at("step", torch.optim.SGD.step)
    script.validate.run = at("validation", single(script.validate.run))
    script.attempt_load = single(script.attempt_load)


def run(module, patches, words, points, frozen):
    state["frozen"], state["model"] = frozen, None
    state["allocator"] = allocator = Allocator([])
    if "counts" in state:
        allocator.points = {
            (where, max(1, round(n * state["counts"][where])) if isinstance(n, float) else n) for where, n in points
        }
    api.apply(patches)
    sys.argv[1:] = words
    script = importlib.import_module(module)
    callbacks = importlib.import_module("utils.callbacks").Callbacks()
    if "prepared" not in vars(script):
        prepare(script)
    with allocator:
        script.main(script.parse_opt(), callbacks)
    state.setdefault("counts", allocator.counts)
    end = weights(state["model"])
    reference = state.setdefault("reference", end)
    dist.destroy_process_group()
    module = state["model"]
    return {
        "digest": hashlib.sha256(end.numpy().tobytes()).hexdigest(),
        "difference": float((end - reference).norm() / (reference - state["start"]).norm()),
        "fired": allocator.fired,
        "left": sorted(vars(module).keys() & {"forward"}),
    }


results = {}
for (name, *rest), port in zip(job["runs"], job["ports"]):
    print("run", name, flush=True)
    os.environ["MASTER_PORT"] = str(port)  # another for each: the ranks come to the next one by one
    *words, points, frozen = rest
    results[name] = run(*words, points.get(RANK, []), frozen)
    Path(f"{job['out']}.{RANK}").write_text(json.dumps(results))
