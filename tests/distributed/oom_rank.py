"""Steps of one of several ranks whose allocator fails: `oom_rank.py RANK RANKS STORE POINTS [KERNELS]`.

A small network in DistributedDataParallel, whose loss divides by what all ranks share. Rank 0 prints as JSON, for each
setting, of POINTS single and POINTS double failures beside the first and the last ones:

    quiet       difference that the guard makes to gradients and statistics where nothing fails
    error       largest relative error of a gradient; `statistics`: of running statistics
    apart       largest difference of gradients, and of statistics that ranks share, between ranks
    fired       failures, on all ranks
    messages    of layers to the other ranks in a step without failures, and in those with

    shards      largest relative difference from torch's own function, one rank without images included

KERNELS: BatchNorm is synchronised by CUDA's, on a device ("cuda") or played on the CPU ("played"); a step without the
guard then has torch's own function.
"""

import gc
import json
import random
import sys
from contextlib import nullcontext
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn

from tests.distributed import played_kernels
from tests.upstream import oom_runs
from yolo_patches.memory_seams import MicroStep
from yolo_patches.nn import gathering, neighbours, sync_batchnorm
from yolo_patches.nn.common_step import common_step
from yolo_patches.nn.exchanges import Exchanges
from yolo_patches.nn.shards import rank_mean
from yolo_patches.patches.oom_guard import OomGuard
from yolo_patches.upstreams import normaliser_calls

IMAGES = 6
#: Whether ranks share BatchNorm's statistics, whether they share normalisers, and whether BatchNorm is frozen.
SETTINGS = ((0, 0, 1), (0, 1, 1), (0, 1, 0), (1, 0, 0), (1, 1, 0))
SEED = 5
DEVICE = "cpu"


class Listener:
    """What a training's patches are to its loss."""

    def __init__(self, fire):
        self.fire = fire

    def listens(self, seam):
        return True


def share(seam):
    seam.values, seam.ranks = rank_mean(seam.values)
    return seam


class Detector(nn.Module):
    """Three layers, and a loss of two terms with a normaliser each, multiplied by the number of images."""

    def __init__(self):
        super().__init__()
        widths = (3, 8, 8, 4)
        self.layers = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(a, b, 3, bias=False), nn.BatchNorm2d(b), nn.SiLU())
                for a, b in zip(widths, widths[1:])
            )
        )
        self.unused = nn.Linear(2, 2)

    def forward(self, batch):
        features = self.layers(batch["img"])
        loss = 0
        for half, objects in zip(features.chunk(2, 1), batch["objects"].T):
            total = objects.sum()
            listener = normaliser_calls.listening()
            if listener is not None:
                seam = normaliser_calls.fire(listener, half, total)
                total = seam.values[0].clamp(min=1 / seam.ranks)
            else:
                total = total.clamp(min=1)
            loss = loss + ((half.sigmoid() - 0.3) ** 2).sum((1, 2, 3)) @ objects / total * len(half)
        return loss, {"loss": loss.detach()}


class Rank:
    """One rank's training.

    Args:
        rank: Its number.
        synchronised, normalised: Whether ranks share BatchNorm's statistics, and normalisers.
        frozen: Whether BatchNorm is.
    """

    def __init__(self, rank, synchronised, normalised, frozen):
        torch.manual_seed(0)
        self.model = Detector().double().to(DEVICE)
        if synchronised:
            sync_batchnorm.convert(self.model)
        self.ddp = nn.parallel.DistributedDataParallel(self.model, find_unused_parameters=True)
        self.normalised = normalised
        for module in self.model.modules():
            if frozen and isinstance(module, nn.BatchNorm2d):
                module.eval()
        draw = torch.Generator().manual_seed(rank)
        self.batch = {
            "img": torch.randn(IMAGES, 3, 12, 12, generator=draw, dtype=torch.float64).to(DEVICE),
            "objects": torch.randint(0, 9 if rank else 2, (IMAGES, 2), generator=draw).double().to(DEVICE),
        }
        self.state = {name: value.clone() for name, value in self.model.state_dict().items()}

    def step(self, guard, points):
        """Return the allocator, and gradients and running statistics of two micro-steps in a row."""
        self.model.load_state_dict(self.state)
        self.ddp.zero_grad()
        allocator = oom_runs.Allocator(points)
        parameters = list(self.model.parameters())

        def forward(batch):
            vars(self.model).pop("forward")
            compute = self.model.forward
            act = MicroStep(
                IMAGES,
                "12 x 12 pixels",
                lambda start, stop: {name: value[start:stop] for name, value in batch.items()},
                compute,
                model=self.model,
                parameters=parameters,
                scale=lambda: float(dist.get_world_size()),
                sharing=lambda normalisers: normaliser_calls.probing(Listener(normalisers.fire)),
                share=share if self.normalised else None,
            )
            with allocator.at("forward"):
                return guard.around()[MicroStep](act, lambda: compute(batch))

        with allocator:
            for _ in range(2):
                with common_step():
                    if guard is not None:
                        vars(self.model)["forward"] = forward
                    listener = Listener(share if self.normalised else lambda seam: seam)
                    with normaliser_calls.probing(listener if guard is None else None):
                        loss, _ = self.ddp(self.batch)
                    with allocator.at("backward"):
                        (loss * dist.get_world_size()).backward()
        gradients = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
        statistics = torch.cat([v.double().flatten() for n, v in self.model.state_dict().items() if "running" in n])
        return allocator, gradients.clone(), statistics


class Messages:
    """Counts what layers send."""

    def __init__(self):
        self.number = 0
        send = neighbours.Neighbours.send

        def counted(near, message):
            self.number += 1
            send(near, message)

        neighbours.Neighbours.send = counted
        begin = gathering.GatheredOnDevice.__init__

        def begun(message, *args):
            self.number += 1
            begin(message, *args)

        gathering.GatheredOnDevice.__init__ = begun

    def taken(self):
        number, self.number = self.number, 0
        return number


def difference(mine):
    """Return how far ranks' tensors are apart."""
    rows = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(rows, mine)
    return max(float((row - rows[0]).abs().max()) for row in rows)


def guarded():
    guard = OomGuard()
    guard._shares = guard._summed = True  # as the probe of a live loss finds them
    return guard


def examine(rank, ranks, synchronised, normalised, frozen, number, messages, kernels):
    training = Rank(rank, synchronised, normalised, frozen)
    _, plain, plain_statistics = training.step(None, [])
    sent = {messages.taken()} - ({0} if kernels else set())
    quiet, reference, statistics = training.step(guarded(), [])
    sent.add(messages.taken())
    result = {
        "quiet": float((plain - reference).abs().max() + (plain_statistics - statistics).abs().max()),
        "error": 0.0,
        "statistics": 0.0,
        "apart": 0.0,
        "fired": 0,
        "steps": 0,
    }
    draw = random.Random(SEED)  # the same on every rank
    counts = quiet.counts
    points = [[(where, share)] for where in ("forward", "backward") for share in (0.0, 1.0)]
    points += [[(draw.choice(("forward", "backward")), draw.random())] for _ in range(number)]
    points += [[(draw.choice(("forward", "backward")), draw.uniform(0, 2)) for _ in range(2)] for _ in range(number)]
    for where in points:
        failing = draw.choice([{draw.randrange(ranks)}, set(range(ranks))])
        mine = [(place, max(1, round(share * counts[place]))) for place, share in where] if rank in failing else []
        allocator, gradients, tracked = training.step(guarded(), mine)
        sent.add(messages.taken())
        result["error"] = max(result["error"], float((gradients - reference).norm() / reference.norm()))
        result["statistics"] = max(result["statistics"], float((tracked - statistics).norm() / statistics.norm()))
        apart = torch.cat([gradients, tracked]) if synchronised else gradients
        result["apart"] = max(result["apart"], difference(apart))
        result["fired"] += len(allocator.fired)
        result["steps"] += 1
    fired = torch.tensor(result["fired"], device=DEVICE)
    dist.all_reduce(fired)
    return {**result, "fired": int(fired), "messages": sorted(sent)}


def layers_step(images, weights, parts, tracked):
    """Return all that a step of one layer leaves, in parts of a book, or at once without one."""
    device = images.device
    layer = nn.BatchNorm2d(4, momentum=0.1 if tracked else None).double().to(device)
    sync_batchnorm.convert(layer)
    made, gradients, book = [], [], Exchanges() if parts else None
    for start, stop in parts or [(0, len(images))]:
        layout = torch.channels_last if tracked else torch.preserve_format
        x = images[start:stop].clone(memory_format=layout).requires_grad_()
        share = (stop - start) / max(len(images), 1)
        with common_step(), book.passing(1 / share if share else 1.0, start == 0) if book else nullcontext():
            made.append(layer(x))
            (made[-1] * weights[start:stop]).sum().backward()
        gradients.append(x.grad)
    values = [*made, *gradients, layer.weight.grad, layer.bias.grad, *layer.buffers()]
    return torch.cat([value.detach().double().cpu().flatten() for value in values if value is not None])


def shards(rank, ranks):
    """Compare one layer's step in a book with torch's own function, and in parts with our own for CPUs."""
    worst = 0.0
    for sizes in ([2] * ranks, [2 + other for other in range(ranks)], [0, *[3] * (ranks - 1)]):
        for tracked in (False, True):
            draw = torch.Generator().manual_seed(rank)
            size = sizes[rank]
            tensors = torch.randn(2, size, 4, 5, 5, generator=draw, dtype=torch.float64).to(DEVICE)
            pairs = [[layers_step(*tensors, parts, tracked) for parts in (None, [(0, size)])]]
            if all(sizes):
                parts = [(0, 1), (1, size)] if rank else [(0, size)]
                ours = layers_step(*tensors, parts, tracked)
                with played_kernels.put_aside():
                    pairs.append([ours, layers_step(*tensors.cpu(), parts, tracked)])
            for one, two in pairs:
                apart = float((one - two).norm() / two.norm())
                worst = max(worst, apart if apart >= 0 else float("inf"))
    return worst


def main(rank, ranks, store, number, kernels=""):
    global DEVICE
    torch.set_num_threads(1)
    played = played_kernels.play() if kernels == "played" else None
    if kernels == "cuda":
        DEVICE = "cuda:0"
        torch.backends.cudnn.deterministic = True
    gc.freeze()  # each failure collects garbage, and what has been imported is none
    oom_runs.LEAST = 512
    dist.init_process_group(
        "gloo", f"file://{store}", timeout=timedelta(seconds=60), rank=int(rank), world_size=int(ranks)
    )
    results, messages = {}, Messages()
    for synchronised, normalised, frozen in SETTINGS[3:] if kernels else SETTINGS:
        name = ("synchronised " if synchronised else "") + ("normalised " if normalised else "") + frozen * "frozen"
        results[name.strip()] = examine(
            int(rank), int(ranks), synchronised, normalised, bool(frozen), int(number), messages, bool(kernels)
        )
    compared = shards(int(rank), int(ranks)) if kernels else 0
    if rank == "0":
        print(json.dumps({"settings": results, "shards": compared}))
    del played
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
