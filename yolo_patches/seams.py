"""Seams: the named points that an adapter offers and that patches are written against.

There are two kinds. A `Seam` shows what upstream is about to use, and a patch may replace it: the adapter fills in a
small dataclass, fires it, and goes on with what comes back. An `Act` stands around something that upstream does: the
patch gets `proceed` and may call it, repeat it, or do without.

Patches name the seams that they need; a patch whose seams the installed upstream lacks is unavailable.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from yolo_patches.batch_search import Footprint
from yolo_patches.facts import Facts

#: Why an upstream lacks a seam in all of its releases. Whoever has selected a patch by its name is told that it needs
#: it; for whoever has selected `all`, it has nothing to do there.
NO_PLACE = "this upstream has no place for it"


class Seam:
    """Base of every seam; a subclass carries the values that a patch may read or change."""


class Act(Seam):
    """Base of the seams that stand around something upstream does.

    Attributes:
        repeatable: Whether `proceed` may be called more than once.
    """

    repeatable: ClassVar[bool] = False


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
class Arguments(Seam):
    """The arguments as the user gave them, before upstream resolves and saves them. New trainings only.

    A patch may set what the user has not given. What is set here is upstream's own argument from then on: it is in
    args.yaml and in the checkpoint, so that a rerun without yolo-patches is the same run.

    Attributes:
        facts: What is known from the arguments; devices are as the user named them.
        defaults: Upstream's value of every argument that the user has not given.
        values: Argument -> value that patches have set.
        trial: Makes some steps and a validation of this training in a process of its own, on the fullest of its
            devices, with some arguments changed and some patches left out; see `batch_search.Footprint`. None where
            this upstream cannot.
        foretold: Whether `doctor` asks: nothing may be trained.
    """

    facts: Facts
    defaults: Mapping[str, Any] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    trial: Callable[[Mapping[str, Any], Sequence[str]], Footprint | None] | None = None
    foretold: bool = False

    def set(self, name: str, value: Any) -> bool:
        """Set an argument, unless the user has given it or this upstream does not know it; return whether it is set."""
        if name in self.facts.given or name not in self.defaults:
            return False
        self.values[name] = value
        return True


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
class Normaliser(Seam):
    """A loss has what it is about to divide by, on every rank: also on those that have nothing to divide.

    It is fired in a step that every rank makes, and nowhere else.

    Attributes:
        values: This rank's normalisers of one loss, as one vector; a patch may replace it by their mean over the ranks.
        ranks: The number of ranks that `values` is the mean of; a fraction where parts are not of one size.
        instead: What a normaliser of the whole batch is taken for where it is zero; 0 where upstream has a floor of its
            own, or divides by zero. A patch may replace it.
    """

    values: Any
    ranks: float = 1
    instead: float = 0.0


@dataclass
class EpochLosses(Seam):
    """An epoch's training losses are about to be logged: the end of the last step, which every rank makes.

    Attributes:
        values: This rank's mean of each loss term, as one vector; a patch may replace it.
    """

    values: Any


@dataclass(frozen=True)
class LossProof:
    """What a probe of the live loss has measured on three synthetic images, one crowded and two sparse.

    Attributes:
        error: Relative difference between the loss of all images and that of three ranks with one image each whose
            normalisers are shared; None where it could not be measured.
        growth: How the loss grows when every image is there twice: 2 where it is multiplied by the batch, 1 where it is
            a mean; None where it could not be measured.
        why: What stood in the way; empty where nothing did.
        apart: The same difference where each rank has its own normalisers: none where there is nothing to share.
    """

    error: float | None
    growth: float | None
    why: str = ""
    apart: float | None = None


def no_probe() -> LossProof:
    """Return the proof of an upstream that has no probe."""
    return LossProof(None, None, "this upstream has no probe of its loss")


@dataclass
class OptimizerChoice(Seam):
    """Upstream is about to choose the optimizer by the length of the run.

    Attributes:
        batch: The global batch.
        images: Training images.
        epochs: Epochs of the run.
        iterations: Optimizer steps that upstream counts; a patch may replace them.
        model: The model, wrapped or not.
        loss: Probes the live loss.
        accumulate: Micro-steps of an optimizer step once upstream is warm.
    """

    batch: int
    images: int
    epochs: int
    iterations: float
    model: Any = None
    loss: Callable[[], LossProof] = no_probe
    accumulate: int = 1


@dataclass
class OptimizerBuilt(Seam):
    """The optimizer stands and no step has been made at this batch; the scheduler reads its groups next.

    Attributes:
        optimizer: A torch optimizer; a patch may change its groups' values.
        batch: The global batch.
        accumulate: Micro-steps that upstream adds up to one optimizer step once it is warm.
        micro_steps: Micro-steps of the whole training; 0 where they are not known.
        fresh: Whether the groups are new; after an out-of-memory retry upstream may keep them and only set the weight
            decay again.
        loss: Probes the live loss.
        nominal: The micro-steps by which it has multiplied the weight decay, also where the run is shorter than
            that; 0: `accumulate`.
    """

    optimizer: Any
    batch: int
    accumulate: int
    micro_steps: int = 0
    fresh: bool = True
    loss: Callable[[], LossProof] = no_probe
    nominal: int = 0


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
        scaler: torch's gradient scaler, None where it is not known.
    """

    optimizer: Any
    scaler: Any = None

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
        per_epoch: Training iterations of an epoch.
        epochs: Epochs of the run.
        images: Training images; 0 where they are not known.
        least: What upstream makes of any shorter warm-up, in iterations; `WarmUpStep` can end it earlier all the same.
        quirks: What this release does with its own arguments here, a sentence each.
        settled: The patch whose user has asked for this length; others leave it alone then.
    """

    iterations: int
    per_epoch: int
    epochs: int
    images: int = 0
    least: int = 0
    quirks: tuple[str, ...] = ()
    settled: str = ""


@dataclass
class Step(Act):
    """The optimizer's step: unscaling, clipping, applying, and the EMA after it; in scripts, applying alone.

    It may be repeated by whoever has put back everything that the failed one has changed, and by nobody else.

    Attributes:
        optimizer: A torch optimizer.
        accumulate: Micro-steps whose gradients it applies; 0 where that cannot be told.
        averaged: Returns the tensors of the EMA.
        holders: Objects whose attributes the step changes: the EMA's counter, the scaler of mixed precision.
    """

    optimizer: Any
    accumulate: int
    averaged: Callable[[], list[Any]] = list
    holders: tuple[Any, ...] = ()


@dataclass
class Validation(Act):
    """A validation in the course of a training, or the one of the best weights at its end.

    `proceed` returns what upstream's own function returns.

    Attributes:
        epoch: Number of the epoch, from 0.
        final: Whether it is the one at the end.
        epochs: Epochs of the training.
        last: Whether the training ends after this epoch: by its number, or because upstream stops early.
        skip: Returns what upstream is to have instead of a validation: figures that are no numbers, and no fitness.
        agreed: Returns the first rank's word for something that ranks may see differently, by the name of what is
            asked. All ranks that validate ask the same; a rank that repeats its validation is told the same again.
        deferral: How it may be made elsewhere (`Deferral`); None where it cannot, and on all ranks but the first.
        model: The module that is validated; None where it is not known.
        together: Whether ranks wait for each other in it.
    """

    repeatable: ClassVar[bool] = True
    epoch: int
    final: bool = False
    epochs: int = 0
    last: bool = False
    skip: Callable[[], Any] = lambda: None
    agreed: Callable[[str, bool], bool] = lambda name, word: word
    deferral: Any = None
    model: Any = None
    together: bool = False


@dataclass
class Save(Act):
    """A checkpoint is about to be written.

    Attributes:
        epoch: Number of the epoch, from 0.
        folder: Where; checkpoints of single epochs are "epoch12.pt" there, from 0. None where that is not known.
    """

    repeatable: ClassVar[bool] = True
    epoch: int
    folder: Path | None = None


@dataclass
class Loading(Act):
    """One pass over the training loader is about to begin; `proceed` returns its iterator.

    Attributes:
        loader: The training loader.
        epoch: Number of the epoch, from 0.
        images: Counts the images of one of its batches.
        tell: Logs a warning, once.
    """

    loader: Any
    epoch: int
    images: Callable[[Any], int] = lambda batch: 0
    tell: Callable[[str], None] = lambda line: None


@dataclass(frozen=True)
class TrainSet:
    """The training set as it is read.

    Attributes:
        images: How many there are.
        augmentation: What its live transforms do, by the names of upstream's arguments. What is not in it cannot be
            seen there.
        polygons: Whether any of its labels has a polygon; None where that is not known.
    """

    images: int
    augmentation: Mapping[str, Any] = field(default_factory=dict)
    polygons: bool | None = None


def no_train_set() -> TrainSet | None:
    """Return the training set of an upstream that does not show it."""
    return None


def unmeasured(change: Callable[[Any], Any]) -> float | None:
    """Return the reaction of an upstream whose loss is not probed."""
    return None


@dataclass
class Live:
    """The live objects of a training, on which patches measure their effect. Not a seam: nothing here may be replaced.

    Attributes:
        validates: Whether this rank validates.
        val_loaders: Every loader that a validation of this rank will read, and None for one that is missing.
        train_loader: The live training loader.
        optimizer: The live optimizer, its scheduler in place.
        model: The live model, wrapped or not.
        normalises: Whether the live loss fires `Normaliser` before it divides.
        loss: Probes the live loss.
        targets: Returns how far, relative to it, the live loss's gradient moves where this function replaces the target
            scores; None where it cannot be measured.
        filled: The gaps of the stack that something stands in for.
        train_set: Reads the training set.
        validations: How many validations upstream has made in the course of this training on this rank; None where
            nobody has counted.
        deferral: How a validation may be made elsewhere (`Deferral`); None where it cannot, and on all ranks but the
            first.
        began: Whether any step has been made.
        best: What upstream holds for the best fitness, and for that of early stopping; None for what is not known.
    """

    validates: bool = True
    val_loaders: tuple[Any, ...] = ()
    train_loader: Any = None
    optimizer: Any = None
    model: Any = None
    normalises: bool = False
    loss: Callable[[], LossProof] = no_probe
    targets: Callable[[Callable[[Any], Any]], float | None] = unmeasured
    filled: frozenset[str] = frozenset()
    train_set: Callable[[], TrainSet | None] = no_train_set
    validations: int | None = None
    deferral: Any = None
    best: tuple[float | None, float | None] = (None, None)
    began: bool = True
