"""Make training samples for some seconds in a process of its own: the child of `bench-loading`.

    python -m yolo_patches.upstreams.ultralytics.loading_figures SECONDS SCRATCH CORES WORDS...

Nothing is trained: upstream's own command comes as far as its trainer's `train`, and its samples are made instead.
The answer is a file of JSON in SCRATCH.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import wraps
from importlib import import_module
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from yolo_patches.upstreams.ultralytics.examination import STRIDE
from yolo_patches.upstreams.ultralytics.measuring import loader_speed, write_nothing
from yolo_patches.upstreams.ultralytics.sample_remainders import leaving, workers_leave
from yolo_patches.upstreams.ultralytics.seam_sources import LOADERS

#: The file of the answer.
ANSWER = "loading.json"
#: Samples that are made before the clock runs: caches are cold, and what stands in is compared with upstream's.
WARM = 16
#: Images of a batch where upstream would measure how many fit.
BATCH = 16
#: Method of a data set, or class of a transform -> stage.
STAGES = {
    "load_image": "decode",
    "get_image_and_label": "labels",
    "Mosaic": "mosaic",
    "RandomPerspective": "warp",
    "RandomHSV": "HSV",
    "RandomFlip": "flips",
    "Format": "format",
    "LetterBox": "letterbox",
    "MixUp": "mixup",
    "CutMix": "cutmix",
    "CopyPaste": "copy-paste",
}


class Stages:
    """The time that each stage takes by itself, without the stages inside it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inside: list[float] = []

    def timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function whose time is that stage's."""

        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            begun = time.perf_counter()
            self._inside.append(0.0)
            try:
                return function(*args, **kwargs)
            finally:
                whole = time.perf_counter() - begun
                self.seconds[stage] += whole - self._inside.pop()
                if self._inside:
                    self._inside[-1] += whole

        return call

    def watch(self, dataset: Any) -> None:
        """Time the methods and transforms of a data set, from here on and in this process."""
        for name in ("load_image", "get_image_and_label"):
            if hasattr(dataset, name):
                setattr(dataset, name, self.timed(STAGES[name], getattr(dataset, name)))
        for kind in {type(one) for one in transforms(dataset)}:
            if callable(kind):
                kind.__call__ = self.timed(STAGES.get(kind.__name__, kind.__name__), kind.__call__)

    def shares(self) -> dict[str, float]:
        """Return stage -> share of all, the largest first."""
        whole = sum(self.seconds.values()) or 1.0
        return {stage: took / whole for stage, took in sorted(self.seconds.items(), key=lambda item: -item[1])}


def transforms(dataset: Any) -> Iterator[Any]:
    """Yield the transforms of a data set, not the chains that hold them, each once."""
    waiting, seen = [getattr(dataset, "transforms", None), getattr(dataset, "torch_transforms", None)], set()
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        inner = getattr(one, "transforms", None)
        if isinstance(inner, (list, tuple)):
            waiting += inner
            continue
        waiting.append(getattr(one, "pre_transform", None))
        yield one


def figures(trainer: Any, seconds: float, cores: int) -> dict[str, Any]:
    """Return what making the samples of a training takes workers; what they leave to the device is not counted.

    Args:
        trainer: Upstream's, whose constructor has run.
        seconds: How long each measurement takes.
        cores: How many of them there are.
    """
    with workers_leave(LOADERS), leaving():
        return _figures(trainer, seconds, cores)


def _figures(trainer: Any, seconds: float, cores: int) -> dict[str, Any]:
    dataset, batch = training_set(trainer)
    found: dict[str, Any] = {"images": len(dataset), "batch": batch, "imgsz": int(trainer.args.imgsz), "workers": {}}
    build = import_module("ultralytics.data").build_dataloader
    for workers in dict.fromkeys([*(2**power for power in range(10) if 2**power < cores), cores]):
        # So few images that some workers have nothing to do say nothing of them.
        loader = build(dataset, max(min(batch, len(dataset) // (2 * workers)), 1), workers)
        if loader.num_workers == workers:
            found["workers"][str(workers)] = loader_speed(loader, seconds)
        close = getattr(loader, "close", None)
        if close is not None:
            close()
        del loader
    found.update(_one_core(dataset, seconds))
    return found


def prepared(trainer: Any) -> tuple[Any, int]:
    """Let a trainer make data sets before it has a model; return what it trains on, and the images of a batch.

    Args:
        trainer: Upstream's, whose constructor has run.
    """
    data = getattr(trainer, "trainset", None) or trainer.data["train"]
    batch = int(trainer.batch_size) if trainer.batch_size >= 1 else BATCH
    if isinstance(trainer.model, str):
        # It is the name of what has not been built yet, and the data set asks for its stride alone.
        trainer.model = SimpleNamespace(stride=import_module("torch").tensor([float(STRIDE)]))
    return data, batch


def training_set(trainer: Any) -> tuple[Any, int]:
    """Return the data set that a trainer would train on, with the patches' parts in place, and the images of a batch.

    Args:
        trainer: Upstream's, whose constructor has run.
    """
    data, batch = prepared(trainer)
    return trainer.build_dataset(data, "train", batch), batch


def _one_core(dataset: Any, seconds: float) -> dict[str, Any]:
    """Return the images a second of one core's time, and the share of each stage."""
    torch, numpy = import_module("torch"), import_module("numpy")
    torch.set_num_threads(1)  # as in a worker
    random.seed(0)
    numpy.random.seed(0)
    order = endless(len(dataset))
    for index in islice(order, WARM):
        dataset[index]
    stages = Stages()
    stages.watch(dataset)
    sample = stages.timed("rest", dataset.__getitem__)
    collate = getattr(dataset, "collate_fn", None) or torch.utils.data.default_collate
    together = stages.timed("collate", collate)
    images, begun, limit = 0, time.process_time(), time.perf_counter() + seconds
    while not images or time.perf_counter() < limit:
        samples = [sample(index) for index in islice(order, BATCH)]
        images += len(samples)
        together(samples)
    return {"core": images / (time.process_time() - begun), "stages": stages.shares()}


def endless(length: int) -> Iterator[int]:
    """Yield the numbers below a length in chance order, again and again."""
    while True:
        yield from random.sample(range(length), length)


def instead_of_training(read: Callable[[Any], Any], scratch: str, words: list[str]) -> None:
    """Run `yolo` as far as its trainer's `train`, write down as JSON what a function finds there, and end the process.

    Args:
        read: Takes the trainer; what it returns goes to `ANSWER`.
        scratch: Folder for that, and for whatever upstream writes.
        words: What `yolo` takes.
    """
    from yolo_patches import api, registry

    api.watch()
    adapter = registry.adapter("ultralytics")
    assert adapter is not None, "it is installed with us"

    def train(trainer: Any) -> None:
        Path(scratch, ANSWER).write_text(json.dumps(read(trainer)), encoding="utf-8")
        sys.stderr.flush()
        os._exit(0)  # loaders of old releases would wait for workers that have batches to hand out

    import_module("ultralytics.engine.trainer").BaseTrainer.train = train
    write_nothing()
    adapter.command([*words, f"project={scratch}", "name=read", "plots=False", "exist_ok=True", "device=cpu"])


if __name__ == "__main__":
    took, cores_there = float(sys.argv[1]), int(sys.argv[3])
    instead_of_training(lambda trainer: figures(trainer, took, cores_there), sys.argv[2], sys.argv[4:])
