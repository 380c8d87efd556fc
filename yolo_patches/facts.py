"""What an adapter knows about a training before anything is built, in groups: patches decide from this alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

#: Where a value comes from that nobody gave.
DEFAULT = "default"


@dataclass(frozen=True)
class Given:
    """The training arguments as the user gave them, before upstream has resolved anything.

    Attributes:
        values: Argument name -> the value as it was given. What is not here is upstream's default.
        origins: Argument name -> where it was given: "command line", "file", "Python" or "checkpoint".
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    origins: Mapping[str, str] = field(default_factory=dict)

    def __contains__(self, name: object) -> bool:
        return name in self.values

    def origin(self, name: str) -> str:
        """Return where an argument's value comes from, "default" where nobody gave it."""
        return self.origins.get(name, DEFAULT if name not in self.values else "Python")


@dataclass(frozen=True)
class Launcher:
    """Where a launcher (torchrun, or what sets the same variables) has put this process among the ranks it started.

    Attributes:
        rank: Number of this rank over all nodes.
        world_size: Number of ranks over all nodes.
        local_rank: Number of this rank on its node.
        local_world_size: Number of ranks on its node, or None where the launcher does not say.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int | None


def _accumulate_to_64(batch: int) -> int:
    return max(round(64 / batch), 1)


@dataclass(frozen=True)
class Batch:
    """How many images make a step.

    Attributes:
        size: Images per micro-step over all ranks (the global batch); less than 1 where upstream measures it itself
            (AutoBatch).
        nbs: Upstream's nominal batch: smaller batches accumulate up to it, and weight decay is meant for it.
        accumulate: Global batch -> the micro-steps that upstream adds up to one optimizer step.
        val_factor: Upstream's validation images per rank, as a multiple of the per-rank training batch.
    """

    size: float
    nbs: int = 64
    accumulate: Callable[[int], int] = _accumulate_to_64
    val_factor: int = 2


@dataclass(frozen=True)
class Optimization:
    """How the optimizer is set up.

    Attributes:
        optimizer: The optimizer's name in the arguments; "auto" where upstream chooses.
        lr0: The initial learning rate in the arguments.
        weight_decay: The weight decay in the arguments.
        epochs: Epochs of the training.
        warmup_epochs: Upstream's warm-up.
        patience: Epochs without improvement after which upstream stops; 0 where it does not.
        hours: How long the training may take, where it ends by the clock; 0 where it has a number of epochs.
    """

    optimizer: str = "auto"
    lr0: float = 0.01
    weight_decay: float = 0.0005
    epochs: int = 100
    warmup_epochs: float = 3.0
    patience: int = 0
    hours: float = 0.0


@dataclass(frozen=True)
class Devices:
    """Where the training runs.

    Attributes:
        world_size: Number of ranks, at least 1.
        kind: Type of the ranks' devices as torch names it: "cpu", "cuda", "mps", ...; empty where it is not known yet.
        named: Number of accelerators that the user named; 0 where none is.
        held: Their numbers, as far as they have some; where none is named, the one that upstream takes.
        launcher: The launcher whose ranks train together; None where upstream starts them itself, or nobody does.
        own_ranks: Whether upstream itself takes its ranks from a launcher.
        own_ranks_on_node: How many of those are on this node; 0 where it is not known.
    """

    world_size: int = 1
    kind: str = ""
    named: int = 0
    held: tuple[int, ...] = ()
    launcher: Launcher | None = None
    own_ranks: bool = False
    own_ranks_on_node: int = 0

    @property
    def on_node(self) -> int:
        """Number of ranks on this node; all of them where the launcher does not say."""
        return (self.launcher and self.launcher.local_world_size) or self.own_ranks_on_node or self.world_size


@dataclass(frozen=True)
class Loss:
    """What the loss is divided by, and how it grows.

    Attributes:
        normaliser: What each rank divides this task's loss by, in words; empty where ranks have nothing to share.
        mean: Whether the loss is known as a mean over images. Otherwise it is multiplied by the batch.
        floored: Whether upstream keeps its normaliser away from zero.
        validated: Whether upstream computes it in validation, too.
    """

    normaliser: str = ""
    mean: bool = False
    floored: bool = True
    validated: bool = True


@dataclass(frozen=True)
class Recognised:
    """Which published model this is, by its layers.

    Attributes:
        name: Upstream's name of it, e.g. "yolov10x" or "yolo11s-seg"; empty where it is none that we know.
        why: What stands against it; with a name, that the file is called otherwise.
    """

    name: str = ""
    why: str = ""


def uncounted() -> int | None:
    """Return nothing: the training images are not counted."""
    return None


def _unrecognised() -> Recognised:
    return Recognised("", "which model this is cannot be told")


@dataclass(frozen=True)
class Model:
    """What is trained.

    Attributes:
        name: The model file's stem, e.g. "yolov10x".
        scratch: Whether training starts from random weights.
        recognise: Compares its layers with those of the published models; it reads files.
        rewritten: What rewrites the model's layers while it trains, e.g. "torch.compile"; empty where nothing does.
        own_sync_bn: The argument by which the user has upstream itself synchronise BatchNorm; empty where none does.
    """

    name: str = ""
    scratch: bool = False
    recognise: Callable[[], Recognised] = _unrecognised
    rewritten: str = ""
    own_sync_bn: str = ""


@dataclass(frozen=True)
class Facts:
    """What an adapter knows about one training.

    Attributes:
        upstream: Adapter name, e.g. "ultralytics".
        version: Installed upstream version.
        task: Upstream's task name, e.g. "detect".
        batch: How many images make a step.
        optimization: How the optimizer is set up.
        devices: Where the training runs.
        loss: What the loss is divided by.
        model: What is trained.
        given: The arguments as the user gave them.
        resumed: Of a resumed training, its patches.json: patch name -> its entry. Empty for a new one.
        validates: Whether upstream validates after each epoch.
        is_resumed: Whether the training is resumed; one that was started without us has no entries.
        inherited: Of a worker, its parent's plan: patch name -> its entry. Empty elsewhere.
        images: Counts the training images, where `doctor` asks: a training has its data set for that. None where they
            are not to be found.
        metrics: The figures of a validation by the names of results.csv, without "metrics/"; empty where they are not
            known.
        gaps: What upstream uses and the installed stack lacks or has changed -> what comes of it.
    """

    upstream: str
    version: str
    task: str
    batch: Batch
    optimization: Optimization = field(default_factory=Optimization)
    devices: Devices = field(default_factory=Devices)
    loss: Loss = field(default_factory=Loss)
    model: Model = field(default_factory=Model)
    given: Given = field(default_factory=Given)
    resumed: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    validates: bool = True
    is_resumed: bool = False
    inherited: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    images: Callable[[], int | None] = uncounted
    metrics: tuple[str, ...] = ()
    gaps: Mapping[str, str] = field(default_factory=dict)

    @property
    def set_validations(self) -> str:
        """Why the validations between epochs cannot be left out or put off; empty where they can."""
        if not self.validates:
            return "upstream has been told to validate the last epoch alone"
        if self.optimization.hours:
            return "a training that ends by the clock does not know its last epoch beforehand"
        return ""

    @property
    def world_size(self) -> int:
        """Number of ranks, at least 1."""
        return self.devices.world_size
