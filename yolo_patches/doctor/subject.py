"""What a check of `doctor` looks at. An adapter says what upstream knows; nothing in here is a judgement."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Optional

from yolo_patches.facts import Facts
from yolo_patches.plan import Plan


def _spell(name: str, value: Any) -> str:
    return f"{name}={value}"


@dataclass(frozen=True)
class Settings:
    """Resolved arguments that no patch needs, in one vocabulary. None: this upstream has no such argument.

    Attributes:
        imgsz: The longer side that images are scaled to, in pixels.
        stride: The model's largest stride, in pixels.
        workers: Loader workers a rank, as given.
        cache: What holds decoded images: "ram", "disk" or empty.
        amp: Whether mixed precision is on.
        mosaic: Probability of mosaic.
        close_mosaic: Epochs at the end without it.
        copy_paste: Probability of copy-paste.
        max_det: Detections an image that validation keeps at most.
        warmup: Batches of an epoch -> warm-up, in micro-steps.
        auto_steps: Optimizer steps above which upstream's `auto` takes another optimizer.
        auto_ignores: Arguments that `auto` replaces.
        spell: An argument's name here and a value -> how a user of this upstream gives it.
    """

    imgsz: Optional[int] = None
    stride: Optional[int] = None
    workers: Optional[int] = None
    cache: Optional[str] = None
    amp: Optional[bool] = None
    mosaic: Optional[float] = None
    close_mosaic: Optional[int] = None
    copy_paste: Optional[float] = None
    max_det: Optional[int] = None
    warmup: Optional[Callable[[int], int]] = None
    auto_steps: Optional[int] = None
    auto_ignores: tuple[str, ...] = ()
    spell: Callable[[str, Any], str] = _spell


@dataclass(frozen=True)
class Labelled:
    """One image and its labels, as upstream's own scan has read them.

    Attributes:
        path: The image's file.
        height: In pixels.
        width: In pixels.
        classes: Class of each box, shape (n,).
        boxes: Centre, width and height of each box as shares of the image, shape (n, 4).
        polygons: How many of the boxes come with a polygon.
    """

    path: str
    height: int
    width: int
    classes: Any
    boxes: Any
    polygons: int = 0


@dataclass(frozen=True)
class Split:
    """The images of one part of a data set.

    Attributes:
        images: What upstream will use.
        problems: What upstream's scan says of images or labels that it leaves out or repairs, a sentence each.
    """

    images: Sequence[Labelled]
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class DataSet:
    """A data set.

    Attributes:
        names: Class number -> name, of the classes that are trained.
        train: The training images.
        val: The validation images.
    """

    names: Mapping[int, str]
    train: Split
    val: Split


@dataclass(frozen=True)
class Absent:
    """Why there is no data set to look at.

    Attributes:
        why: In words.
        fatal: Whether the training will end by it.
    """

    why: str
    fatal: bool = False


@dataclass(frozen=True)
class Accelerator:
    """One device that the training will use.

    Attributes:
        name: Its maker's name of it.
        half: Whether its matrix units are faster in half precision.
    """

    name: str
    half: bool


@dataclass(frozen=True)
class Machine:
    """Where the training will run.

    Attributes:
        cores: Cores that this process may use.
        memory: Bytes of host memory that may still be taken.
        accelerators: The devices, none on a CPU.
    """

    cores: int
    memory: int
    accelerators: tuple[Accelerator, ...] = ()


@dataclass(frozen=True)
class Subject:
    """Everything that is judged.

    Attributes:
        facts: What patches decide from.
        settings: The other arguments.
        plan: What the patches will do.
        machine: Where it runs.
        data: The data set, or None where it cannot be looked at.
    """

    facts: Facts
    settings: Settings
    plan: Plan
    machine: Machine
    data: Optional[DataSet] = None

    def active(self, patch: str) -> bool:
        """Return whether a patch will act in this training."""
        return any(entry.name == patch and entry.decision.status == "active" for entry in self.plan.entries)

    @property
    def batch(self) -> int:
        """Images a micro-step over all ranks, 0 where upstream measures it itself."""
        return int(self.facts.batch.size) if self.facts.batch.size >= 1 else 0

    @property
    def per_rank(self) -> int:
        """Images a micro-step and rank, 0 where upstream measures it itself."""
        return self.batch // self.facts.world_size

    @property
    def images(self) -> Optional[int]:
        """Number of training images, None where they are not to be found."""
        return len(self.data.train.images) if self.data is not None else self.facts.images()

    def change(self, name: str, value: Any) -> str:
        """Return an argument with a value, as a user of this upstream gives it."""
        return self.settings.spell(name, value)
