"""best: judge weights by more than one noisy epoch."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar

from yolo_patches.errors import PatchesError, nearest
from yolo_patches.facts import Facts
from yolo_patches.patch import Patch, Phase
from yolo_patches.plan import Change, Decision
from yolo_patches.seams import Act, Arguments, Live, Save, Seam
from yolo_patches.selection import Option
from yolo_patches.validation_seams import Judged

#: Columns of patches.csv.
FITNESS, SMOOTHED = "best/fitness", "best/smoothed"
#: Upstream's checkpoints of single epochs.
CHECKPOINT = re.compile(r"epoch(\d+)\.pt")


class Best(Patch):
    """Stop by a mean over epochs, and say what best is.

    One validation is noisy: a run of 309 epochs was told that its 9th was best
    (https://github.com/ultralytics/ultralytics/issues/21123). Early stopping is given the mean of the last validations;
    best.pt still holds the weights of the best single one, because a mean is that of no weights, unless `best_pt` says
    otherwise.
    """

    name: ClassVar[str] = "best"
    summary: ClassVar[str] = "stop by a mean over epochs; which metric, and which epochs, make best.pt"
    source: ClassVar[str] = "https://github.com/ultralytics/ultralytics/issues/21123"
    default: ClassVar[bool] = False
    phase: ClassVar[Phase] = Phase.SCHEDULE
    options: ClassVar[Mapping[str, Option]] = {
        "smooth": Option(int, "early stopping takes the mean of the last K validations", default=1, minimum=1),
        "best_pt": Option(bool, "best.pt goes by that mean, too", default=False),
        "metric": Option(str, "what is judged, e.g. mAP50 or mAP50*0.3+recall*0.7"),
        "skip": Option(int, "the first K epochs are never best", default=0, minimum=0),
        "keep": Option(int, "of the checkpoints of single epochs, keep the K best and the last", minimum=1),
    }
    needs: ClassVar[tuple[type[Seam], ...]] = (Judged,)

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self._terms: Mapping[str, float] = {}
        self._values: dict[int, float] = {}
        self._given: list[tuple[float, float]] = []
        self._recalled = False

    def decide(self, facts: Facts) -> Decision:
        """Read the options.

        Raises:
            PatchesError: An option does not fit the run, or names a metric that the task has not.
        """
        smooth, skip, metric, keep = (self.values[name] for name in ("smooth", "skip", "metric", "keep"))
        if smooth == 1 and not skip and not metric and not keep:
            return Decision("inert", "upstream judges each epoch alone; best:smooth=5 stops by a mean of five")
        epochs = math.inf if facts.optimization.hours else facts.optimization.epochs
        for name, value in (("smooth", smooth), ("skip", skip + 1 if skip else 0)):
            if value > epochs:
                raise PatchesError(
                    f"best:{name}={self.values[name]} is as long as the run of {epochs} epochs, or longer; give less"
                )
        if metric:
            self._terms = _terms(metric, facts.metrics)
        if not facts.validates:
            return Decision("inert", "upstream has been told to validate the last epoch alone")
        said = {
            "early stopping": ("each validation", f"mean of {smooth}" if smooth > 1 else ""),
            "best.pt": ("each validation", f"mean of {smooth}" if smooth > 1 and self.values["best_pt"] else ""),
            "fitness": ("upstream's", metric or ""),
            "first epoch that may be best": (1, skip + 1 if skip else ""),
            "checkpoints of single epochs": ("all", f"the {keep} best and the last" if keep else ""),
        }
        changes = tuple(Change(what, *values) for what, values in said.items() if values[1])
        return Decision("active", "each epoch's fitness and its mean are in patches.csv", changes)

    def handlers(self) -> Mapping[type[Seam], Callable[[Any], Decision | None]]:
        """Judge each validation; have checkpoints of single epochs written where some are to be kept."""
        return {Judged: self._judge, Arguments: self._set}

    def around(self) -> Mapping[type[Act], Callable[[Any, Callable[[], Any]], Any]]:
        """Prune after each checkpoint."""
        return {Save: self._save}

    def verify(self, live: Live) -> bool | None:
        """Compare what upstream holds for the best with the best that was given to it."""
        wanted = [max(column) for column in zip(*self._given)]
        known = [(mine, theirs) for mine, theirs in zip(wanted, live.best) if theirs is not None]
        self.trouble = f"upstream holds {live.best} for the best, not {tuple(wanted)}"
        return all(math.isclose(mine, theirs, rel_tol=1e-6) for mine, theirs in known) if known else None

    def _set(self, seam: Arguments) -> None:
        if self.values["keep"] and seam.set("save_period", 1):
            self.notes.append("save_period=1: there must be checkpoints of single epochs to keep some of them")

    def _judge(self, seam: Judged) -> None:
        raw = sum(weight * seam.metrics[name] for name, weight in self._terms.items()) if self._terms else seam.fitness
        if not math.isfinite(raw):  # it is upstream's to recover from
            return
        self._recall(seam)
        self._values[seam.epoch] = raw
        mean = self._mean(seam.epoch)
        seam.columns.update({FITNESS: raw, SMOOTHED: mean})
        seam.fitness = mean if self.values["best_pt"] else raw
        seam.eligible = seam.epoch >= self.values["skip"]
        seam.stopping = mean if seam.eligible else 0.0  # upstream counts from the last epoch of no fitness
        if seam.eligible:
            self._given.append((seam.fitness, seam.stopping))

    def _recall(self, seam: Judged) -> None:
        """Take up what a resumed run has seen before."""
        if self._recalled:
            return
        self._recalled = True
        self._values = {epoch: row[FITNESS] for epoch, row in seam.past.items() if FITNESS in row}
        means = {epoch: self._mean(epoch) for epoch in self._values if epoch >= self.values["skip"]}
        if means:
            best = max(means, key=lambda epoch: (means[epoch], epoch))
            seam.recalled = (means[best], best)
            raws = means if self.values["best_pt"] else {epoch: self._values[epoch] for epoch in means}
            self._given = [(max(raws.values()), means[best])]

    def _mean(self, epoch: int) -> float:
        seen = [self._values[one] for one in sorted(self._values) if one <= epoch]
        return fmean(seen[-self.values["smooth"] :])

    def _save(self, act: Save, proceed: Callable[[], Any]) -> Any:
        result = proceed()
        if self.values["keep"] and act.folder is not None:
            try:
                self._prune(act.folder)
            except OSError as error:  # what cannot be deleted stays
                self.notes.append(f"{error.filename} cannot be deleted: {error.strerror}")
        return result

    def _prune(self, folder: Path) -> None:
        """Delete checkpoints of this run's own epochs, by what they were judged at that time."""
        files = {}
        for file in folder.iterdir():
            found = CHECKPOINT.fullmatch(file.name)
            if found and int(found[1]) in self._values:
                files[int(found[1])] = file
        judged = {epoch: self._mean(epoch) if self.values["best_pt"] else self._values[epoch] for epoch in files}
        kept = sorted(files, key=lambda epoch: (judged[epoch], epoch), reverse=True)[: self.values["keep"]]
        for epoch in files.keys() - {*kept, max(files, default=-1)}:
            files[epoch].unlink()


def _terms(text: str, known: tuple[str, ...]) -> Mapping[str, float]:
    """Return the weight of each metric in a sum such as "mAP50*0.3+recall*0.7".

    A name without its kind, as "mAP50" of "mAP50(B)" and "mAP50(M)", is the sum over the kinds, as upstream adds them.

    Raises:
        PatchesError: It is no such sum, or the task has no such metric.
    """
    found: dict[str, float] = {}
    for term in text.split("+"):
        name, _, weight = (part.strip() for part in term.partition("*"))
        names = [one for one in known if name in (one, one.partition("(")[0])]
        try:
            value = float(weight or 1)
        except ValueError:
            value = math.nan
        if not names or not math.isfinite(value):
            raise PatchesError(
                f"best:metric={text}: {term.strip()!r} is not a metric, or a metric times a number"
                f"{nearest(name, known)}; this task has {', '.join(known) or 'none that are known'}"
            )
        for one in names:
            found[one] = found.get(one, 0.0) + value
    return found
