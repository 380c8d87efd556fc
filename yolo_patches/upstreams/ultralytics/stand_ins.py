"""What stands in for parts of Ultralytics and of torch.distributed while a launcher's ranks construct and train.

Each stand-in lasts for one `with` block, and the originals are back after it.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module
from typing import Any

from yolo_patches.facts import Launcher
from yolo_patches.wrapping import Wrapping

TURNS = "torch_distributed_zero_first"


def defects() -> list[str]:
    """Return what upstream's modules lack for a stand-in; empty where nothing."""
    names = {"utils": ("RANK", "LOCAL_RANK"), "utils.torch_utils": (TURNS,), "engine.validator": ("AutoBackend",)}
    return [
        f"ultralytics.{module}.{name} does not exist"
        for module, wanted in names.items()
        for name in wanted
        if not hasattr(import_module(f"ultralytics.{module}"), name)
    ]


@contextmanager
def one_process() -> Iterator[None]:
    """Let a single rank train like a process without a launcher, as upstream itself has it in newer releases.

    Older ones take RANK=0 for a worker among others: they seed differently and shard over a group that does not exist.
    """
    utils = import_module("ultralytics.utils")
    with _everywhere("RANK", utils.RANK, -1), _everywhere("LOCAL_RANK", utils.LOCAL_RANK, -1):
        yield


@contextmanager
def no_turns() -> Iterator[None]:
    """Let ranks pass where they would take turns, as they do where there is no process group."""
    with _everywhere(TURNS, _turns(), lambda local_rank: nullcontext()):
        yield


@contextmanager
def in_turns(place: Launcher) -> Iterator[None]:
    """Take turns, e.g. to write the cache of a data set: rank 0, then each node's first rank, then the others.

    Upstream lets the first ranks of all nodes go at once. On a file system that they share, one renames the cache that
    another is writing.
    """

    @contextmanager
    def stand_in(local_rank: int) -> Iterator[None]:
        before = 0 if local_rank == -1 else turn(place)
        after = 0 if local_rank == -1 else 2 - before
        for _ in range(before):
            barrier()
        yield
        for _ in range(after):
            barrier()

    with _everywhere(TURNS, _turns(), stand_in):
        yield


def turn(place: Launcher) -> int:
    """Return when a rank takes its turn: 0, 1 or 2."""
    if place.rank == 0:
        return 0
    return 1 if place.local_rank == 0 else 2


def barrier() -> None:
    """Wait for all ranks; NCCL is told the device, which it would guess from the rank."""
    import torch
    from torch import distributed

    if distributed.get_backend() == "nccl":
        distributed.barrier(device_ids=[torch.cuda.current_device()])
    else:
        distributed.barrier()


def leave(trainer: Any) -> None:
    """Destroy the process group, and let nothing of the trainer's keep it alive.

    DistributedDataParallel holds it, and the trainer, which is full of cycles, holds that until the interpreter exits.
    A group that is alive then can abort it ("terminate called without an active exception"), where a thread of gloo's
    wants something of Python and gets no interpreter any more. One that is freed here waits for its threads.
    """
    from torch import distributed
    from torch.nn.parallel import DistributedDataParallel

    if isinstance(getattr(trainer, "model", None), DistributedDataParallel):
        trainer.model = trainer.model.module
    gc.collect()
    distributed.destroy_process_group()


@contextmanager
def data_parallel_on(device: Any) -> Iterator[None]:
    """Let DistributedDataParallel be built on this device, where upstream says `device_ids=[RANK]`."""
    from torch.nn.parallel import DistributedDataParallel

    ids = None if device.type == "cpu" else [device.index]

    def build(wrapped: Callable[..., Any], _: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return wrapped(*args, **{**kwargs, "device_ids": ids})

    with _wrapping() as wrapping:
        wrapping.wrap(DistributedDataParallel, "__init__", build)
        yield


@contextmanager
def validating_on(device: Any) -> Iterator[None]:
    """Let the final evaluation run on this device; upstream takes a CUDA device, the current or that numbered RANK."""
    import torch

    def backend(wrapped: Callable[..., Any], _: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return wrapped(*args, **{**kwargs, "device": device})

    def current(wrapped: Callable[..., Any], _: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
        return 0  # for `backend` to replace

    with _wrapping() as wrapping:
        wrapping.wrap(import_module("ultralytics.engine.validator"), "AutoBackend", backend)
        if device.type == "cpu":
            wrapping.wrap(torch.cuda, "current_device", current)
        yield


@contextmanager
def gloo() -> Iterator[None]:
    """Give gloo what upstream asks of NCCL and older gloo lacks: broadcasts of booleans, and the mean."""
    from torch import distributed

    with _wrapping() as wrapping:
        wrapping.wrap(distributed, "broadcast", _broadcast)
        wrapping.wrap(distributed, "reduce", _reduce)
        yield


def _broadcast(wrapped: Callable[..., Any], _: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    import torch
    from torch import distributed

    tensor = args[0] if args else kwargs["tensor"]
    if tensor.dtype is not torch.bool or distributed.get_backend() != "gloo":
        return wrapped(*args, **kwargs)
    number = tensor.to(torch.uint8)
    wrapped(number, *args[1:], **{key: value for key, value in kwargs.items() if key != "tensor"})
    return tensor.copy_(number)


def _reduce(wrapped: Callable[..., Any], _: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    from torch import distributed

    call = dict(zip(("tensor", "dst", "op"), args), **kwargs)
    if call.get("op") != distributed.ReduceOp.AVG or distributed.get_backend() != "gloo":
        return wrapped(*args, **kwargs)
    distributed.all_reduce(call["tensor"])  # which gloo also has for CUDA tensors
    return call["tensor"].div_(distributed.get_world_size())


@contextmanager
def _wrapping() -> Iterator[Wrapping]:
    wrapping = Wrapping()
    try:
        yield wrapping
    finally:
        wrapping.undo()


def _turns() -> Any:
    return getattr(import_module("ultralytics.utils.torch_utils"), TURNS)


@contextmanager
def _everywhere(name: str, original: Any, stand_in: Any) -> Iterator[None]:
    """Replace a name in all of upstream's modules that hold the original: they import it by value.

    Modules imported in the meantime get the stand-in from those, and the original like them afterwards.
    """

    def swap(old: Any, new: Any) -> None:
        for path, module in list(sys.modules.items()):
            if path.partition(".")[0] == "ultralytics" and getattr(module, "__dict__", {}).get(name) is old:
                setattr(module, name, new)

    swap(original, stand_in)
    try:
        yield
    finally:
        swap(stand_in, original)
