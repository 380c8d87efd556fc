"""Seams: the named points that an adapter offers and that patches are written against.

A seam is a small dataclass. The adapter fills it in with what upstream is about to do, fires it, and goes on with what
comes back. Patches name the seams that they need; a patch whose seams the installed upstream lacks is unavailable.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


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


@dataclass(frozen=True)
class Facts:
    """What an adapter knows about a run before anything is built.

    Attributes:
        upstream: Adapter name, e.g. "ultralytics".
        version: Installed upstream version.
        task: Upstream's task name, e.g. "detect".
        world_size: Number of ranks, at least 1.
        global_batch: Images per step over all ranks; less than 1 where upstream measures the batch itself (AutoBatch).
        val_batch_factor: Upstream's validation images per rank, as a multiple of the per-rank training batch.
        normaliser: What each rank divides this task's loss by, in words; empty where ranks have nothing to share.
        launcher: The launcher whose ranks train together; None where upstream starts them itself, or nobody does.
        devices: Number of accelerators that the user named; 0 where none is.
        nbs: Upstream's nominal batch: smaller batches accumulate up to it, weight decay is meant for it.
        lr0: The initial learning rate in the arguments.
        optimizer: The optimizer's name in the arguments; "auto" where upstream chooses.
        model: The model file's stem, e.g. "yolov10x".
        scratch: Whether training starts from random weights.
        rewritten: What rewrites the model's layers while it trains, e.g. "torch.compile"; empty where nothing does.
        mean_loss: Whether the loss is a mean over images, so that the gradient grows with ranks x accumulate; otherwise
            it is multiplied by the batch and grows with the effective batch.
        floored: Whether upstream keeps its normaliser away from zero.
        own_sync_bn: The argument by which the user has upstream itself synchronise BatchNorm; empty where none does.
        own_ranks: Whether upstream itself takes its ranks from a launcher.
        gaps: What upstream uses and the installed stack lacks or has changed -> what comes of it.
    """

    upstream: str
    version: str
    task: str
    world_size: int
    global_batch: float
    val_batch_factor: int
    normaliser: str = ""
    launcher: Launcher | None = None
    devices: int = 0
    nbs: int = 64
    lr0: float = 0.01
    optimizer: str = "auto"
    model: str = ""
    scratch: bool = False
    rewritten: str = ""
    mean_loss: bool = False
    floored: bool = True
    own_sync_bn: str = ""
    own_ranks: bool = False
    gaps: Mapping[str, str] = field(default_factory=dict)


class Seam:
    """Base of every seam; a subclass carries the values that a patch may read or change."""


@dataclass
class StackGap(Seam):
    """Upstream is about to use something that the installed stack lacks or has changed. It comes before any run, too.

    Attributes:
        name: What, as in `Facts.gaps`.
        trusted: Of a file that is about to be unpickled: whether this run wrote it, or the user named it.
        fill: Whether to stand in for what is lacking; a patch may set it.
    """

    name: str
    trusted: bool = False
    fill: bool = False


@dataclass
class ModelBuilt(Seam):
    """The model is complete and on its device; no copy, wrapper or optimizer of it exists yet.

    Attributes:
        model: A torch module; a patch may change it in place.
    """

    model: Any


@dataclass
class Ranks(Seam):
    """The ranks that a launcher started are about to form one process group.

    Attributes:
        backend: Of the collectives, "nccl" or "gloo"; a patch may replace it.
    """

    backend: str


@dataclass
class ValLoader(Seam):
    """The validation loader is about to be built.

    Attributes:
        batch: Images per rank and step; a patch may replace it.
        train_batch: The per-rank training batch.
    """

    batch: int
    train_batch: int


@dataclass
class TrainStart(Seam):
    """Everything is built and the first step is about to run: patches check their effect on the live objects.

    Attributes:
        val_loader: The live validation loader, or None on a rank that has none.
        normalises: Whether the live model's criterion fires `Normaliser` before it divides.
        train_loader: The live training loader.
        optimizer: The live optimizer, its scheduler in place.
        model: The live model, wrapped or not.
        filled: The gaps of the stack that something stands in.
    """

    val_loader: Any
    normalises: bool = False
    train_loader: Any = None
    optimizer: Any = None
    model: Any = None
    filled: frozenset[str] = frozenset()


@dataclass
class Normaliser(Seam):
    """A criterion has what it is about to divide by, on every rank: also on those that have nothing to divide.

    Attributes:
        values: This rank's normalisers of one criterion call, as one vector; a patch may replace it by their mean over
            the ranks.
        ranks: The number of ranks that `values` is the mean of.
        instead: What a normaliser of the whole batch is taken for where it is zero; 0 where upstream has a floor of its
            own, or divides by zero. A patch may replace it.
    """

    values: Any
    ranks: int = 1
    instead: float = 0.0


@dataclass
class EpochLosses(Seam):
    """An epoch's training losses are about to be logged, on every rank.

    Attributes:
        values: This rank's mean of each loss term, as one vector; a patch may replace it.
    """

    values: Any


@dataclass
class OptimizerChoice(Seam):
    """Upstream is about to choose the optimizer by the length of the run.

    Attributes:
        batch: The global batch.
        images: Training images.
        epochs: Epochs of the run.
        iterations: Optimizer steps that upstream counts; a patch may replace them.
    """

    batch: int
    images: int
    epochs: int
    iterations: float


@dataclass
class OptimizerBuilt(Seam):
    """The optimizer stands and no step has been made at this batch; the scheduler reads its groups next.

    Attributes:
        optimizer: A torch optimizer; a patch may change its groups' values.
        batch: The global batch.
        fresh: Whether the groups are new; after an out-of-memory retry upstream may keep them and only set the weight
            decay again.
    """

    optimizer: Any
    batch: int
    fresh: bool = True


@dataclass
class OptimizerRestored(Seam):
    """A resumed run has loaded the optimizer's state, its groups' values included.

    Attributes:
        optimizer: A torch optimizer; a patch may change its groups' values.
    """

    optimizer: Any


@dataclass
class OptimizerStep(Seam):
    """The gradients of one effective batch are there, and are about to be clipped and applied.

    Attributes:
        optimizer: A torch optimizer.
    """

    optimizer: Any

    def scale_gradients(self, factor: float) -> None:
        """Multiply every gradient by `factor`, in place."""
        import torch

        gradients = [p.grad for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        if gradients:
            torch._foreach_mul_(gradients, factor)


@dataclass
class WarmUp(Seam):
    """The length of the warm-up has been computed.

    Attributes:
        iterations: Training iterations of the warm-up, 0 or less for none; a patch may replace it.
        longest: Iterations that leave one epoch of regular training.
    """

    iterations: int
    longest: int
