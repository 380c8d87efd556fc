"""auto-batch: the batch that fits whole steps and validations on every rank, where upstream is asked to find one."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from yolo_patches.batch_search import ENOUGH, BatchSearch, Footprint, shared
from yolo_patches.errors import PatchesError
from yolo_patches.facts import Facts
from yolo_patches.patch import Patch
from yolo_patches.plan import Change, Decision
from yolo_patches.seams import Arguments, Live, Seam
from yolo_patches.selection import Option

GIB = 1 << 30
#: Upstream's share of a device's free memory for batch=-1, and what may be taken of it for at least 8 images a rank.
SHARE, MOST = 0.6, 0.9
#: What NCCL takes on a device, by experience: a trial of one rank cannot measure it.
NCCL = GIB // 2
#: Patches that would change what a trial shows: they repeat what does not fit, use other devices, or refuse its batch.
WITHOUT = ("auto-batch", "oom-guard", "accumulate", "async-val", "torchrun", "monitor", "best")
#: A published model's name, its size as a letter: "yolo11x-seg.yaml".
SIZED = re.compile(r"^(yolo[a-z]*\d+)([nsmblx])((?:-[a-z0-9]+)?\.(?:yaml|yml|pt))$")
SIZES = "nsmblx"


class AutoBatch(Patch):
    """Find the largest batch for batch=-1, or a share of memory, by whole steps and validations; several ranks, too.

    Upstream measures forward and backward passes of empty images. The optimizer's state, the average of the weights and
    validations come on top; with several ranks it refuses, and up to 8.0 takes 16. Here trainings are tried, each in a
    process of its own that leaves nothing behind: with 8 images, with 16, and with the batch that these foretell, on
    the device that has the least memory left. The batch is every rank's, and stays below nbs at a divisor of it, so
    that accumulation reaches nbs. A process that does not end is given up, and a trial that fails for another reason
    than memory leaves all to upstream.
    """

    name: ClassVar[str] = "auto-batch"
    summary: ClassVar[str] = "batch=-1 by whole steps and validations, for several ranks, too"
    source: ClassVar[str] = "https://github.com/ultralytics/ultralytics/issues/7642"
    default: ClassVar[bool] = False
    options: ClassVar[Mapping[str, Option]] = {
        "memory": Option(float, "GiB that a rank may take, instead of a share of what is free", minimum=0.1),
    }
    needs: ClassVar[tuple[type[Seam], ...]] = (Arguments,)

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self._batch = 0  # of all ranks
        self._ranks = 1
        self._decision: Decision | None = None
        self._refusal = ""

    def handlers(self) -> Mapping[type[Seam], Callable[[Any], Decision | None]]:
        """Handle the arguments as the user gave them."""
        return {Arguments: self._set}

    def decide(self, facts: Facts) -> Decision:
        """Tell what was found.

        Raises:
            PatchesError: Not one image fits; with what to lower, as far as that was seen to fit.
        """
        if self._refusal:
            raise PatchesError(self._refusal)
        mine = facts.inherited.get(self.name, {})
        if mine.get("status") == "active":
            changes = tuple(Change(**change) for change in mine["changes"])
            self._batch, self._ranks = int(changes[0].patched), facts.world_size
            return Decision("active", mine["reason"], changes)
        return self._decision or Decision(*self._forecast(facts))

    def _forecast(self, facts: Facts) -> tuple[str, str]:
        if facts.batch.size >= 1:
            return "inert", f"batch={facts.batch.size:g} is given"
        if not self._acts(facts):
            return "inert", "upstream has a batch of its own for this device; auto-batch:memory= finds one"
        return "active", "some trainings will be tried, in processes of their own, when the training starts"

    def _acts(self, facts: Facts) -> bool:
        """Return whether memory is measured here: that of the process on a CPU, where a limit was given."""
        kind = facts.devices.kind
        return kind in ("", "cuda") or (kind == "cpu" and self.values["memory"] is not None)

    def _set(self, seam: Arguments) -> None:
        facts, trial = seam.facts, seam.trial
        if facts.batch.size >= 1 or facts.is_resumed or not self._acts(facts):
            return
        if trial is None:
            self._decision = Decision("inert", "trainings cannot be tried here: the batch is upstream's to find")
            return
        if seam.foretold:
            return
        self._ranks = facts.world_size
        search = BatchSearch(
            lambda batch: trial({"batch": batch}, WITHOUT), lambda one: self._room(one, facts.batch.size), self._extra
        )
        found = search.largest()
        if found < ENOUGH and (facts.batch.size == -1 or not found):
            search.room = lambda one: self._room(one, MOST)
            found = search.largest()
        if not found and self.values["memory"] is None and search.seen[1] is not None:
            found = 1  # it has run: no reason to end the training
        if not found:
            self._refusal = self._too_large(facts, trial)
            return
        batch = shared(found, self._ranks, facts.batch.nbs)
        self._batch = batch * self._ranks
        seam.values["batch"] = self._batch  # given as "find one": this is the answer
        self._decision = self._told(facts, search, batch)

    def _room(self, footprint: Footprint, size: float) -> float:
        if self.values["memory"] is not None:
            return float(self.values["memory"] * GIB)
        return footprint.free * (size if 0 < size < 1 else SHARE)

    def _extra(self, footprint: Footprint) -> float:
        """Return what a rank of several takes beside what one does: its buckets of gradients, and NCCL's buffers."""
        return 0.0 if self._ranks == 1 else footprint.weights + NCCL

    def _told(self, facts: Facts, search: BatchSearch, batch: int) -> Decision:
        measured = {one.batch: one for one in search.seen.values() if one is not None}
        tried = ", ".join(f"{size}: {measured[size].taken / GIB:.2f}" for size in sorted(measured))
        self.notes.append(f"GiB of one rank by its batch, in training or validation: {tried}")
        if self._ranks > 1:
            self.notes.append(
                f"{self._ranks} ranks: {self._extra(measured[min(measured)]) / GIB:.2f} GiB a rank were added for "
                "gradient buckets and NCCL, which one rank does not show; the device with the least memory left decided"
            )
        if batch < ENOUGH:
            times = facts.batch.accumulate(self._batch)
            self.notes.append(
                f"{batch} images a rank are few for BatchNorm; upstream adds up {times} batches to "
                f"{times * self._batch}. A lower imgsz or a smaller model fits more"
            )
        per_rank = f" = {batch} on each of {self._ranks} ranks" if self._ranks > 1 else ""
        limit = max(map(search.room, measured.values())) / GIB
        change = Change("batch", facts.batch.size, self._batch)
        return Decision("active", f"tried: {self._batch}{per_rank} fits into {limit:.3g} GiB", (change,))

    def _too_large(self, facts: Facts, trial: Callable[[Mapping[str, Any], Sequence[str]], Footprint | None]) -> str:
        """Return what to say where not one image fits: which smaller image or model was seen to."""
        imgsz = facts.given.values.get("imgsz", 640)
        choices: list[Mapping[str, Any]] = []
        if isinstance(imgsz, int):
            choices += [{"imgsz": max(int(imgsz * share) // 32 * 32, 32)} for share in (0.75, 0.5)]
        sized = SIZED.match(str(facts.given.values.get("model", "")))
        if sized and (place := SIZES.index(sized[2])) > 0:
            choices.append({"model": f"{sized[1]}{SIZES[place - 1]}{sized[3]}"})
        seen = []
        for change in choices:
            (name, value), footprint = next(iter(change.items())), None
            try:
                footprint = trial({"batch": 1, **change}, WITHOUT)
            except PatchesError:  # there is no such model
                continue
            fits = footprint is not None and footprint.taken + self._extra(footprint) <= self._room(footprint, MOST)
            taken = "does not fit either" if footprint is None else f"takes {footprint.taken / GIB:.2f} GiB"
            seen.append(f"{name}={value} {taken}" + ("" if fits or footprint is None else ", too much"))
        return (
            "auto-batch: not even one image a rank fits into memory"
            + (f"; with batch=1, {'; '.join(seen)}" if seen else "")
            + "; lower imgsz, or take a smaller model"
        )

    def verify(self, live: Live) -> bool | None:
        """Compare the live loader with what was found; a loader never holds more than its data set."""
        if not self._batch or live.train_loader is None:
            return None
        return bool(live.train_loader.batch_size == min(self._batch // self._ranks, len(live.train_loader.dataset)))
