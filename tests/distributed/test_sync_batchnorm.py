"""Synchronised BatchNorm on real gloo ranks against plain BatchNorm in one process on the concatenated batch.

Run by pytest, this file starts itself, as ranks, and reads what they measured.
Every error bound stands beside what plain BatchNorm on each rank's own shard shows in the same place, so each of these
tests is seen to be able to fail.
"""

from __future__ import annotations

import copy
import datetime
import gc
import importlib
import inspect
import io
import json
import os
import pickle
import pickletools
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import weakref
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules._functions import SyncBatchNorm as NativeFunction

from yolo_patches.nn import gathering, neighbours, sync_batchnorm
from yolo_patches.nn.common_step import common_step
from yolo_patches.nn.sync_batchnorm import (
    SyncBatchNorm1d,
    SyncBatchNorm2d,
    SyncBatchNorm3d,
    convert,
    revert,
    supported,
    synchronised_passes,
)

ROOT = Path(__file__).resolve().parents[2]
#: Numbers of ranks, and whether they talk over sockets or, as ranks of several machines do, through gloo.
WORLDS = ((2, "near"), (2, "far"), (4, "near"), (4, "far"))
CHANNELS = 6
SHARDS = {  # what rank r holds: batch size and spatial size
    "equal": lambda r: (4, 6, 6),
    "unequal": lambda r: (1 + r, 5 + 2 * r, 7),
    "one rank empty": lambda r: (3 * (r != 1), 4, 4),
    "all but one empty": lambda r: (3 * (r == 0), 4, 4),
    "one value each": lambda r: (1, 1, 1),
    "batch only": lambda r: (3 + r,),
    "sequence": lambda r: (2, 5 + r),
    "volume": lambda r: (2, 3, 4 + r, 2),
}
BATCH_NORM = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
CASES = {  # shards, dtype, memory format, offset of the input, arguments and later changes of the layer, steps
    **{name: {"shards": name} for name in SHARDS},
    "channels last": {"shards": "unequal", "channels_last": True},
    "channels last 3d": {"shards": "volume", "channels_last": True},
    "channels last, empty": {"shards": "one rank empty", "channels_last": True},
    "sliced input": {"shards": "unequal", "sliced": True},
    "not affine": {"shards": "unequal", "layer": {"affine": False}},
    "untracked": {"shards": "unequal", "layer": {"track_running_stats": False}},
    "tracked no more": {"shards": "unequal", "attributes": {"track_running_stats": False}},
    "cumulative": {"shards": "unequal", "layer": {"momentum": None}, "steps": 3},
    "momentum": {"shards": "unequal", "layer": {"momentum": 0.03, "eps": 1e-3}, "steps": 3},
    "large offset": {"shards": "unequal", "offset": 1000.0},
    "float32": {"shards": "unequal", "dtype": torch.float32},
    "float32 channels last": {"shards": "unequal", "dtype": torch.float32, "channels_last": True},
    "float32 large offset": {"shards": "unequal", "dtype": torch.float32, "offset": 1000.0},
}
#: What one of two ranks suffers in the middle of a step, and how the ranks talk.
FAULTS = (
    *(("killed in forward", "near"), ("killed in forward", "far")),
    *(("killed in backward", "near"), ("killed in backward", "far")),
    *(("killed while it connects", "near"), ("killed beside its worker", "near")),
    *(("raises", "near"), ("raises", "far"), ("stopped", "near"), ("stopped", "far")),
)
STOPPED = 3  # seconds
FLOAT64 = [name for name, case in CASES.items() if case.get("dtype", torch.float64) == torch.float64]
UNSYNCHRONISED = ("eval", "untracked eval", "no_grad", "inference_mode", "no step", "another thread")
FLOAT32 = [name for name in CASES if name not in FLOAT64]


# ---------------------------------------------------------------------------------------------- what the ranks measure


def flat(shards):
    """All shards as one batch of shape (1, C, n, 1), which 2-d BatchNorm treats as it would the concatenation."""
    return torch.cat([shard.transpose(0, 1).reshape(shard.shape[1], -1) for shard in shards], dim=1)[None, :, :, None]


def error(value, expected):
    """Norm of the difference, relative to the norm of what is expected."""
    difference = (value.double() - expected.double()).norm().item()
    return difference / max(expected.double().norm().item(), 1e-300)


def everywhere(value):
    """The values of all ranks."""
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def in_thread(function):
    """What a function returns in a thread of its own."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(function).result()


def train_step(layer, x, weights):
    """One forward and backward pass; return the output and the gradients of input, weight and bias."""
    layer.zero_grad()
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    y = layer(x)
    (y * weights).sum().backward()
    return {
        "output": y.detach(),
        "grad input": x.grad,
        **{f"grad {name}": parameter.grad.clone() for name, parameter in layer.named_parameters()},
    }


def batches(case, world):
    """The shards of all ranks and the weights of the loss, for every step of a case."""
    generator = torch.Generator().manual_seed(1)
    dtype = case.get("dtype", torch.float64)
    for _ in range(case.get("steps", 1)):
        sizes = [(n, CHANNELS, *size) for n, *size in map(SHARDS[case["shards"]], range(world))]
        xs = [torch.randn(size, generator=generator).mul(2).add(case.get("offset", 3.0)).to(dtype) for size in sizes]
        yield xs, [torch.randn(size, generator=generator).to(dtype) for size in sizes]


def laid_out(x, case):
    """A shard in the memory format of a case."""
    if case.get("channels_last"):
        return x.contiguous(memory_format=torch.channels_last if x.dim() == 4 else torch.channels_last_3d)
    return torch.stack((x, -x), dim=-1)[..., 0] if case.get("sliced") else x


def train(layer, steps):
    """Everything that the last step gives, and the buffers that all steps leave."""
    for x, weights in steps:
        found = train_step(layer, x, weights)
    assert found["output"].stride() == torch.empty_like(x).stride()
    return {**found, **dict(layer.named_buffers())}


def errors(found, expected, world):
    """Relative errors of what the ranks found, put together, against what one process does with all shards."""
    together = {}
    ranks = everywhere(found) if world > 1 else [found]
    for name in found:
        values = [rank[name] for rank in ranks]
        if name in ("output", "grad input"):
            together[name] = flat(values)
        else:  # gradients of parameters are local sums, buffers are common
            together[name] = sum(values) if name.startswith("grad ") else found[name]
    return {name: error(value, expected[name]) for name, value in together.items()}


def check_cases(rank, world):
    """Errors against one process in float64: of synchronised and plain layers, and of one process in the same dtype."""
    results = {}
    for name, case in CASES.items():
        steps = list(batches(case, world))
        torch.manual_seed(2)
        plain = BATCH_NORM[steps[0][0][0].dim()](CHANNELS, **case.get("layer", {}))
        for parameter in plain.parameters():
            nn.init.uniform_(parameter, 0.5, 1.5)
        vars(plain).update(case.get("attributes", {}))
        plain.to(case.get("dtype", torch.float64))
        whole = copy.deepcopy(plain)
        whole.__class__ = nn.BatchNorm2d
        expected = train(copy.deepcopy(whole).double(), [(flat(xs).double(), flat(ws).double()) for xs, ws in steps])
        mine = [(laid_out(xs[rank], case), weights[rank]) for xs, weights in steps]

        layer = copy.deepcopy(plain)
        assert convert(layer) == 1
        found = {"synchronised": errors(train(layer, mine), expected, world)}
        states = everywhere([buffer.numpy().tobytes().hex() for buffer in layer.buffers()])
        found["buffers agree"] = all(state == states[0] for state in states)
        one_process = train(whole, [(flat(xs), flat(weights)) for xs, weights in steps])
        found["one process"] = errors(one_process, expected, 1)
        if "empty" not in name and case["shards"] != "one value each":  # plain BatchNorm on a shard has no answer there
            found["unsynchronised"] = errors(train(plain, mine), expected, world)
        results[name] = found
    return results


def check_uncentred(rank, world):
    """What E[x^2] - E[x]^2 in float32 would make of the variance in the case of a large offset."""
    x = torch.randn(10000, generator=torch.Generator().manual_seed(3)) * 2 + 1000
    return error((x * x).mean() - x.mean() ** 2, x.double().var())


def check_constant(rank, world):
    """The variance of one and the same value everywhere, in float32, and how far the output is from the bias."""
    layer = nn.BatchNorm2d(2, momentum=1.0)
    convert(layer)
    output = layer(torch.full((2, 2, 7, 3), 0.1))
    return {"variance": layer.running_var.tolist(), "output": output.abs().max().item()}


def check_local_gradients(rank, world):
    """The bias gradient must be this rank's sum of dy, not that of all ranks."""
    layer = nn.BatchNorm2d(2).double()
    convert(layer)
    layer(torch.randn(2, 2, 3, 3).double()).mul(rank + 1.0).sum().backward()
    return layer.bias.grad.tolist()


def check_forward_decides(rank, world):
    """The backward pass does what its forward pass did, wherever it is made."""
    xs = torch.randn(world, 2, 3, 4, 4, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    weights = torch.randn(xs.shape, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    whole, part = (x.clone().requires_grad_() for x in (xs.flatten(0, 1), xs[rank]))
    (nn.BatchNorm2d(3).double()(whole) * weights.flatten(0, 1)).sum().backward()
    (nn.BatchNorm2d(3).double()(part) * weights[rank]).sum().backward()
    expected = {"synchronised": whole.grad.view(xs.shape)[rank], "plain": part.grad}
    found = {}
    for name in expected:
        layer = nn.BatchNorm2d(3).double()
        convert(layer)
        x = xs[rank].clone().requires_grad_()

        def forward(layer=layer, x=x):
            return layer(x)

        y = forward() if name == "synchronised" else in_thread(forward)
        loss = (y * weights[rank]).sum()
        in_thread(loss.backward) if name == "synchronised" else loss.backward()
        found[name] = error(x.grad, expected[name])
    return found


def check_recomputed(rank, world):
    """A layer that is computed again in the backward pass: collectives, and the same gradient."""
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.SiLU()).double()
    convert(net)
    gradients, passes = [], [synchronised_passes()]
    for again in (False, True):
        y = torch.utils.checkpoint.checkpoint(net, x, use_reentrant=False) if again else net(x)
        net.zero_grad()
        (y**2).sum().backward()
        gradients.append(net[0].weight.grad.clone())
        passes.append(synchronised_passes())
    return {"error": error(*gradients), "passes": [passes[1] - passes[0], passes[2] - passes[1]]}


def check_compiled(rank, world):
    """Under torch.compile: asked at each call whether a step is under way."""
    if world > 2 or gathering.neighbours is not neighbours.neighbours:
        return None  # takes seconds
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.SiLU())
    convert(net)
    compiled, x, found = torch.compile(net, backend="eager"), torch.randn(2, 3, 4, 4), {}
    for name in ("step", "no step", "step again"):
        before = synchronised_passes()
        y = in_thread(lambda: compiled(x)) if name == "no step" else compiled(x)
        passes = synchronised_passes() - before
        expected = in_thread(lambda: net(x)) if name == "no step" else net(x)
        found[name] = [passes, torch.equal(y, expected)]
    return found


def check_unreached(rank, world):
    """A device that the layers, or the backend, cannot synchronise: plain BatchNorm and no error."""
    layer, plain = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    convert(layer, dist.new_group(backend="cuda:gloo"))
    x, before = torch.randn(2, 3, 4, 4), synchronised_passes()
    meta = nn.BatchNorm2d(3, device="meta")
    convert(meta)
    return {
        "backend": torch.equal(layer(x), plain(x)),
        "device": meta(x.to("meta")).device.type,
        "passes": synchronised_passes() - before,
    }


def alone_unsynchronised(rank, world):
    """Where nothing is synchronised: bit for bit plain BatchNorm."""
    within = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}
    results = {}
    for name in UNSYNCHRONISED:
        plain = nn.BatchNorm2d(3, track_running_stats=name != "untracked eval").train("eval" not in name)
        layer = copy.deepcopy(plain)
        convert(layer)
        x = torch.randn(4, 3, 5, 5)
        weights = torch.randn(x.shape)

        def both(plain=plain, layer=layer, x=x, weights=weights):
            if not torch.is_grad_enabled():
                return {"output": plain(x)}, {"output": layer(x)}
            return train_step(plain, x, weights), train_step(layer, x, weights)

        if name == "no step":
            expected, found = both()
        else:
            with common_step(), within.get(name, torch.enable_grad)():
                expected, found = in_thread(both) if name == "another thread" else both()
        equal = all(torch.equal(expected[key], found[key]) for key in expected)
        results[name] = equal and all(torch.equal(*pair) for pair in zip(plain.buffers(), layer.buffers()))
    return results


def alone_traced(rank, world):
    """What a training script does for TensorBoard: rank 0 traces the model in training mode."""
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.SiLU())
    plain, x = copy.deepcopy(net), torch.randn(2, 3, 5, 5)
    convert(net)
    traced = torch.jit.trace(net, x, strict=False)
    with common_step():
        inside = torch.jit.trace(net, x, strict=False)
    return (
        torch.equal(traced(x), plain(x))
        and torch.equal(inside(x), plain(x))
        and "batch_norm" in str(traced.inlined_graph)
    )


def check_collectives(rank, world):
    """Number of collectives that a net of three layers starts: the process group's, and exchanges over sockets."""
    layers = [(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.SiLU(inplace=True)) for _ in range(3)]
    net = nn.Sequential(*[module for layer in layers for module in layer])
    convert(net)

    exchanged = [0]
    sent, send = [], neighbours.Neighbours.send
    neighbours.Neighbours.send = lambda self, message: sent.append(send(self, message))

    def started():
        return dist.group.WORLD._get_sequence_number_for_group() + len(sent)

    def collectives(function):
        before, passes = started(), synchronised_passes()
        result = function()
        exchanged[-1] += synchronised_passes() - passes
        return started() - before, result

    x = torch.randn(2, 3, 4, 4)
    forward, y = collectives(lambda: net(x))
    backward, _ = collectives(lambda: y.sum().backward())
    with torch.no_grad():
        no_grad, _ = collectives(lambda: net(x))
    evaluation, _ = collectives(lambda: net.eval()(x))
    first = nn.BatchNorm2d(3)
    convert(first)
    data = first(x).sum()  # the input needs no gradient, so there is nothing to synchronise in the backward pass
    data_backward, _ = collectives(data.backward)
    neighbours.Neighbours.send = send
    return {
        "sent": len(sent),
        "all_reduce": collectives(lambda: dist.all_reduce(x))[0],  # the count counts
        "forward": forward,
        "backward": backward,
        "no_grad": no_grad,
        "eval": evaluation,
        "backward to data": data_backward,
        "passes": exchanged[0],
    }


def check_routes(rank, world):
    """Connections that every rank has, or none; and a message that is too long for them."""
    here, listen = neighbours._connect(dist.group.WORLD), neighbours._listen
    here.send(torch.full((3,), float(rank)))
    rows = here.receive(torch.full((3,), float(rank)))
    here.close()
    if rank == world - 1:
        neighbours._listen = lambda *_: None
    none = neighbours._connect(dist.group.WORLD)
    neighbours._listen = listen
    long = torch.ones(neighbours.LONGEST // 4 + 1)
    gathered = gathering.Gathered(long, dist.group.WORLD, world).wait()
    return {
        "near": here is not None,
        "one cannot": none,
        "sum": rows[:, 0].sum().item(),
        "long": gathered.sum(0)[0].item(),
    }


def check_low_precision(rank, world):
    """Half-width inputs, under autocast and in a half-width model: statistics in float32."""
    results = {}
    for dtype in (torch.bfloat16, torch.float16):
        generator = torch.Generator().manual_seed(4)
        xs = [(torch.randn(2 + r, 3, 8, 8, generator=generator) + 5).to(dtype) for r in range(world)]
        weights = [torch.randn(x.shape, generator=generator).to(dtype) for x in xs]
        for name in ("mixed", "all"):
            layer = nn.BatchNorm2d(3)
            reference = copy.deepcopy(layer).double()
            convert(layer)
            if name == "all":
                layer.to(dtype)
            with torch.autocast("cpu", dtype=dtype, enabled=name == "mixed"):
                mine = train_step(layer, xs[rank], weights[rank])
            expected = train_step(reference, flat(xs).double(), flat(weights).double())
            assert mine["output"].dtype == mine["grad input"].dtype == dtype
            assert mine["grad weight"].dtype == layer.weight.dtype
            gathered = everywhere(mine)
            results[f"{dtype} {name}"] = {
                "ulp": torch.finfo(dtype).eps,
                "output": error(flat([step["output"] for step in gathered]), expected["output"]),
                "grad input": error(flat([step["grad input"] for step in gathered]), expected["grad input"]),
                "running_mean": error(layer.running_mean, reference.running_mean),
                "running_var": error(layer.running_var, reference.running_var),
            }
    return results


def check_too_few_values(rank, world):
    """One value per channel on all ranks together is refused everywhere, as BatchNorm does it."""
    layer = nn.BatchNorm2d(3)
    convert(layer)
    try:
        layer(torch.randn(int(rank == 0), 3, 1, 1))
    except ValueError as refused:
        return str(refused)
    return None


def check_nothing(rank, world):
    """No values on any rank: plain BatchNorm returns nothing and keeps its statistics, and so do we."""
    layer = nn.BatchNorm2d(3)
    convert(layer)
    x = torch.randn(0, 3, 4, 4, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    return {"shape": list(y.shape), "mean": layer.running_mean.tolist(), "var": layer.running_var.tolist()}


def check_ddp(rank, world):
    """Gradient of a small net in DistributedDataParallel on unequal shards against one process on the whole batch."""
    torch.manual_seed(5)
    net = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.SiLU(inplace=True)),
        *(nn.Conv2d(8, 4, 3, bias=False), nn.BatchNorm2d(4)),
    ).double()
    xs = torch.randn(sum(range(1, world + 1)), 3, 8, 8, dtype=torch.float64).split(list(range(1, world + 1)))
    reference = copy.deepcopy(net)
    (reference(torch.cat(xs)) ** 3).sum().backward()
    results = {}
    for name in ("synchronised", "unsynchronised"):
        model = copy.deepcopy(net)
        if name == "synchronised":
            assert convert(model) == 2
        ddp = nn.parallel.DistributedDataParallel(model)
        (ddp(xs[rank]) ** 3).sum().mul(world).backward()  # DDP averages
        pairs = zip(model.parameters(), reference.parameters())
        results[name] = max(error(mine.grad, expected.grad) for mine, expected in pairs)
    return results


def check_subgroups(rank, world):
    """Layers that synchronise over pairs of ranks, each pair on its own."""
    groups = [dist.new_group([first, first + 1]) for first in range(0, world, 2)]
    pair = rank // 2
    xs = torch.randn(world, 2, 3, 4, 4, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    layer = nn.BatchNorm2d(3).double()
    assert convert(layer, groups[pair]) == 1
    assert convert(layer) == 0  # and the group stays
    reference = nn.BatchNorm2d(3).double()
    reference(xs[2 * pair : 2 * pair + 2].flatten(0, 1))
    layer(xs[rank])
    whole = nn.BatchNorm2d(3).double()
    whole(xs.flatten(0, 1))
    results = {
        "pair": error(layer.running_mean, reference.running_mean),
        "world": error(layer.running_mean, whole.running_mean),
        "copy": type(copy.deepcopy(layer)).__name__,
    }
    if world > 2:
        try:
            convert(nn.BatchNorm2d(3), groups[1 - pair])
        except ValueError as refused:
            results["stranger"] = str(refused)
    dist.barrier()
    dist.destroy_process_group(groups[pair])
    del groups
    try:
        layer(xs[rank])
    except RuntimeError as refused:
        results["destroyed"] = str(refused)
    return results


def check_double_backward(rank, world):
    layer = nn.BatchNorm2d(3)
    convert(layer)
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad((layer(x) ** 2).sum(), x, create_graph=True)
    try:
        gradient.sum().backward()
    except RuntimeError as refused:
        return str(refused)
    return None


def measure(rank, world, route, folder):
    """Be one rank: run every check and write down what it found."""
    if route == "far":
        gathering.neighbours = lambda group: None
    store = dist.FileStore(str(folder / f"store of {world} {route}"), world)
    timeout = datetime.timedelta(seconds=200)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=timeout)
    results = {"route": route}
    for name, check in [(name, check) for name, check in globals().items() if name.startswith(("check_", "alone_"))]:
        torch.manual_seed(rank)
        try:
            if name.startswith("check_"):
                with common_step():
                    results[name[len("check_") :]] = check(rank, world)
            else:  # on one rank, while the others do not take part
                results[name[len("alone_") :]] = check(rank, world) if rank == 0 else None
                dist.barrier()
        except Exception:
            results["error"] = f"{name}: {traceback.format_exc()}"
            break  # the other ranks may wait in a collective: leave, and they fail too
    if "error" in results:
        print(results["error"], file=sys.stderr)
        raise SystemExit(1)
    layer = nn.BatchNorm2d(3)
    convert(layer)
    with common_step():
        graph = layer(torch.randn(2, 3, 4, 4)).sum()
    dist.barrier()
    group = weakref.ref(dist.group.WORLD)
    dist.destroy_process_group()
    results["group outlives"] = graph.grad_fn is not None and group() is not None
    (folder / f"{rank} of {world} {route}.json").write_text(json.dumps(results))


# ------------------------------------------------------------------------------------------------- what ranks suffer


class Fault(nn.Module):
    """Between two layers: where rank 1 is about to suffer."""

    act = None

    def forward(self, x):
        if self.act == "killed in backward":
            x.register_hook(lambda gradient: os.kill(os.getpid(), signal.SIGKILL))
        elif self.act == "raises":
            raise MemoryError("nothing left")
        elif self.act == "stopped":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif self.act:
            os.kill(os.getpid(), signal.SIGKILL)
        return x


def suffer(rank, name, route, folder):
    """Be one of two ranks: rank 1 meets a fault in its second step, rank 0 writes down what it sees of that."""
    if route == "far":
        gathering.neighbours = lambda group: None
    file = folder / f"{name} {route}"
    dist.init_process_group("gloo", store=dist.FileStore(f"{file} store", 2), rank=rank, world_size=2)
    fault = Fault()
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), fault, nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    convert(net)
    others = everywhere(os.getpid())

    def step():
        with common_step():
            (net(torch.randn(2, 3, 4, 4)) ** 2).sum().backward()

    if name != "killed while it connects":
        step()
    elif rank == 1:
        neighbours._call = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        if len(str(folder)) < 80:  # a socket there has a name; what a killed rank leaves goes with pytest's folder
            tempfile.tempdir = str(folder)
    worker = os.fork() if name == "killed beside its worker" and rank == 1 else None
    if worker == 0:
        time.sleep(100)
        os._exit(0)
    workers = everywhere(worker)
    if rank == 1:
        fault.act = name
    if name == "stopped" and rank == 0:
        threading.Timer(STOPPED, os.kill, (others[1], signal.SIGCONT)).start()
    found, start = {}, time.monotonic()
    try:
        step()
        fault.act = None
        step()
        found["agree"] = len(set(everywhere(str([buffer.tolist() for buffer in net.buffers()])))) == 1
    except Exception as seen:
        found.update(error=type(seen).__name__, message=str(seen))
        if rank == 1:
            raise SystemExit(3) from None
    found["seconds"] = time.monotonic() - start
    if workers[1] and rank == 0:
        os.kill(workers[1], signal.SIGKILL)
    if rank == 0:
        Path(f"{file}.json").write_text(json.dumps(found))


def repeat(rank, folder):
    """Five trainings in one process, whose models are kept: what each leaves behind."""
    made, temporary = [], neighbours.TemporaryDirectory

    def recorded(**given):
        made.append(temporary(**given))
        return made[-1]

    neighbours.TemporaryDirectory = recorded
    models, descriptors, live = [], [], []
    for number in range(5):
        dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/cycle {number}", 2), rank=rank, world_size=2)
        net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
        convert(net)
        models.append(nn.parallel.DistributedDataParallel(net))
        with common_step():
            models[-1](torch.randn(2, 3, 4, 4)).sum().backward()
        dist.barrier()
        live.append(sum(not near._closed for near in neighbours._OPEN))
        dist.destroy_process_group()
        if not number % 2:
            models.clear()
        gc.collect()
        descriptors.append(len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else 0)
    found = {"descriptors": descriptors, "folders": [os.path.exists(each.name) for each in made], "live": live}
    Path(folder, f"five trainings {rank}.json").write_text(json.dumps(found))


# ----------------------------------------------------------------------------------------------------------- the tests


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the ranks have left their results."""
    folder = tmp_path_factory.mktemp("ranks")
    process = subprocess.Popen(
        [sys.executable, __file__, str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=400)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        pytest.fail(f"the ranks hang:\n{output}")
    assert process.returncode == 0, output
    return folder


@pytest.fixture(params=WORLDS, ids=lambda world: f"{world[0]} ranks, {world[1]}")
def ranks(request, folder):
    """What each of the ranks found."""
    world, route = request.param
    return [json.loads((folder / f"{rank} of {world} {route}.json").read_text()) for rank in range(world)]


@pytest.mark.parametrize("case", FLOAT64)
def test_float64_equals_one_process(ranks, case):
    for result in (rank["cases"][case] for rank in ranks):
        assert max(result["synchronised"].values()) <= 1e-12, result
        assert result["synchronised"].get("num_batches_tracked", 0.0) == 0.0
        if "unsynchronised" in result:
            assert result["unsynchronised"]["output"] > 1e-4
            assert result["unsynchronised"]["grad input"] > 1e-4


@pytest.mark.parametrize("case", FLOAT32)
def test_float32_loses_no_more_than_batchnorm_itself(ranks, case):
    for result in (rank["cases"][case] for rank in ranks):
        for name, lost in result["synchronised"].items():
            assert lost <= 3 * result["one process"][name] + 2e-7, (name, result)
        assert result["synchronised"]["running_var"] <= 2e-7
        assert result["unsynchronised"]["output"] > 1e-3
    assert ranks[0]["uncentred"] > 1e-3  # where E[x^2] - E[x]^2 would be


@pytest.mark.parametrize("case", CASES)
def test_running_statistics_agree_to_the_last_bit(ranks, case):
    assert all(rank["cases"][case]["buffers agree"] for rank in ranks)


def test_a_constant_has_no_variance(ranks):
    for found in (rank["constant"] for rank in ranks):
        assert all(0 <= variance <= 1e-16 for variance in found["variance"])
        assert found["output"] <= 1e-5


def test_parameter_gradients_are_local(ranks):
    for number, rank in enumerate(ranks):
        assert rank["local_gradients"] == [18.0 * (number + 1)] * 2


def test_whatever_one_rank_does_alone_is_plain_batchnorm(ranks):
    assert ranks[0]["unsynchronised"] == dict.fromkeys(UNSYNCHRONISED, True)


def test_one_rank_traces_the_model_that_all_train(ranks):
    assert ranks[0]["traced"]


def test_the_forward_pass_decides(ranks):
    for rank in ranks:
        assert max(rank["forward_decides"].values()) <= 1e-12, rank["forward_decides"]


def test_activation_checkpointing(ranks):
    for rank in ranks:
        assert rank["recomputed"]["error"] <= 1e-12
        assert rank["recomputed"]["passes"] == [1, 2]


def test_compiled_layers(ranks):
    for rank in ranks:
        assert rank["compiled"] in (None, {"step": [1, True], "no step": [0, True], "step again": [1, True]})
    assert ranks[0]["compiled"] or len(ranks) > 2 or ranks[0]["route"] == "far"


def test_devices_that_cannot_be_synchronised(ranks):
    assert all(rank["unreached"] == {"backend": True, "device": "meta", "passes": 0} for rank in ranks)
    assert [supported("cpu"), supported("cuda")] == ["", ""]
    for device in ("mps", "npu", "xpu"):
        assert supported(device).endswith(f"no kernels for it on {device}")


def test_one_collective_for_each_layer_and_pass(ranks):
    expected = {"all_reduce": 1, "forward": 3, "backward": 3, "no_grad": 0, "eval": 0, "backward to data": 0}
    expected["passes"] = 3
    assert [rank["collectives"] for rank in ranks] == [
        {"sent": 7 if rank["route"] == "near" else 0, **expected} for rank in ranks
    ]


def test_ranks_agree_on_the_route(ranks):
    for rank in ranks:
        assert rank["routes"] == {"near": True, "one cannot": None, "sum": sum(range(len(ranks))), "long": len(ranks)}


@pytest.mark.parametrize("width", ["mixed", "all"])
@pytest.mark.parametrize("dtype", ["torch.bfloat16", "torch.float16"])
def test_half_width_inputs(ranks, dtype, width):
    for rank in ranks:
        found = rank["low_precision"][f"{dtype} {width}"]
        assert max(found["output"], found["grad input"]) <= found["ulp"]
        bound = 1e-6 if width == "mixed" else found["ulp"]  # the buffers themselves have half the width in "all"
        assert max(found["running_mean"], found["running_var"]) <= bound


def test_one_value_on_all_ranks_together_is_refused(ranks):
    for rank in ranks:
        assert rank["too_few_values"].startswith("Expected more than 1 value per channel when training")


def test_no_value_on_any_rank(ranks):
    assert all(rank["nothing"] == {"shape": [0, 3, 4, 4], "mean": [0.0] * 3, "var": [1.0] * 3} for rank in ranks)


def test_distributed_data_parallel(ranks):
    for rank in ranks:
        assert rank["ddp"]["synchronised"] <= 1e-12
        assert rank["ddp"]["unsynchronised"] > 1e-3


def test_process_groups(ranks):
    for rank in ranks:
        found = rank["subgroups"]
        assert found["pair"] <= 1e-12
        assert found["copy"] == "BatchNorm2d"
        assert "has been destroyed" in found["destroyed"]
        if len(ranks) > 2:
            assert found["world"] > 1e-3
            assert "not a member" in found["stranger"]


def test_a_graph_does_not_keep_the_process_group(ranks):
    """One that is alive at the exit of the interpreter aborts it: "terminate called without an active exception"."""
    assert not any(rank["group outlives"] for rank in ranks)


@pytest.mark.parametrize(("name", "route"), FAULTS)
def test_a_rank_that_fails_ends_the_other_and_one_that_stops_does_not(folder, name, route):
    found = json.loads((folder / f"{name} {route}.json").read_text())
    if name == "stopped":
        assert found["agree"]
        assert found["seconds"] >= STOPPED - 0.5
        return
    assert found["seconds"] < 10, found
    if route == "near" and name != "killed while it connects":
        assert found["error"] == "ConnectionError"
        assert found["message"] == "rank 1 has ended in the middle of a training step"
    else:
        assert found["error"] == "RuntimeError"  # gloo's
    # Its own worker, or its own error, do not keep a rank from ending.
    exits = json.loads((folder / "exits.json").read_text())[f"{name} {route}"]
    assert exits == [0, 3 if name == "raises" else -signal.SIGKILL]


def test_five_trainings_in_one_process(folder):
    for rank in range(2):
        found = json.loads((folder / f"five trainings {rank}.json").read_text())
        assert found["folders"] == [False] * 5, "each has connected, and left no folder"
        assert found["live"] == [1] * 5, "those of a destroyed group close, though its model is kept"
        assert found["descriptors"][4] <= found["descriptors"][0], found


def test_double_backward_is_refused(ranks):
    assert all("once_differentiable" in rank["double_backward"] for rank in ranks)


class Custom(nn.BatchNorm2d):
    """A subclass: not ours to convert."""


def model():
    shared = nn.BatchNorm2d(4)
    return nn.Sequential(nn.Conv2d(3, 4, 1), shared, shared, nn.BatchNorm1d(4), nn.BatchNorm3d(4), Custom(4))


def test_conversion_keeps_everything_but_the_class():
    net = model()
    calls = []
    net[1].register_forward_hook(lambda *_: calls.append(1))
    before = {name: (id(module), dict(module.__dict__)) for name, module in net.named_modules()}
    plain = {name: type(module) for name, module in net.named_modules()}

    assert [convert(net), convert(net)] == [3, 0]
    assert [type(module) for module in net][1:] == [
        SyncBatchNorm2d,
        SyncBatchNorm2d,
        SyncBatchNorm1d,
        SyncBatchNorm3d,
        Custom,
    ]
    assert all(isinstance(module, plain[name]) for name, module in net.named_modules())
    assert {name: (id(module), dict(module.__dict__)) for name, module in net.named_modules()} == before
    net[1](torch.randn(2, 4, 3, 3))
    assert calls == [1]

    assert [revert(net), revert(net)] == [3, 0]
    assert {name: type(module) for name, module in net.named_modules()} == plain


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickle_knows_only_plain_batchnorm(protocol):
    net = nn.Sequential(nn.BatchNorm2d(4), nn.BatchNorm1d(4))
    names = {}
    for name in ("plain", "converted"):
        data = pickle.dumps(net, protocol=protocol)
        assert b"yolo_patches" not in data
        names[name] = {
            word for opcode, word, _ in pickletools.genops(data) if isinstance(word, str) and "atch" in str(word)
        }
        assert convert(net) == 2 * (name == "plain")
    assert names["converted"] <= names["plain"]
    assert [type(module) for module in pickle.loads(data)] == [nn.BatchNorm2d, nn.BatchNorm1d]


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy])
def test_copies_are_plain(duplicate):
    layer = nn.BatchNorm2d(4, eps=1e-3, momentum=0.03)
    layer(torch.randn(2, 4, 3, 3))
    convert(layer)
    twin = duplicate(layer)
    assert type(twin) is nn.BatchNorm2d
    assert (twin.eps, twin.momentum, twin.training) == (1e-3, 0.03, True)
    assert twin.__dict__.keys() == layer.__dict__.keys()
    assert all(torch.equal(*pair) for pair in zip(twin.state_dict().values(), layer.state_dict().values()))
    assert (twin.weight is layer.weight) == (duplicate is copy.copy)
    assert type(layer) is SyncBatchNorm2d


def test_checkpoint_loads_where_we_are_not_installed(tmp_path):
    net = model()[:-1].eval()
    with torch.no_grad():
        for buffer in net.buffers():
            buffer.add_(1)
    convert(net)
    buffer = io.BytesIO()
    torch.save({"model": net, "ema": copy.deepcopy(net).half()}, buffer)
    assert b"yolo_patches" not in buffer.getvalue()
    (tmp_path / "last.pt").write_bytes(buffer.getvalue())
    script = """
import sys
sys.modules["yolo_patches"] = None
try:
    import yolo_patches
except ImportError:
    pass
else:
    raise SystemExit("yolo_patches can be imported here")
import torch
saved = torch.load("last.pt", weights_only=False)
print([type(module).__name__ for module in saved["model"]], float(saved["model"][1].running_mean[0]))
saved["ema"].float()[:3](torch.zeros(1, 3, 2, 2))
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [sys.executable, "-I", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100
    )
    assert ran.returncode == 0, ran.stderr
    names = ["Conv2d", "BatchNorm2d", "BatchNorm2d", "BatchNorm1d", "BatchNorm3d"]
    assert ran.stdout.split("\n")[0] == f"{names} 1.0"


@pytest.mark.parametrize("group", [False, True], ids=["no group", "one rank"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_one_process_is_plain_batchnorm_to_the_last_bit(group, dtype):
    plain = nn.BatchNorm2d(3)
    layer = copy.deepcopy(plain).to(dtype)
    plain = plain.to(dtype)
    convert(layer)
    x, weights = torch.randn(2, 4, 3, 5, 5).to(dtype)
    if group:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mine, expected = train_step(layer, x, weights), train_step(plain, x, weights)
    finally:
        if group:
            dist.destroy_process_group()
    assert all(torch.equal(mine[name], expected[name]) for name in expected)
    assert all(torch.equal(*pair) for pair in zip(layer.buffers(), plain.buffers()))


def test_the_native_function_takes_what_we_give():
    names = list(inspect.signature(NativeFunction.forward).parameters)
    ours = list(inspect.signature(sync_batchnorm._SyncBatchNormCPU.forward).parameters)
    assert names[1:8] == ours[1:8]
    assert names[8:] == ["process_group", "world_size"]


if __name__ == "__main__":
    # Ranks are forks of this process, so that torch, and what DistributedDataParallel imports of it, is imported once.
    torch.set_num_threads(1)
    importlib.import_module("torch._dynamo")
    fork, results = torch.multiprocessing.get_context("fork"), Path(sys.argv[1])
    suffering = {
        f"{name} {route}": [fork.Process(target=suffer, args=(rank, name, route, results)) for rank in range(2)]
        for name, route in FAULTS
    }
    suffering["five trainings"] = [fork.Process(target=repeat, args=(rank, results)) for rank in range(2)]
    for process in chain(*suffering.values()):
        process.start()
    for world_size, route in WORLDS:
        arguments = (world_size, route, results)
        torch.multiprocessing.start_processes(measure, arguments, world_size, start_method="fork")
    for process in chain(*suffering.values()):
        process.join()
    exits = {name: [process.exitcode for process in processes] for name, processes in suffering.items()}
    (results / "exits.json").write_text(json.dumps(exits))
