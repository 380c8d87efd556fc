"""What `yolo-patches verify` can judge: which models, and the images that their tasks learn from."""

from __future__ import annotations

import contextlib
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from yolo_patches.errors import PatchesError

#: Side of an image.
IMGSZ = 64
#: Tasks whose trainings can be compared. Classify has no normaliser to prove; the losses of semantic and depth are no
#: sums that ranks could share (see NORMALISERS in facts.py), so that their gradients differ by more than any limit.
TASKS = ("detect", "segment", "pose", "obb")
#: Modules of trainers that are not those of plain models: RT-DETR's noise is drawn by each rank, and open-vocabulary
#: models need a text encoder, which would be downloaded.
OTHER = ("ultralytics.models.rtdetr.", "ultralytics.models.yolo.world.", "ultralytics.models.yolo.yoloe.")


def one_line(error: BaseException) -> str:
    """Return an error in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def task_of(model: str) -> str:
    """Return the task of a model that `verify` can judge.

    Args:
        model: A model file as upstream finds it, or a file of weights that is there.

    Raises:
        PatchesError: There is no such model, or what it learns cannot be judged.
    """
    kind = Path(model).suffix
    if kind == ".pt" and not Path(model).is_file():
        raise PatchesError(f"verify: no such file: {model}; nothing is downloaded, but a .yaml will do: yolo11n.yaml")
    if kind not in (".pt", ".yaml", ".yml"):
        raise PatchesError(f"verify: {model!r} is no model file; give a .yaml, such as yolo11n.yaml, or weights (.pt)")
    valid = f"plain YOLO models of the tasks {', '.join(TASKS)} can be judged"
    try:
        with contextlib.redirect_stdout(sys.stderr):  # upstream's log
            yolo = import_module("ultralytics.models").YOLO(model)
            trainer = yolo._smart_load("trainer")
    except FileNotFoundError:
        hint = "give your own, or one of upstream's, such as yolo11n.yaml"
        raise PatchesError(f"verify: no such model file: {model}; {hint}") from None
    except Exception as error:
        raise PatchesError(f"verify: {valid}, and YOLO({model!r}) ends in {one_line(error)}") from error
    if yolo.task not in TASKS:
        raise PatchesError(f"verify: {valid}, and {model} is of the task {yolo.task}")
    if any(base.__module__.startswith(OTHER) for base in trainer.__mro__):
        raise PatchesError(f"verify: {valid}, and {model} is trained by {trainer.__name__}")
    return str(yolo.task)


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
