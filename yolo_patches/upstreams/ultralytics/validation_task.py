"""One validation of an epoch's weights, away from the training: what is sent, and what is done with it there."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import torch

from yolo_patches.upstreams.ultralytics.origin import is_upstreams

#: Of a data set that keeps its images in memory: those are read anew, not sent.
IN_MEMORY = ("ims", "im_hw0", "im_hw")


def hindrance(trainer: Any) -> str:
    """Return why this trainer's validations cannot be made elsewhere; empty where they can."""
    validator = trainer.validator
    for what in (trainer, validator):
        if not is_upstreams(what):
            return f"{type(what).__name__} is not one of upstream's classes"
    for event, functions in validator.callbacks.items():
        for function in functions:
            if event.startswith("on_val_") and not is_upstreams(function):
                return f"{getattr(function, '__qualname__', function)} listens to {event}"
    return ""


def all_finite(model: Any) -> bool:
    """Return whether every weight is a number; where a validation shows one that is not, upstream goes back."""
    values = [value for value in model.state_dict().values() if value.is_floating_point()]
    return not values or bool(torch.stack([value.isfinite().all() for value in values]).all())


def setup(trainer: Any, device: str) -> bytes:
    """Return what a process needs to validate for this trainer.

    Raises:
        Exception: Something of it cannot be pickled.
    """
    loader = trainer.test_loader
    return pickle.dumps(
        {
            "validator": type(trainer.validator),
            "labels": type(trainer).label_loss_items,
            "names": trainer.loss_names,
            "args": trainer.validator.args,
            "train_args": trainer.args,
            "save_dir": trainer.save_dir,
            "data": trainer.data,
            "dataset": _light(loader.dataset),
            "batches": _batches(loader),
            "share": _share(loader),
            "workers": loader.num_workers,
            "collate": loader.collate_fn,
            "device": device,
            "threads": torch.get_num_threads(),
            "switches": _switches(),
        }
    )


def task(trainer: Any) -> bytes:
    """Return the weights of this moment, and what else a validation reads of its trainer."""
    ema = getattr(trainer, "ema", None)
    file = io.BytesIO()
    torch.save(
        {
            "model": (ema.ema if ema else None) or trainer.model,
            "losses": trainer.loss_items,
            "amp": bool(trainer.amp),
            "epoch": trainer.epoch,
            "epochs": trainer.epochs,
            "possible_stop": bool(trainer.stopper.possible_stop),
        },
        file,
    )
    return file.getvalue()


def weights(task: bytes, device: torch.device) -> Any:
    """Return the model of a task."""
    return _read(task, device)["model"]


def _read(task: bytes, device: torch.device) -> Any:
    return torch.load(io.BytesIO(task), map_location=device, weights_only=False)


def prepare(setup: bytes) -> Callable[[bytes], Mapping[str, float]]:
    """Return the function that validates, in the process that is to do so."""
    known = SimpleNamespace(**pickle.loads(setup))
    torch.set_num_threads(known.threads)
    _switch(known.switches)
    device = torch.device(known.device)
    loader = torch.utils.data.DataLoader(
        known.dataset,
        batch_sampler=known.batches,
        num_workers=known.workers,
        collate_fn=known.collate,
        persistent_workers=known.workers > 0,
        pin_memory=device.type == "cuda",
    )
    validator = known.validator(dataloader=loader, save_dir=known.save_dir, args=copy.copy(known.args))
    return lambda task: _validate(validator, known, task, device)


def _stand_in(known: Any, task: bytes, device: torch.device) -> SimpleNamespace:
    """Return what stands for the trainer: what a validator reads of one, and no more."""
    told = _read(task, device)
    made = SimpleNamespace(
        args=known.train_args,
        data=known.data,
        loss_names=known.names,
        device=device,
        model=told["model"],
        ema=SimpleNamespace(ema=told["model"]),
        loss_items=told["losses"],
        amp=told["amp"],
        epoch=told["epoch"],
        epochs=told["epochs"],
        stopper=SimpleNamespace(possible_stop=told["possible_stop"]),
        world_size=1,
    )
    made.label_loss_items = lambda losses=None, *rest, **more: known.labels(
        made, _times(losses, known.share), *rest, **more
    )
    return made


def _validate(validator: Any, known: Any, task: bytes, device: torch.device) -> Mapping[str, float]:
    metrics = validator(_stand_in(known, task, device))
    return {str(name): float(value) for name, value in metrics.items()}


def _batches(loader: Any) -> list[list[int]]:
    """Return the images of each batch of a pass, over all ranks: each has a part of the data set, and batches of it."""
    sampler, size = loader.sampler, loader.batch_size
    parts = [list(range(len(loader.dataset)))]
    if _is_shared(sampler):
        parts = []
        for rank in range(sampler.num_replicas):
            other = copy.copy(sampler)
            other.rank = rank
            parts.append(list(other))
    return [part[start : start + size] for part in parts for start in range(0, len(part), size)]


def _share(loader: Any) -> float:
    """Return what a mean over all batches is multiplied by to be what upstream logs as a loss.

    That is the mean over ranks of their sums, divided by the batches of the first rank.
    """
    return len(_batches(loader)) / (loader.sampler.num_replicas * len(loader)) if _is_shared(loader.sampler) else 1.0


def _is_shared(sampler: Any) -> bool:
    return is_upstreams(sampler) and hasattr(sampler, "num_replicas") and hasattr(sampler, "rank")


def _times(losses: Any, share: float) -> Any:
    if losses is None or share == 1:
        return losses
    return {name: value * share for name, value in losses.items()} if isinstance(losses, Mapping) else losses * share


def _light(dataset: Any) -> Any:
    """Return a data set without the images that it has in memory."""
    if not any(getattr(dataset, name, None) for name in IN_MEMORY):
        return dataset
    light = copy.copy(dataset)
    for name in IN_MEMORY:
        if isinstance(getattr(light, name, None), list):
            setattr(light, name, [None] * len(getattr(light, name)))
    return light


def _switches() -> Mapping[str, bool]:
    return {
        "deterministic": torch.backends.cudnn.deterministic,
        "benchmark": torch.backends.cudnn.benchmark,
        "cudnn_tf32": torch.backends.cudnn.allow_tf32,
        "matmul_tf32": torch.backends.cuda.matmul.allow_tf32,
        "algorithms": torch.are_deterministic_algorithms_enabled(),
        "lenient": torch.is_deterministic_algorithms_warn_only_enabled(),
    }


def _switch(switches: Mapping[str, bool]) -> None:
    torch.backends.cudnn.deterministic = switches["deterministic"]
    torch.backends.cudnn.benchmark = switches["benchmark"]
    torch.backends.cudnn.allow_tf32 = switches["cudnn_tf32"]
    torch.backends.cuda.matmul.allow_tf32 = switches["matmul_tf32"]
    torch.use_deterministic_algorithms(switches["algorithms"], warn_only=switches["lenient"])
