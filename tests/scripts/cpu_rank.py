"""One rank of training scripts on the CPU: their own main(), which insists on CUDA devices, one run after the other.

What main() asks of CUDA is answered for it, and train() gets the CPU, where it makes no DistributedDataParallel: so
gradients are averaged where they are clipped. Everything else is the scripts' own. Started in a checkout, with a job:
runs with module, patches, arguments, and whether rank 0 shall call the model on its own account in every callback.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, os.getcwd())
job = json.loads(sys.argv.pop(1))
sys.argv = ["cpu_rank.py"]

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402

torch.set_num_threads(1)
torch.cuda.device_count = lambda: 2
torch.cuda.set_device = lambda device: None
dist.is_nccl_available = lambda: False
seen = {}
clip = torch.nn.utils.clip_grad_norm_


def averaged(parameters, max_norm):
    parameters = [parameter for parameter in parameters if parameter.requires_grad]
    gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    for parameter, gradient in zip(parameters, flat.split([g.numel() for g in gradients])):
        parameter.grad = (gradient / dist.get_world_size()).view_as(parameter)
    seen["parameters"] = parameters
    return clip(parameters, max_norm)


torch.nn.utils.clip_grad_norm_ = averaged


def meddling(callbacks):
    """Have rank 0 alone call the training-mode model in every callback that comes between two steps."""
    if os.environ["RANK"] != "0":
        return

    def call(*args, **kwargs):
        seen["model"].train()(torch.rand(2, 3, 64, 64))
        seen["calls"] = seen.get("calls", 0) + 1

    for event in callbacks._callbacks:
        if event.startswith(("on_train", "on_fit", "on_model")):
            callbacks.register_action(event, callback=call)


def prepare(script):
    """Give train() the CPU, and all ranks rank 0's model where DistributedDataParallel would."""
    train, script.prepared, plain = script.train, True, script.de_parallel

    def on_cpu(hyp, opt, device, callbacks):
        return train(hyp, opt, torch.device("cpu"), callbacks)

    def de_parallel(model):
        if "model" not in seen:
            seen["model"] = model
            for tensor in (*model.parameters(), *model.buffers()):
                dist.broadcast(tensor.detach(), 0)
        return plain(model)

    script.train, script.de_parallel = on_cpu, de_parallel


def run(module, patches, words, meddles):
    from yolo_patches import api
    from yolo_patches.nn.sync_batchnorm import synchronised_passes

    seen.clear()
    api.apply(patches)
    sys.argv[1:] = words
    script = importlib.import_module(module)
    callbacks = importlib.import_module("utils.callbacks").Callbacks()
    if meddles:
        meddling(callbacks)
    if "prepared" not in vars(script):
        prepare(script)
    passes = synchronised_passes()
    script.main(script.parse_opt(), callbacks)
    digest = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in seen["parameters"])).hexdigest()
    dist.destroy_process_group()
    return {"digest": digest, "passes": synchronised_passes() - passes, "calls": seen.get("calls", 0)}


results = {}
for (name, *rest), port in zip(job["runs"], job["ports"]):
    print("run", name, flush=True)
    os.environ["MASTER_PORT"] = str(port)  # another for each: the ranks come to the next one by one
    results[name] = run(*rest)
    Path(f"{job['out']}.{os.environ['RANK']}").write_text(json.dumps(results))
