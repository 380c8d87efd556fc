"""Checks of the batch, the optimizer and the schedule."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Optional

from yolo_patches.doctor.finding import INFO, WARNING, Finding
from yolo_patches.doctor.subject import Subject

#: Below so many images a rank, BatchNorm's statistics cost accuracy.
FEW = 8
GROUP_NORM = "https://arxiv.org/abs/1803.08494"
CFG = "https://docs.ultralytics.com/usage/cfg/#train-settings"
#: The learning rate at which published models start from random weights with SGD, and a tenth of it for Adam's family.
FROM_SCRATCH = {"sgd": 0.01, "musgd": 0.01, "rmsprop": 0.01}
ADAM = 0.001
LONGEST_WARMUP = 0.2
#: A resolution below which a smaller model is the better change.
SMALLEST = 320


def small_batch(subject: Subject) -> Iterator[Finding]:
    """Few images a rank, and no synchronised statistics."""
    ranks, per_rank = subject.facts.world_size, subject.per_rank
    if not 0 < per_rank < FEW:
        return
    shared = subject.active("sync-bn") or subject.facts.model.own_sync_bn
    if shared and subject.batch >= FEW:
        return
    way = subject.change("batch", FEW * ranks)
    if ranks > 1 and subject.batch >= FEW:
        way = f"{subject.change('patches', 'sync-bn')}, or {way}"
    yield Finding(
        "small-batch",
        WARNING,
        f"{per_rank} image{'s' * (per_rank > 1)} a rank (batch {subject.batch} on {ranks})",
        f"BatchNorm takes its statistics over fewer than {FEW} images, and its error grows quickly there.",
        way,
        GROUP_NORM,
    )


def memory_order(subject: Subject) -> Iterator[Finding]:
    """Where memory seems short: which of batch, resolution and model gives way first."""
    imgsz, stride, per_rank = subject.settings.imgsz, subject.settings.stride, subject.per_rank
    if not 0 < per_rank < FEW or not imgsz or not stride:
        return
    smaller = max(math.floor(imgsz * math.sqrt(per_rank / FEW) / stride), 1) * stride
    batch = subject.change("batch", FEW * subject.facts.world_size)
    fits = f"{batch} with {subject.change('imgsz', smaller)}"
    yield Finding(
        "memory-order",
        INFO,
        f"{per_rank} a rank at {imgsz} px",
        f"If memory is the reason: first a batch of {FEW} a rank, then the resolution, then the model; activations take"
        f" memory by batch x imgsz², so {FEW} images at {smaller} px take what {per_rank} take now.",
        fits if smaller >= SMALLEST else f"{batch}, and a smaller model rather than {smaller} px",
        GROUP_NORM,
    )


def accumulation(subject: Subject) -> Iterator[Finding]:
    """Steps that add up to less than the nominal batch, which weight decay is meant for."""
    batch, nbs = subject.batch, subject.facts.batch.nbs
    if not batch or batch >= nbs:
        return
    times = subject.facts.batch.accumulate(batch)
    if batch * times < nbs and not subject.active("linear-lr"):
        yield Finding(
            "accumulation",
            WARNING,
            f"{batch} x {times} = {batch * times} images a step, nbs is {nbs}",
            f"Accumulation is rounded and misses nbs: weight decay is {batch * times / nbs:.2f} of what is set.",
            subject.change("batch", _reaching(subject)),
            CFG,
        )
    images = subject.images
    epoch = None if images is None else math.ceil(images / batch)
    if epoch is not None and epoch < times:
        yield Finding(
            "accumulation",
            WARNING,
            f"{epoch} batch{'es' * (epoch > 1)} an epoch, {times} make a step",
            "An epoch ends before one optimizer step is full: some epochs change nothing.",
            subject.change("nbs", max(batch * epoch, 1)),
            CFG,
        )


def _reaching(subject: Subject) -> int:
    """Return the largest batch, no larger than this one, whose accumulated steps reach nbs."""
    batch, ranks = subject.facts.batch, subject.facts.world_size
    fitting = range(subject.batch // ranks * ranks, 0, -ranks)
    return next((size for size in fitting if size * batch.accumulate(size) >= batch.nbs), ranks)


def auto_optimizer(subject: Subject) -> Iterator[Finding]:
    """`optimizer=auto` throws away what was given, or takes another optimizer at another batch."""
    settings, facts = subject.settings, subject.facts
    if facts.optimization.optimizer.lower() != "auto" or settings.auto_steps is None:
        return
    ignored = [name for name in settings.auto_ignores if name in facts.given]
    if ignored:
        given = ", ".join(f"{name}={facts.given.values[name]}" for name in ignored)
        yield Finding(
            "auto-ignores",
            WARNING,
            f"optimizer=auto with {given}",
            "Upstream's auto chooses the learning rate and the momentum itself: what was given is thrown away.",
            f"{subject.change('optimizer', 'AdamW')} (or another one by name)",
            CFG,
        )
    steps = _steps(subject, subject.batch)
    if steps is None or subject.active("linear-lr"):
        return
    for factor, word in ((0.5, "half"), (2, "twice")):
        other = _steps(subject, int(subject.batch * factor))
        if other is not None and (steps > settings.auto_steps) != (other > settings.auto_steps):
            yield Finding(
                "auto-flips",
                WARNING,
                f"{steps} steps at batch {subject.batch}, {other} at {word} the batch; auto changes over at"
                f" {settings.auto_steps}",
                "Upstream's auto would take another optimizer and learning rate if the batch changed.",
                f"{subject.change('optimizer', 'SGD' if steps > settings.auto_steps else 'AdamW')}, or"
                f" {subject.change('patches', 'linear-lr')}",
                CFG,
            )
            return


def _steps(subject: Subject, batch: int) -> Optional[int]:
    """Return the optimizer steps of the run as upstream's auto counts them."""
    images = subject.images
    if not images or batch < 1:
        return None
    return math.ceil(images / max(batch, subject.facts.batch.nbs)) * subject.facts.optimization.epochs


def fine_tuning(subject: Subject) -> Iterator[Finding]:
    """Weights to start from, and a learning rate for random ones."""
    chosen = subject.facts.optimization
    if subject.facts.model.scratch or subject.facts.is_resumed or chosen.optimizer.lower() == "auto":
        return
    limit = FROM_SCRATCH.get(chosen.optimizer.lower(), ADAM)
    if chosen.lr0 >= limit:
        yield Finding(
            "finetune-lr",
            WARNING,
            f"{chosen.optimizer}, lr0 {chosen.lr0:g}, starting from trained weights",
            f"From {limit:g} on it is a rate for random weights; fine-tuning on similar images wants less of it.",
            subject.change("lr0", limit / 10),
            "https://arxiv.org/abs/2002.11770",
        )


def warm_up(subject: Subject) -> Iterator[Finding]:
    """A warm-up that is a large part of the run, or no epoch long."""
    settings, chosen = subject.settings, subject.facts.optimization
    if settings.warmup is None or subject.facts.is_resumed or subject.active("warmup"):
        return
    images = subject.images
    batches = math.ceil(images / subject.batch) if images and subject.batch else None
    length = chosen.warmup_epochs if batches is None else settings.warmup(batches) / batches
    share = length / chosen.epochs
    if share > LONGEST_WARMUP:
        yield Finding(
            "long-warm-up",
            WARNING,
            f"{length:.3g} of {chosen.epochs} epochs ({share:.0%})",
            f"More than {LONGEST_WARMUP:.0%} of the run is below its learning rate (Goyal et al.: 5 of 90 epochs).",
            subject.change("warmup_epochs", _tidy(chosen.epochs * 0.1))
            if length <= chosen.warmup_epochs + 1e-9
            else f"{subject.change('epochs', math.ceil(length / 0.1))} (upstream warms up for 100 steps at least)",
            "https://arxiv.org/abs/1706.02677",
        )
    elif length < 1 and share <= LONGEST_WARMUP / 2:
        yield Finding(
            "short-warm-up",
            WARNING,
            f"{length:.3g} of an epoch",
            "The learning rate is at its height before every image has been seen once.",
            subject.change("warmup_epochs", _tidy(min(3.0, max(1.0, chosen.epochs * 0.05)))),
            "https://arxiv.org/abs/1706.02677",
        )


def _tidy(epochs: float) -> float:
    return round(epochs, 1)


def close_mosaic(subject: Subject) -> Iterator[Finding]:
    """Mosaic left off for longer than the run."""
    last, epochs = subject.settings.close_mosaic, subject.facts.optimization.epochs
    if last and last >= epochs and subject.settings.mosaic:
        yield Finding(
            "close-mosaic",
            WARNING,
            f"close_mosaic {last}, epochs {epochs}",
            "Mosaic is off from the first epoch on, or in older releases never left off at the end.",
            subject.change("close_mosaic", epochs // 10),
            CFG,
        )


def patience(subject: Subject) -> Iterator[Finding]:
    """Early stopping without anything to judge by."""
    given = subject.facts.given
    epochs = subject.facts.optimization.patience
    if not subject.facts.validates and epochs and "patience" in given:
        yield Finding(
            "patience-unjudged",
            WARNING,
            f"patience {epochs} without validation",
            "Without validation between epochs there is no figure that could stop the run.",
            subject.change("val", True),
            CFG,
        )
