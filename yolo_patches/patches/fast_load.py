"""fast-load: more training samples from the same cores, the same to the last bit or to within a rounding."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from yolo_patches.facts import Facts
from yolo_patches.loading_seams import Samples
from yolo_patches.patch import Patch, Phase
from yolo_patches.plan import Change, Decision
from yolo_patches.seams import Live, Seam
from yolo_patches.selection import Option

#: Part -> what is done to less cost, in words.
PARTS = {
    "canvas": "a mosaic painted where it is seen",
    "colours": "colours by arithmetic, in rows",
    "boxes on the mosaic": "objects as plain arrays",
    "objects after the warp": "objects as plain arrays",
    "outlines": "outlines resampled where their points are wanted",
    "shares": "objects as plain arrays",
    "planes": "channels and flips in one pass",
    "blend": "mixup by rows",
    "polygons": "polygons on kept grids",
    "even polygons": "polygons on kept grids",
    "boxes around polygons": "objects as plain arrays",
    "paste": "objects pasted where they lie",
    "masks": "masks where their objects are",
    "separate masks": "masks where their objects are",
    "numbers": "numbers by tables",
}
#: Level -> what its pixels are.
PIXELS = {
    "exact": "the same samples",
    "near": "the same labels, and pixels within 1/255 of upstream's on average,",
    "device": "the same labels, and pixels within 1/255 of upstream's on average,",
}
CHANGES = {
    "exact": Change("samples", "made by upstream's operations", "the same, with less work"),
    "near": Change("samples", "made by upstream's operations", "pixels within 1/255 on average, with less work"),
    "device": Change(
        "samples", "made by upstream's operations", "within 1/255 on average, the last of it on the device"
    ),
}


class FastLoad(Patch):
    """Make training samples with less work, and the same pixels, labels and random numbers.

    Upstream's own code goes on making the decisions and the labels; the operations on pixels and polygons that cost
    most are ours where they have the same results. A few samples of the training set are made both ways before the
    first step, and the first calls of each part in each process; a part that differs, or fails, is upstream's.
    """

    name: ClassVar[str] = "fast-load"
    summary: ClassVar[str] = "the same training samples from fewer cores"
    source: ClassVar[str] = "https://github.com/ultralytics/ultralytics/issues/9843"
    default: ClassVar[bool] = False
    phase: ClassVar[Phase] = Phase.COMPUTE
    options: ClassVar[Mapping[str, Option]] = {
        "level": Option(
            str,
            "exact: every pixel and label is upstream's; near: every label is, pixels are within 1/255 on average; "
            "device: near, with colours, flips and the order of channels done in batches on the training device",
            default="exact",
            choices=("exact", "near", "device"),
        ),
    }
    needs: ClassVar[tuple[type[Seam], ...]] = (Samples,)

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self._ledgers: list[Any] = []
        self._seam: Samples | None = None
        self._finishing: list[Any] = []
        self._device = ""

    def decide(self, facts: Facts) -> Decision:
        """Act on every training set of which anything is known."""
        self._device = facts.devices.kind
        results = "the same" + ("" if self.values["level"] == "exact" else ", or pixels within 1/255 on average")
        return Decision(
            "active",
            f"the parts that cost most are done with less work where the results are {results}",
            (CHANGES[self.values["level"]],),
        )

    def handlers(self) -> Mapping[type[Seam], Callable[[Any], Decision | None]]:
        """Have ways for the parts of each training set."""
        return {Samples: self._samples}

    def verify(self, live: Live) -> bool | None:
        """Return whether every part has had upstream's results, and any has stood in.

        Where workers leave pixels undone, batches that the training was given must have been found as workers make
        them.
        """
        from yolo_patches.loading.part import CALLS

        if self._seam is None or not self._seam.ways:
            return None
        trouble = sorted({line for ledger in self._ledgers for line in ledger.trouble()})
        trouble += [self._seam.trouble] if self._seam.trouble else []
        self.trouble = f"{'; '.join(trouble)}, and is upstream's" if trouble else ""
        self.notes[:] = self._notes(live.began)
        if live.began and any(one.lost for one in self._finishing):
            self.trouble = "loader workers have left pixels undone, and nobody has asked for those batches here"
            return False
        if trouble:
            return False
        if given := [one for one in self._finishing if one.batches]:
            return all(one.trained_on for one in given)
        return any(bool(ledger.counts[:, CALLS].any()) for ledger in self._ledgers) or None

    def _notes(self, began: bool) -> list[str]:
        """Return what else is to be known of level `device`."""
        if self.values["level"] != "device":
            return []
        notes = {f"no pixels are left to the device: {one.why}" for one in self._finishing if one.why}
        if self._seam is not None and self._seam.finishing is None:
            why = self._seam.kept or "this training set, or its batches, are none that we know"
            notes.add(f"no pixels are left to the device: {why}")
        if self._device == "cpu":
            notes.add("the device is this CPU, which gains nothing by what its workers are spared")
        done = sum(one.samples[1] for one in self._finishing)
        if began and done:
            notes.add(f"workers have finished {done} samples: their pipeline does not end as upstream's does")
        return sorted(notes)

    def undo(self) -> bool:
        """Have everything done by upstream again, in all processes."""
        for ledger in self._ledgers:
            ledger.switch(False)
        return True

    def _samples(self, seam: Samples) -> Decision:
        from yolo_patches.loading import (
            blend,
            boxes,
            canvas,
            colours,
            masks,
            near,
            numbers,
            paste,
            planes,
            polygons,
            script_polygons,
        )
        from yolo_patches.loading.finishing import KEPT, LEFT, Finishing
        from yolo_patches.loading.part import Ledger

        self._seam = seam
        if not seam.known:
            return Decision("inert", "this training set is none of upstream's, or has nothing that we know")
        ways: dict[str, Any] = {
            "canvas": canvas.WAYS,
            "colours": colours.WAYS,
            "boxes on the mosaic": boxes.TILED,
            "objects after the warp": boxes.WARPED,
            "shares": boxes.SHARES,
            "outlines": (polygons.stacked,),
            "planes": planes.WAYS,
            "blend": blend.WAYS,
            "polygons": polygons.WAYS,
            "even polygons": script_polygons.WAYS,
            "boxes around polygons": script_polygons.AROUND,
            "paste": paste.WAYS,
            "masks": masks.OVERLAPPING,
            "separate masks": masks.SEPARATE,
            "numbers": numbers.WAYS,
        }
        seam.ways = {name: way for name, way in ways.items() if name in seam.known}
        seam.ledger = Ledger([*seam.ways, LEFT, KEPT])
        self._ledgers.append(seam.ledger)
        done = [words for name, words in PARTS.items() if name in seam.ways]
        level = self.values["level"]
        if level == "device" and LEFT in seam.known:
            seam.finishing = Finishing(seam.ledger)
            self._finishing.append(seam.finishing)
            done.append("colours, flips and channels in batches on the device")
        elif level == "device":
            level = "near"
        if level != "exact" and any(way in near.WAYS for some in seam.ways.values() for way in some):
            seam.near = near.WAYS
        elif level == "near":
            level = "exact"
        self.notes[:] = self._notes(began=False)
        return Decision(
            "active", f"{PIXELS[level]} with less work: {', '.join(dict.fromkeys(done))}", (CHANGES[level],)
        )
