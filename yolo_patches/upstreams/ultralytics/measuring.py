"""Train for some seconds in a process of its own and say what that took: the child of `doctor --measure`.

    python -m yolo_patches.upstreams.ultralytics.measuring SECONDS SCRATCH WORDS...

Everything that the training writes goes to SCRATCH; label caches and repaired images are not written, and no logger is
told. The answer is a file of JSON there.
"""

from __future__ import annotations

import json
import os
import sys
import time
from importlib import import_module
from itertools import chain, repeat
from pathlib import Path
from statistics import median
from typing import Any

from yolo_patches.activation import activation
from yolo_patches.upstreams.ultralytics import batch_parts
from yolo_patches.upstreams.ultralytics.examination import unrepaired
from yolo_patches.validation import host_memory

#: The file of the answer.
ANSWER = "measured.json"
#: Steps at the start in which memory is allocated and kernels are chosen.
WARM = 3
#: Steps that are measured at least, however long they take.
FEWEST = 5
#: Share of the time that a validation may take of its own, where none has been seen whole.
VALIDATING = 0.5
#: Share of the time in which the loader is read alone.
LOADING = 0.25
#: More epochs than there is time for.
ENDLESS = 100_000
#: Upstream's settings that are loggers.
LOGGERS = frozenset(
    ("clearml", "comet", "dvc", "hub", "mlflow", "neptune", "platform", "raytune", "tensorboard", "wandb")
)


class EnoughError(BaseException):
    """Ends the training, or the validation; no handler of upstream's may stop it."""


class Clock:
    """What upstream's own callbacks tell of its training.

    Args:
        seconds: How long to train.
        scratch: Where to leave the answer.
    """

    def __init__(self, seconds: float, scratch: Path) -> None:
        self.seconds = seconds
        self.scratch = scratch
        self.begun = 0.0
        self.starts: list[float] = []
        self.ends: list[float] = []
        self.epochs: list[float] = []
        self.first: list[int] = []
        self.validated: list[float] = []
        self.limit = float("inf")

    def install(self) -> None:
        """Listen to every trainer and validator that is made from now on."""
        listeners = import_module("ultralytics.utils.callbacks.base").default_callbacks
        for name in ("on_train_epoch_start", "on_train_batch_start", "on_train_batch_end", "on_val_batch_end"):
            listeners[name].append(getattr(self, name))

    def on_train_epoch_start(self, trainer: Any) -> None:
        """Begin an epoch: what lies between two of these is a whole one, its validation and its checkpoint included."""
        self.epochs.append(self._now(trainer))
        self.first.append(len(self.starts))
        self.begun = self.begun or self.epochs[0]

    def on_train_batch_start(self, trainer: Any) -> None:
        """A batch has come."""
        self.starts.append(time.perf_counter())

    def on_train_batch_end(self, trainer: Any) -> None:
        """Its step is done."""
        self.ends.append(self._now(trainer))
        if len(self.ends) >= WARM + FEWEST and self.ends[-1] - self.begun > self.seconds:
            self._finish(trainer)
            raise EnoughError

    def on_val_batch_end(self, validator: Any) -> None:
        """Count the batches of a validation that is measured for itself."""
        self.validated.append(time.perf_counter())
        if time.perf_counter() > self.limit:
            raise EnoughError

    def _now(self, trainer: Any) -> float:
        if trainer.device.type == "cuda":
            import_module("torch").cuda.synchronize()
        return time.perf_counter()

    def _finish(self, trainer: Any) -> None:
        batches = len(trainer.train_loader)
        found: dict[str, Any] = {"batches": batches, "batch": trainer.batch_size, **self._steps()}
        found["decided"] = decided()
        found["train_bytes"] = peak(trainer)
        found["free_bytes"] = room(trainer)
        found["weight_bytes"] = sum(p.numel() * p.element_size() for p in trainer.model.parameters())
        whole = [later - sooner for sooner, later in zip(self.epochs[1:], self.epochs[2:])]
        if bool(trainer.args.val) and not whole:
            found["validation"] = self._validation(trainer)
            found["val_bytes"] = peak(trainer)
        first = median(self.starts[at] - self.epochs[epoch] for epoch, at in enumerate(self.first))
        composed = first + (batches - 1) * found["wait"] + batches * found["step"] + found.get("validation", 0.0)
        found["epoch"] = median(whole) if whole else composed
        found["epochs_seen"] = len(whole)
        try:
            found["densest"] = self._densest(trainer)
        except RuntimeError as error:  # out of memory, as the run would be
            found["densest_fails"] = (str(error).strip() or type(error).__name__).splitlines()[0]
        found["train_bytes"] = max(found["train_bytes"], peak(trainer))
        found["loading"] = loader_speed(trainer.train_loader, self.seconds * LOADING)
        (self.scratch / ANSWER).write_text(json.dumps(found), encoding="utf-8")

    def _steps(self) -> dict[str, float]:
        """Return the mean seconds of a step, and of the wait for its batch but for an epoch's first."""
        steps = [end - start for start, end in zip(self.starts, self.ends)][WARM:]
        others = [place for place in range(WARM, len(self.ends)) if place not in self.first]
        waits = [self.starts[place] - self.ends[place - 1] for place in others]
        return {"step": sum(steps) / len(steps), "wait": sum(waits) / max(len(waits), 1)}

    def _densest(self, trainer: Any) -> int:
        """Make one more step, of the images that have most objects: they decide how much an assigner takes.

        Returns:
            How many objects the densest of them has; 0 where labels are not known, and there is no such step.
        """
        data = trainer.train_loader.dataset
        labels = getattr(data, "labels", None)
        if not isinstance(labels, list) or not hasattr(data, "collate_fn"):
            return 0
        objects = [len(label["cls"]) for label in labels]
        order = sorted(range(len(objects)), key=objects.__getitem__, reverse=True)[: int(trainer.batch_size)]
        torch = import_module("torch")
        forget_peak(trainer)
        kind = trainer.device.type
        with torch.autocast(kind, enabled=kind == "cuda" and bool(trainer.amp)):
            batch = trainer.preprocess_batch(data.collate_fn([data[number] for number in order]))
            loss = trainer.model(batch)[0].sum()
        trainer.scaler.scale(loss).backward()
        return max(objects, default=0)

    def _validation(self, trainer: Any) -> float:
        """Return the seconds of a validation; of a long one, by as many batches as there is time for."""
        self.validated.clear()
        forget_peak(trainer)
        begun = time.perf_counter()
        self.limit = begun + self.seconds * VALIDATING
        try:
            trainer.validate()
        except EnoughError:
            return (time.perf_counter() - begun) / len(self.validated) * len(trainer.validator.dataloader)
        return time.perf_counter() - begun


def decided() -> dict[str, tuple[str, str]]:
    """Return what the patches have decided for this training: name -> status and reason."""
    plan = activation.last_plan
    entries = [] if plan is None else plan.entries
    return {entry.name: (entry.decision.status, entry.decision.reason) for entry in entries}


def loader_speed(loader: Any, seconds: float) -> float:
    """Return the images a second of a loader alone, once what it has read ahead is used up.

    Args:
        loader: Upstream's; it is read as often as it takes.
        seconds: How long to read.
    """
    ahead = loader.num_workers * (loader.prefetch_factor or 0)
    images, begun = 0, 0.0
    for number, batch in enumerate(chain.from_iterable(repeat(loader))):
        now = time.perf_counter()
        if number <= ahead:
            begun = now
            continue
        images += batch_parts.images(batch) or len(batch["img"])
        if now > begun + seconds:
            return images / (now - begun)
    return 0.0


def peak(trainer: Any) -> int:
    """Return the most bytes that were taken: of the device, or on a CPU of this process without its loader workers."""
    if trainer.device.type == "cuda":
        return int(import_module("torch").cuda.max_memory_reserved())
    lines = Path("/proc/self/status")
    found = (
        [line.split()[1] for line in lines.read_text().splitlines() if line.startswith("VmHWM")]
        if lines.exists()
        else []
    )
    return int(found[0]) * 1024 if found else 0


def room(trainer: Any) -> int:
    """Return the bytes of the device that this process has taken or could still take; on a CPU of its machine."""
    if trainer.device.type == "cuda":
        cuda = import_module("torch").cuda
        return int(cuda.mem_get_info(trainer.device)[0] + cuda.memory_reserved(trainer.device))
    return host_memory.available() + int(import_module("psutil").Process().memory_info().rss)


def forget_peak(trainer: Any) -> None:
    """Begin a new peak."""
    if trainer.device.type == "cuda":
        import_module("torch").cuda.reset_peak_memory_stats()
    elif Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")


def write_nothing() -> None:
    """Keep label caches, repaired images and loggers from being written."""
    dataset = import_module("ultralytics.data.dataset")
    release = getattr(dataset, "DATASET_CACHE_VERSION", None)

    def unsaved(*values: Any) -> None:
        for value in values:
            if isinstance(value, dict):
                value["version"] = release

    settings = import_module("ultralytics.utils").SETTINGS
    for name in LOGGERS.intersection(settings):
        dict.__setitem__(settings, name, False)  # its own would be kept in the user's file
    vars(dataset).update(save_dataset_cache_file=unsaved, verify_image_label=unrepaired(dataset.verify_image_label))


def main(seconds: float, scratch: str, words: list[str]) -> None:
    """Train until the time is up.

    Args:
        seconds: How long.
        scratch: Folder for whatever upstream writes.
        words: What `yolo` takes.
    """
    from yolo_patches import api, registry

    api.watch()
    adapter = registry.adapter("ultralytics")
    assert adapter is not None, "its parent has asked it for a forecast"
    Clock(seconds, Path(scratch)).install()
    write_nothing()
    kept = [word for word in words if word.partition("=")[0] not in ("epochs", "patience", "time")]
    ours = (f"project={scratch}", "name=measured", "plots=False", "exist_ok=True", f"epochs={ENDLESS}", "patience=0")
    try:
        adapter.command([*kept, *ours])
    except EnoughError:
        import psutil

        for worker in psutil.Process().children(recursive=True):  # they wait for somebody to take their batches
            worker.kill()
        os._exit(0)


if __name__ == "__main__":
    main(float(sys.argv[1]), sys.argv[2], sys.argv[3:])
