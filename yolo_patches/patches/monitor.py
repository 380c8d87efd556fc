"""monitor: what a run does, epoch by epoch, in patches.csv, patches.png and upstream's loggers."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any, ClassVar

from yolo_patches import report
from yolo_patches.agreement import leave, left
from yolo_patches.facts import Facts
from yolo_patches.monitoring import chart
from yolo_patches.monitoring.clock import Clock
from yolo_patches.monitoring.memory import DeviceMemory, of_host
from yolo_patches.monitoring.verdicts import Circumstances, Verdicts
from yolo_patches.observation_seams import Clip, EpochEnd
from yolo_patches.patch import Patch, Phase
from yolo_patches.plan import Decision
from yolo_patches.seams import Act, Live, Loading, OptimizerStep, Seam, Validation
from yolo_patches.selection import Option

#: How long the first rank waits for the figures of the others at the end of an epoch: they have trained as long as it.
PATIENCE = timedelta(seconds=5)
#: Share of the run's time that drawing may take.
DRAWING = 0.01
#: Counts the monitored trainings of this process, on every rank alike.
_trainings = itertools.count()


class Monitor(Patch):
    """Measure every epoch: gradients, steps, time, memory, and whether the ranks train the same.

    Users find out after days: that the best epoch was the 9th of 309
    (https://github.com/ultralytics/ultralytics/issues/21123), that devices starve
    (https://github.com/ultralytics/ultralytics/issues/9843).

    Nothing is changed, no random number is drawn, and no rank waits for another. On a device nothing is read before the
    end of an epoch, where upstream waits for it anyway.
    """

    name: ClassVar[str] = "monitor"
    summary: ClassVar[str] = (
        "gradients, steps, time, memory and ranks of every epoch: patches.csv, patches.png, loggers"
    )
    source: ClassVar[str] = "https://github.com/ultralytics/ultralytics/issues/21123"
    default: ClassVar[bool] = False
    phase: ClassVar[Phase] = Phase.OBSERVE
    options: ClassVar[Mapping[str, Option]] = {
        "plot": Option(bool, "draw patches.png; where it is not given, as upstream draws its plots"),
        "verdicts": Option(bool, "say what the figures say must be changed, three lines a run at most", default=True),
    }
    needs: ClassVar[tuple[type[Seam], ...]] = (Loading, EpochEnd)

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self._clock = Clock()
        self._verdicts = Verdicts()
        self._name = ""
        self._epochs = 0
        self._ranks = self._on_node = 1
        self._model: Any = None
        self._memory = DeviceMemory(None)
        self._peaks: dict[str, float] = {}
        self._workers = 0
        self._trouble: Exception | None = None
        self._loaded: set[int] = set()  # epochs that have begun
        self._filed: set[int] = set()  # and those that have their row
        self._silent = False  # a rank has not told of its epoch
        self._started = time.monotonic()
        self._drawings, self._drawn = 0, 0.0  # number, seconds
        self._plots = bool(self.values["plot"])
        self._undrawn: tuple[Path, Mapping[int, Mapping[str, float]]] | None = None

    def decide(self, facts: Facts) -> Decision:
        """Return that every epoch is measured."""
        self._epochs = facts.optimization.epochs
        self._ranks = facts.world_size
        self._on_node = facts.devices.on_node
        if self.values["plot"] is None:
            given = facts.given.values
            self._plots = str(given.get("plots", True)).lower() != "false" and not given.get("noplots")
        return Decision("active", "a row an epoch in patches.csv" + ", drawn in patches.png" * self._plots)

    def prove(self, live: Live) -> str:
        """Take the live model, whose memory and parameters are looked at."""
        from yolo_patches.monitoring.steps import Steps

        self._steps = Steps()
        self._model = getattr(live.model, "module", live.model)
        self._memory = DeviceMemory(next((p.device for p in self._model.parameters()), None))
        self._name = f"monitor/{next(_trainings)}"
        return ""

    def handlers(self) -> Mapping[type[Seam], Callable[[Any], None]]:
        """Say where this patch acts."""
        return {OptimizerStep: self._step, Clip: self._clip, EpochEnd: self._end}

    def around(self) -> Mapping[type[Act], Callable[[Any, Callable[[], Any]], Any]]:
        """Say around what this patch stands."""
        return {Loading: self._load, Validation: self._validate}

    def _step(self, seam: OptimizerStep) -> None:
        self._steps.announce(seam.optimizer, seam.scaler)

    def _clip(self, seam: Clip) -> None:
        self._steps.clip(seam.norm, seam.limit)

    def _load(self, act: Loading, proceed: Callable[[], Any]) -> Any:
        self._loaded.add(act.epoch)
        self._workers = int(getattr(act.loader, "num_workers", 0))
        self._memory.peak()
        self._clock.clear()  # of a pass that was given up
        return self._pass(act, iter(proceed()))

    def _pass(self, act: Loading, batches: Iterator[Any]) -> Iterator[Any]:
        """Follow a pass. Upstream's loop is around it, and no error of ours may reach that."""

        def images(batch: Any) -> int:
            try:
                return act.images(batch)
            except Exception as error:
                self._trouble = error
                return 0

        yield from self._clock.follow(batches, images)
        try:
            self._trained(act.epoch)
        except Exception as error:
            self._trouble = error

    def _trained(self, epoch: int) -> None:
        """Note what is to be seen when the last step of an epoch has been made, and tell the first rank."""
        self._note("train", self._memory.peak())
        if self._ranks > 1:
            from yolo_patches.monitoring.ranks import Report, statistics, weights
            from yolo_patches.nn import waits

            self._own = Report(
                sum(self._clock.waits),
                median(self._clock.steps or [0.0]),
                of_host(),
                weights(self._model),
                statistics(self._model),
                self._peaks.get("train", 0.0),
                waits.longest(),
            )
            leave(f"{self._name}/{epoch}", self._own.text())

    def _validate(self, act: Validation, proceed: Callable[[], Any]) -> Any:
        if act.final:
            return proceed()
        self._memory.peak()
        result = self._clock.validate(proceed)
        self._note("val", self._memory.peak())
        return result

    def _note(self, what: str, peak: float | None) -> None:
        if peak is not None:
            self._peaks[what] = peak

    def _end(self, seam: EpochEnd) -> None:
        """File an epoch's row."""
        if self._trouble is not None:
            raise self._trouble
        images = self._clock.images * self._ranks
        row = {**self._clock.row(self._ranks), **self._steps.row(images)}
        row.update({f"memory/{name}_gib": peak for name, peak in self._peaks.items()})
        if self._ranks > 1:
            row.update(self._compare(seam, row["time/epoch_s"]))
        else:
            row["memory/host_gib"] = of_host()
        self._peaks = {}
        seam.columns.update(row)
        self._filed.add(seam.epoch)
        # In the first epoch everything is read and compiled for once.
        if self.values["verdicts"] and len(self._filed) > 1:
            from yolo_patches.nn.sync_batchnorm import synchronised_passes

            about = Circumstances(self._workers, self._on_node, synchronised_passes() > 0)
            for line in self._verdicts.of(row, about):
                seam.tell(f"monitor: {line}")
        if self._plots:
            self._undrawn = (seam.directory, seam.rows)
            seam.then.append(self._draw_in_time)

    def _compare(self, seam: EpochEnd, seconds: float) -> dict[str, float]:
        from yolo_patches.monitoring.ranks import Report, row

        patience = timedelta() if self._silent else PATIENCE
        texts = left(f"{self._name}/{seam.epoch}", patience)
        self._silent = len(texts) < self._ranks - 1
        reports = {0: self._own, **{rank: Report.read(text) for rank, text in texts.items()}}
        compared = row(reports, seconds)
        compared["memory/host_gib"] = sum(report.memory for report in reports.values())
        if any(report.peak for report in reports.values()):
            compared["memory/train_gib"] = max(report.peak for report in reports.values())
        return compared

    def _draw_in_time(self) -> None:
        """Draw, unless drawing would take more than its share of the run's time."""
        began = time.monotonic()
        once = self._drawn / max(self._drawings, 1)
        last = max(self._filed) + 1 >= self._epochs
        if self._drawings and not last and self._drawn + once > DRAWING * (began - self._started):
            return
        self._draw()

    def _draw(self) -> None:
        if self._undrawn is None:
            return
        (directory, rows), self._undrawn = self._undrawn, None
        began = time.monotonic()
        report.replace(directory / chart.FILE_NAME, chart.draw(rows))
        self._drawn += time.monotonic() - began
        self._drawings += 1

    def verify(self, live: Live) -> bool | None:
        """Return whether every epoch has its row, and every step's gradient was seen when it was clipped."""
        if not self._filed:
            return None
        if self._steps.announced > self._steps.clipped:
            self.trouble = f"of {self._steps.announced} steps {self._steps.clipped} were seen to be clipped"
            return False
        return self._filed == self._loaded

    def close(self) -> None:
        """Let go of the optimizer, and draw what has not been drawn."""
        if self._model is not None:
            self._steps.close()
            self._model = None
            self._draw()
