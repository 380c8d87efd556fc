"""Ultralytics under a launcher: ranks, devices and world size from torchrun's variables, on one node or on several.

Upstream reads RANK and LOCAL_RANK, and shards, broadcasts and saves by them, but takes for granted that it started the
ranks itself, on the CUDA devices of one node: the world is as large as `device=` is long, and RANK is a device index.
The places where that shows are put right on the trainer object, or for the duration of one of its methods.
"""

from __future__ import annotations

import functools
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

from yolo_patches import registry
from yolo_patches.errors import PatchesError
from yolo_patches.facts import Launcher
from yolo_patches.lifecycle import Lifecycle
from yolo_patches.seams import Ranks, Seam
from yolo_patches.selection import Selection
from yolo_patches.upstreams.ultralytics import stand_ins
from yolo_patches.upstreams.ultralytics.facts import device_names, launcher
from yolo_patches.wrapping import bind

NEEDED = ("check_resume", "train", "_do_train", "_setup_ddp", "_setup_train", "final_eval")
#: As long as upstream's own: releases before 8.3.225 validate on rank 0 while the others wait in a collective.
TIMEOUT = timedelta(hours=3)
#: Counts the trainers on every rank alike, so that consecutive trainings find their own keys in the launcher's store.
_trainings = itertools.count()


def defects(owner: type) -> list[str]:
    """Return what a trainer class lacks for its ranks to come from a launcher; empty where nothing."""
    found = [f"{owner.__name__}.{name} does not exist" for name in NEEDED if not hasattr(owner, name)]
    bodies = [getattr(vars(base).get("_do_train"), "__code__", None) for base in owner.__mro__]
    if not any(body and "world_size" in body.co_varnames + body.co_names for body in bodies):  # parameter or attribute
        found.append(f"{owner.__name__}._do_train has no world_size")
    return found + stand_ins.defects()


def wanted(selection: Selection, missing: Mapping[type[Seam], str]) -> Launcher | None:
    """Return the launcher whose ranks a selected patch takes over, or None.

    Args:
        selection: What was asked for.
        missing: Seams that the trainer lacks -> why.
    """
    return launcher() if Ranks not in missing and _asked(selection) else None


def left_out(selection: Selection, missing: Mapping[type[Seam], str]) -> bool:
    """Return whether a selected patch would take over the ranks of a launcher, and this upstream has no room for it."""
    return Ranks in missing and _asked(selection) and launcher() is not None


def _asked(selection: Selection) -> bool:
    patches = registry.patches()
    return any(Ranks in patches[name].needs for name in selection.chosen)


@contextmanager
def constructing(trainer: Any, decide: Callable[[], Lifecycle]) -> Iterator[None]:
    """Let the ranks of a launcher agree while a trainer is constructed; without a launcher, do nothing.

    Args:
        trainer: The object, before its constructor has run.
        decide: Decides the training from the trainer's arguments. It is called as soon as they are resolved, when
            nothing has been written yet, so that every rank refuses a run that cannot be right.
    """
    if launcher() is None or not hasattr(trainer, "check_resume"):
        yield
        return
    launches: list[_Launch] = []
    with ExitStack() as until_constructed:

        def resolved(wrapped: Callable[..., Any], _: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            wrapped(*args, **kwargs)
            lifecycle = decide()
            place = lifecycle.facts.devices.launcher if lifecycle.facts else None
            if place is not None:
                launches.append(_Launch(trainer, lifecycle, place))
                until_constructed.enter_context(launches[-1].constructing())

        bind(trainer, "check_resume", resolved)
        try:
            yield
        finally:
            del trainer.check_resume
    for launch in launches:
        launch.attach()


class _Launch:
    """One trainer on one of a launcher's ranks."""

    def __init__(self, trainer: Any, lifecycle: Lifecycle, place: Launcher) -> None:
        self.trainer = trainer
        self.lifecycle = lifecycle
        self.place = place
        self.training = next(_trainings)

    @contextmanager
    def constructing(self) -> Iterator[None]:
        """Construct in turns: rank 0, which names the run directory; then each node's first rank; then the others.

        Upstream's own workers get the directory from their parent, which has downloaded the data set before, too.
        """
        if self.place.world_size == 1:
            with stand_ins.one_process():
                yield
            return
        arguments, store, turn = self.trainer.args, self._store("construction"), stand_ins.turn(self.place)
        if arguments.rect:
            from ultralytics.utils import LOGGER

            LOGGER.warning("yolo-patches: 'rect=True' cannot be shared by several ranks, setting 'rect=False'")
            arguments.rect = False
        if turn > 0:
            arguments.save_dir = store.get("save_dir").decode()
            if not arguments.save_dir:
                raise PatchesError("rank 0 could not start the run; its own output says why")
        if turn > 1:
            store.add("arrived", 1)
            while store.add("arrived", 0) < self.place.world_size - 1:
                time.sleep(0.02)
        constructed = False
        try:
            with stand_ins.no_turns():
                yield
            constructed = True
        finally:
            if turn == 0:
                store.set("save_dir", str(self.trainer.save_dir) if constructed else "")
        if turn == 1:
            store.add("arrived", 1)

    def attach(self) -> None:
        """Bind the methods in which the launcher's ranks differ from those that upstream starts itself."""
        methods: tuple[str, ...] = ("train",)
        if self.place.world_size > 1:
            methods = ("train", "_do_train", "_setup_ddp", "_setup_train", "final_eval")
            if hasattr(self.trainer, "world_size"):
                self.trainer.world_size = self.place.world_size
        for method in methods:
            bind(self.trainer, method, getattr(self, f"_{method.lstrip('_')}"))

    def _train(self, wrapped: Callable[..., Any], _: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        from torch import distributed

        if self.place.world_size == 1:
            with stand_ins.one_process():
                return wrapped(*args, **kwargs)
        ours = not distributed.is_initialized()
        with stand_ins.in_turns(self.place), stand_ins.gloo():
            result = wrapped(*args, **kwargs)
        # Leave together: whoever leaves first may take the store or its node's agent along. A rank that fails does not
        # come here: its process ends, and the launcher ends the others in whatever collective they wait.
        stand_ins.barrier()
        if ours:
            stand_ins.leave(self.trainer)
        return result

    def _do_train(self, wrapped: Callable[..., Any], _: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:  # before 8.3.200 the world size is handed down, later it is an attribute
            args = (self.place.world_size, *args[1:])
        return wrapped(*args, **kwargs)

    def _setup_ddp(self, wrapped: Callable[..., Any], _: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Form the process group, in place of upstream's method: that one cannot do without CUDA devices."""
        import torch
        from torch import distributed

        device = self.trainer.device = self._device()
        if device.type == "cuda":
            torch.cuda.set_device(device)
        backend = "nccl" if device.type == "cuda" and distributed.is_nccl_available() else "gloo"
        backend = self.lifecycle.fire(Ranks(backend)).backend
        if not distributed.is_initialized():
            place, store = self.place, self._store("group")
            distributed.init_process_group(
                backend, store=store, rank=place.rank, world_size=place.world_size, timeout=TIMEOUT
            )

    def _setup_train(
        self, wrapped: Callable[..., Any], _: object, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        arguments, amp = self.trainer.args, self.trainer.args.amp
        if self.trainer.device.type == "cpu" and amp is True:
            arguments.amp = False  # as upstream finds on rank 0; before 8.4.80 the others do not hear of it
        try:
            with stand_ins.data_parallel_on(self.trainer.device):
                return wrapped(*args, **kwargs)
        finally:
            arguments.amp = amp

    def _final_eval(self, wrapped: Callable[..., Any], _: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with stand_ins.validating_on(self.trainer.device), self.best_on_every_node():
            return wrapped(*args, **kwargs)

    @contextmanager
    def best_on_every_node(self) -> Iterator[None]:
        """Lend best.pt to ranks that do not share rank 0's file system: without it they would skip the evaluation."""
        from torch import distributed

        best, seen = self.trainer.best, [False] * self.place.world_size
        if hasattr(self.trainer.validator, "gather_stats"):  # else rank 0 evaluates alone
            distributed.all_gather_object(seen, best.is_file())
        if all(seen) or not seen[0]:
            yield
            return
        content = [best.read_bytes() if self.place.rank == 0 else None]
        distributed.broadcast_object_list(content, 0)
        with tempfile.TemporaryDirectory() as folder:
            if not seen[self.place.rank]:
                self.trainer.best = Path(folder, best.name)
                self.trainer.best.write_bytes(content[0])
            try:
                yield
            finally:
                self.trainer.best = best

    def _device(self) -> Any:
        """Return this rank's device: the local rank's of those that the user named, else of those that are visible."""
        import torch

        device, local = self.trainer.device, self.place.local_rank
        if device.type == "cpu":
            return device
        if device.type != "cuda":
            raise PatchesError(f"a launcher's ranks cannot use '{device.type}' devices, only CUDA devices and the CPU")
        names, count = device_names(self.trainer.args.device), torch.cuda.device_count()
        if names and os.environ.get("CUDA_VISIBLE_DEVICES", "").replace(" ", "") != ",".join(names):
            local = int(names[local])
        elif count == 1:
            local = 0  # a launcher that shows every rank its own device alone; NCCL refuses ranks that share one
        if local >= count:
            raise PatchesError(f"local rank {self.place.local_rank} has no device: this node shows {count}")
        return torch.device("cuda", local)

    def _store(self, purpose: str) -> Any:
        name = f"yolo-patches/{self.training}/{purpose}"
        store = _launcher_store(self.place.rank, self.place.world_size)
        return import_module("torch.distributed").PrefixStore(name, store)


@functools.cache
def _launcher_store(rank: int, world_size: int) -> Any:
    """Return the store behind MASTER_ADDR and MASTER_PORT; one connection serves all trainings of a process."""
    return next(import_module("torch.distributed").rendezvous("env://", rank, world_size, timeout=TIMEOUT))[0]
