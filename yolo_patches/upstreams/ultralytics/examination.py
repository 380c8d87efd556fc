"""What `doctor` asks Ultralytics about a training: its other arguments, and its data set by upstream's own scan."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Union

from yolo_patches.doctor.subject import Absent, DataSet, Labelled, Settings, Split
from yolo_patches.upstreams.ultralytics.commands import subject

#: Tasks whose labels are boxes, one file an image.
BOXES = ("detect", "segment", "pose", "obb")
#: From so many optimizer steps on, `optimizer=auto` takes SGD (MuSGD), before that AdamW.
AUTO_STEPS = 10_000
#: The largest stride of every model file that is shipped for detection, where the live model does not say.
STRIDE = 32
#: How a JPEG begins and ends. Upstream rewrites the user's file where the end is missing; `doctor` must not.
JPEG_BEGINS, JPEG_ENDS = b"\xff\xd8", b"\xff\xd9"


def settings(owner: type, args: Mapping[str, Any]) -> Settings:
    """Return the arguments that only `doctor` judges.

    Args:
        owner: The trainer's class.
        args: Upstream's resolved training arguments.
    """
    cache, imgsz = args.get("cache"), args.get("imgsz")
    return Settings(
        imgsz=int(imgsz) if isinstance(imgsz, (int, float)) else None,
        stride=_stride(),
        workers=int(args.get("workers") or 0),
        cache="ram" if cache is True else str(cache or "").lower(),
        amp=bool(args.get("amp", True)),
        mosaic=float(args.get("mosaic") or 0),
        close_mosaic=int(args.get("close_mosaic") or 0),
        copy_paste=float(args.get("copy_paste") or 0),
        max_det=int(args.get("max_det") or 300),
        warmup=_warmup(owner, args),
        auto_steps=AUTO_STEPS,
        auto_ignores=("lr0", "momentum"),
    )


def _stride() -> int:
    stride = getattr(getattr(subject.get(), "model", None), "stride", None)
    return int(max(stride)) if stride is not None else STRIDE


def _warmup(owner: type, args: Mapping[str, Any]) -> Callable[[int], int]:
    """Return the length of the warm-up: since 8.4.120 an epoch less than the run at most, before 100 steps at least."""
    epochs, wanted = float(args.get("epochs") or 100), float(args.get("warmup_epochs") or 0)
    if hasattr(owner, "_get_warmup_iterations"):
        return lambda batches: round(min(wanted, max(epochs - 1, 0)) * batches)
    return lambda batches: max(round(wanted * batches), 100) if wanted > 0 else 0


class _ScannedError(BaseException):
    """Ends the construction of upstream's data set when it has read every label, before it writes them down."""

    def __init__(self, found: Mapping[str, Any]) -> None:
        super().__init__("scanned")
        self.found = found


def data_set(args: Mapping[str, Any]) -> Union[DataSet, Absent]:
    """Read a data set by upstream's own scan, without its label cache, a download, or a repair of the user's files.

    Args:
        args: Upstream's resolved training arguments.
    """
    task, named = str(args.get("task")), str(args.get("data"))
    if task not in BOXES:
        return Absent(f"labels of task {task} are no boxes")
    if not named.endswith((".yaml", ".yml")) or "://" in named:
        return Absent(f"data={named} is no yaml file on this machine")
    utils = import_module("ultralytics.data.utils")
    with _replaced(utils, check_font=lambda *_, **__: None):
        try:
            data = utils.check_det_dataset(named, autodownload=False)
        except FileNotFoundError as error:
            return Absent(_line(error), fatal=not _downloadable(named))
        except Exception as error:  # whatever upstream objects to, it will object to at the training
            return Absent(_line(error), fatal=True)
    numbers = args.get("classes")
    wanted = (
        None if numbers is None else {int(n) for n in (numbers if isinstance(numbers, (list, tuple)) else [numbers])}
    )
    names = {int(key): str(name) for key, name in data["names"].items() if wanted is None or int(key) in wanted}
    try:
        parts = [_scanned(args, data, part) for part in ("train", "val")]
    except Exception as error:  # the same: no images, no labels, labels of another task
        return Absent(_line(error), fatal=True)
    return DataSet(names, *parts)


def _scanned(args: Mapping[str, Any], data: Mapping[str, Any], part: str) -> Split:
    build, dataset = import_module("ultralytics.data.build"), import_module("ultralytics.data.dataset")

    with _replaced(
        dataset,
        load_dataset_cache_file=_none_there,
        save_dataset_cache_file=_end,
        verify_image_label=unrepaired(dataset.verify_image_label),
    ):
        try:
            build.build_yolo_dataset(SimpleNamespace(**args), data[part], 1, data, mode=part, rect=False)
        except _ScannedError as end:
            found = end.found
        else:
            raise RuntimeError("this release scans its labels in a way that we do not know")
    images = [
        Labelled(
            str(label["im_file"]),
            int(label["shape"][0]),
            int(label["shape"][1]),
            label["cls"].reshape(-1),
            label["bboxes"],
            len(label["segments"]),
        )
        for label in found["labels"]
    ]
    return Split(images, tuple(str(message) for message in found.get("msgs", ())))


def _none_there(*_: Any) -> Any:
    raise FileNotFoundError


def _end(*values: Any) -> None:
    raise _ScannedError(next(value for value in values if isinstance(value, dict)))


def unrepaired(verify: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return upstream's check of an image and its labels, but of a JPEG without its end only that it has none."""

    def verify_image_label(job: Any) -> Any:
        try:
            with open(job[0], "rb") as file:
                torn = file.read(2) == JPEG_BEGINS and file.seek(-2, 2) >= 0 and file.read() != JPEG_ENDS
        except OSError:
            torn = False
        if not torn:
            return verify(job)
        return [None] * 5 + [0, 0, 0, 1, f"{job[0]}: corrupt JPEG, its end is missing; training rewrites the file"]

    return verify_image_label


@contextmanager
def _replaced(module: ModuleType, **values: Any) -> Iterator[None]:
    missing = [name for name in values if name not in vars(module)]
    if missing:
        raise RuntimeError(f"{module.__name__}.{missing[0]} does not exist in this release")
    originals = {name: vars(module)[name] for name in values}
    vars(module).update(values)
    try:
        yield
    finally:
        vars(module).update(originals)


def _downloadable(named: str) -> bool:
    import yaml

    check_file = import_module("ultralytics.utils.checks").check_file
    loaded = yaml.safe_load(Path(check_file(named)).read_text(encoding="utf-8", errors="ignore"))
    return bool(isinstance(loaded, dict) and loaded.get("download"))


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
