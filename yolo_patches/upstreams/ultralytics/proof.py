"""One training of `yolo-patches verify`: a real trainer, as one process or as one rank of several.

    python -m yolo_patches.upstreams.ultralytics.proof JOB      (JOB: the fields of `Job` as JSON)

The data set is one global batch, so that every run sees the same images in every step, however many ranks share them.
"""

from __future__ import annotations

import contextlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from yolo_patches import api

IMGSZ = 64


@dataclass(frozen=True)
class Job:
    """What to train.

    Attributes:
        model: A model file, e.g. "yolo11n.yaml".
        data: The data set's yaml file.
        out: Where rank 0 writes its tensors.
        patches: The specification.
        batch: Images of the global batch, and of the data set.
        optimizer: Upstream's name of it.
        steps: Optimizer steps.
        seed: Upstream's seed; it adds the rank to it, and counts a process without ranks as -1.
        device: "cpu" or "cuda".
        dtype: Of model and images, "float64" or "float32".
    """

    model: str
    data: str
    out: str
    patches: str
    batch: int
    optimizer: str
    steps: int
    seed: int
    device: str
    dtype: str


def make_data(folder: Path, task: str, images: int) -> Path:
    """Make a data set of rectangles on noise, unevenly crowded, every other image empty in the second half.

    Args:
        folder: Where; it must not exist.
        task: detect, segment, pose or obb.
        images: Number of images; training and validation share them.

    Returns:
        The data set's yaml file.
    """
    import cv2

    random = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    (folder / "labels").mkdir()
    for index in range(images):
        canvas = random.integers(0, 90, (IMGSZ, IMGSZ, 3), dtype=np.uint8)
        lines = []
        for _ in range(0 if index >= images // 2 and index % 2 else 1 + index % 5):
            left, top = random.integers(2, IMGSZ - 26, 2)
            width, height = random.integers(8, 24, 2)
            cv2.rectangle(canvas, (int(left), int(top)), (int(left + width), int(top + height)), (200, 180, 90), -1)
            x, y = np.array([left, left + width]) / IMGSZ, np.array([top, top + height]) / IMGSZ
            corners = np.array([(x[0], y[0]), (x[1], y[0]), (x[1], y[1]), (x[0], y[1])])
            box = [x.mean(), y.mean(), x[1] - x[0], y[1] - y[0]]
            values: Any = {
                "detect": box,
                "segment": corners.ravel(),
                "obb": corners.ravel(),
                "pose": [*box, *np.column_stack([corners, np.full(4, 2)]).ravel()],
            }[task]
            lines.append(" ".join(["0", *(f"{value:.6f}" for value in values)]))
        cv2.imwrite(str(folder / "images" / f"{index:03}.png"), canvas)
        (folder / "labels" / f"{index:03}.txt").write_text("\n".join(lines))
    file = folder / "data.yaml"
    keypoints = "kpt_shape: [4, 3]\nflip_idx: [1, 0, 3, 2]\n" if task == "pose" else ""
    file.write_text(f"path: {folder}\ntrain: images\nval: images\nnames: [box]\n{keypoints}")
    return file


class Finished(BaseException):
    """Every rank has made its steps; nothing after them is of interest."""


def train(job: Job) -> None:
    """Train, and let rank 0 write gradient and BatchNorm statistics of the first step and the state after the last."""
    import torch
    from ultralytics.models import YOLO
    from ultralytics.utils import RANK

    torch.set_num_threads(1)
    seen: dict[str, Any] = {"step": 0}

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
            step()
            seen["step"] += 1
            if seen["step"] == job.steps:
                seen["parameters"], seen["buffers"] = state(model, "parameters"), state(model, "buffers")
                if trainer.ema:
                    ema = trainer.ema.ema
                    seen["ema"] = torch.cat([state(ema, "parameters"), state(ema, "buffers")])
                raise Finished

        trainer.optimizer_step = observed

    yolo = YOLO(job.model)
    yolo.add_callback("on_pretrain_routine_end", on_pretrain_routine_end)
    augmentation = dict.fromkeys(
        ("hsv_h", "hsv_s", "hsv_v", "translate", "scale", "fliplr", "mosaic", "degrees", "mixup"), 0.0
    )
    with contextlib.suppress(Finished):
        yolo.train(
            trainer=_computing_in(getattr(torch, job.dtype), yolo._smart_load("trainer")),
            data=job.data,
            project=str(Path(job.out).parent),
            name=Path(job.out).stem,
            patches=job.patches,
            batch=job.batch,
            nbs=2 * job.batch,  # two micro-steps a step
            imgsz=IMGSZ,
            epochs=200,
            optimizer=job.optimizer,
            seed=job.seed,
            amp=False,
            val=False,
            save=False,
            plots=False,
            verbose=False,
            workers=0,
            **augmentation,
            **({"device": "cpu"} if job.device == "cpu" else {}),
        )
    if RANK in {-1, 0}:
        torch.save(seen, job.out)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def _computing_in(dtype: Any, owner: type) -> type:
    """Return a trainer class whose model and images have a type; where it is float64, rounding hides nothing."""

    class Trainer(owner):  # type: ignore[misc]
        def set_model_attributes(self) -> None:
            super().set_model_attributes()
            self.model.to(dtype)

        def preprocess_batch(self, batch: Any) -> Any:
            batch = super().preprocess_batch(batch)
            return {**batch, "img": batch["img"].to(dtype)}

    return Trainer


if __name__ == "__main__":
    api.watch()
    train(Job(**json.loads(sys.argv[1])))
