"""One training of `yolo-patches verify`: a real trainer, as one process or as one rank of several.

    python -m yolo_patches.upstreams.ultralytics.proof JOB      (JOB: the fields of `Job` as JSON)

The data set is one global batch, so that every run sees the same images in every step, however many ranks share them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yolo_patches import api
from yolo_patches.errors import PatchesError
from yolo_patches.upstreams.ultralytics.stand_ins import leave
from yolo_patches.upstreams.ultralytics.subjects import IMGSZ, one_line

#: Small, so that rounding stays rounding: at upstream's 0.01, and 0.1 for biases in warm-up, every one of the first
#: steps multiplies what differs by up to a hundred, and six make 1e-4 of 1e-12 (yolov9t).
LR = 1e-5


@dataclass(frozen=True)
class Job:
    """What to train.

    Attributes:
        model: A model file, e.g. "yolo11n.yaml".
        home: The folder from where the user has named it.
        data: The data set's yaml file.
        out: Where rank 0 writes its tensors.
        patches: The specification.
        batch: Images of the global batch, and of the data set.
        optimizer: Upstream's name of it.
        steps: Optimizer steps.
        seed: Upstream's seed; it adds the rank to it, and counts a process without ranks as -1.
        device: "cpu" or "cuda".
        dtype: Of model and images, "float64" or "float32".
        rounds: Whether upstream may round on the way in float64; see rounding.py.
    """

    model: str
    home: str
    data: str
    out: str
    patches: str
    batch: int
    optimizer: str
    steps: int
    seed: int
    device: str
    dtype: str
    rounds: bool


class Finished(BaseException):
    """Every rank has made its steps; nothing after them is of interest."""


def train(job: Job) -> None:
    """Train, and let rank 0 write gradient and BatchNorm statistics of the first step and the state after the last.

    Beside them, to tell whether runs may be compared: the parameters before the first step, the number of ranks, what
    identifies each image of each step on all ranks, and where upstream would have rounded.
    """
    import torch
    from ultralytics.models import YOLO
    from ultralytics.utils import RANK

    torch.set_num_threads(1)
    casts: set[str] = set()
    if not job.rounds:
        from yolo_patches.upstreams.ultralytics.rounding import leave_out

        casts = leave_out()
    images: list[str] = []
    seen: dict[str, Any] = {"step": 0, "ranks": 1}

    def state(module: Any, kinds: str) -> torch.Tensor:
        tensors = module.named_parameters() if kinds == "parameters" else module.named_buffers()
        return torch.cat([t.detach().double().cpu().flatten() for name, t in tensors if "num_batches" not in name])

    def on_pretrain_routine_end(trainer: Any) -> None:
        step = trainer.optimizer_step

        def observed() -> None:
            model = getattr(trainer.model, "module", trainer.model)
            if not seen["step"]:
                grads = [p.grad for p in model.parameters() if p.grad is not None]
                seen["gradient"] = torch.cat([grad.double().cpu().flatten() for grad in grads])
                seen["statistics"] = state(model, "buffers")
                seen["start"] = state(model, "parameters")
            step()
            seen["step"] += 1
            if seen["step"] == job.steps:
                seen["parameters"], seen["buffers"] = state(model, "parameters"), state(model, "buffers")
                if trainer.ema:
                    ema = trainer.ema.ema
                    seen["ema parameters"], seen["ema buffers"] = state(ema, "parameters"), state(ema, "buffers")
                raise Finished

        trainer.optimizer_step = observed

    with _inside(job.home):
        yolo = YOLO(job.model)
    yolo.add_callback("on_pretrain_routine_end", on_pretrain_routine_end)
    augmentation = dict.fromkeys(
        ("hsv_h", "hsv_s", "hsv_v", "translate", "scale", "fliplr", "mosaic", "degrees", "mixup"), 0.0
    )
    with contextlib.suppress(Finished):
        yolo.train(
            trainer=_computing_in(getattr(torch, job.dtype), yolo._smart_load("trainer"), images),
            data=job.data,
            project=str(Path(job.out).parent),
            name=Path(job.out).stem,
            patches=job.patches,
            batch=job.batch,
            nbs=2 * job.batch,  # two micro-steps a step
            imgsz=IMGSZ,
            epochs=200,
            optimizer=job.optimizer,
            lr0=LR,
            warmup_bias_lr=LR,
            seed=job.seed,
            amp=False,
            save=False,
            plots=False,
            verbose=False,
            workers=0,
            **augmentation,
            **({"device": "cpu"} if job.device == "cpu" else {}),
        )
    if seen["step"] < job.steps:
        raise PatchesError(f"the training ended after {seen['step']} of {job.steps} optimizer steps")
    if torch.distributed.is_initialized():
        seen["ranks"] = torch.distributed.get_world_size()
        everywhere: list[Any] = [None] * seen["ranks"]
        torch.distributed.all_gather_object(everywhere, images)
        images = [image for part in everywhere for image in part]
    seen["images"], seen["casts"] = sorted(images), sorted(casts)
    if RANK in {-1, 0}:
        torch.save(seen, job.out)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        leave(yolo.trainer)


def _computing_in(dtype: Any, owner: type, images: list[str]) -> type:
    """Return a trainer class whose model and images have a type, and that notes what it trains on.

    Args:
        dtype: torch.float64 or torch.float32.
        owner: Upstream's trainer class.
        images: Where to note what identifies the images.
    """

    class Trainer(owner):  # type: ignore[misc]
        def set_model_attributes(self) -> None:
            super().set_model_attributes()
            self.model.to(dtype)

        def preprocess_batch(self, batch: Any) -> Any:
            batch = super().preprocess_batch(batch)
            images.extend(_identify(batch))
            return {**batch, "img": batch["img"].to(dtype)}

        def validate(self) -> Any:
            """Not with val=False: with it, ranks but the first read a variable that is not there (8.3.225)."""
            return {}, None

    return Trainer


def _identify(batch: Any) -> Iterator[str]:
    """Yield what identifies each image of a batch together with its objects."""
    owner = batch["batch_idx"].cpu()
    objects = [batch[name].cpu() for name in ("cls", "bboxes")]
    for index, image in enumerate(batch["img"].cpu()):
        parts = [image, *(values[owner == index] for values in objects)]
        yield hashlib.sha256(b"".join(part.double().numpy().tobytes() for part in parts)).hexdigest()


@contextlib.contextmanager
def _inside(folder: str) -> Iterator[None]:
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@contextlib.contextmanager
def _reporting(out: str) -> Iterator[None]:
    """Leave a file beside `out` where this rank fails: the launcher's own output does not say why."""
    try:
        yield
    except Exception as error:
        rank = int(os.environ.get("RANK", 0))
        frames = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
        modules = [name for name in frames if name.startswith(("ultralytics.", "yolo_patches."))]
        report = {
            "time": time.time(),
            "rank": rank,
            "error": one_line(error),
            "module": modules[-1] if modules else "",
            "trace": traceback.format_exc(),
        }
        Path(f"{out}.{rank}.failed").write_text(json.dumps(report), encoding="utf-8")
        raise


def main(text: str) -> None:
    """Train as the fields of a `Job` say, in JSON, and leave a report where that fails."""
    job = Job(**json.loads(text))
    with _reporting(job.out):
        api.watch()
        train(job)


if __name__ == "__main__":
    main(sys.argv[1])
