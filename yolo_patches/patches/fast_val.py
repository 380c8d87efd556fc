"""fast-val: the same metrics, at the cost of inference."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from yolo_patches.facts import Facts
from yolo_patches.patch import Patch, Phase
from yolo_patches.plan import Change, Decision
from yolo_patches.seams import Live, Seam
from yolo_patches.selection import Option
from yolo_patches.validation_seams import Evaluation

if TYPE_CHECKING:
    from yolo_patches.validation.kept_batches import KeptBatches
    from yolo_patches.validation.scaled_images import ScaledImages

#: Of the memory that the machine has left, the part that kept images may take by default.
SHARE = 8
#: Calls of a part that are made both ways, and compared, before ours stands in.
COMPARED = 4


class FastVal(Patch):
    """Do what a validation does beside the model as it is needed, with the same results to the last bit.

    - Suppression stops when the boxes that upstream reads are found: it is greedy, so that the best ones decide.
    - Predictions are matched to objects in one pass; on an accelerator after one copy a batch, not seven an image.
    - Images are scaled into memory that is used again.
    - Images that are the same in every pass, decoded and letterboxed, are kept while they fit into `memory`.
    - No image is dropped because suppression has taken too long.

    The first calls of each part are made both ways and compared; a part whose results differ stays upstream's.
    """

    name: ClassVar[str] = "fast-val"
    summary: ClassVar[str] = "the same validation metrics at the cost of inference"
    source: ClassVar[str] = "https://github.com/ultralytics/ultralytics/issues/19417"
    default: ClassVar[bool] = False
    phase: ClassVar[Phase] = Phase.COMPUTE
    options: ClassVar[Mapping[str, Option]] = {
        "memory": Option(float, "GiB a rank that kept images may take; 0 keeps none", minimum=0),
        "loss": Option(bool, "evaluate the loss, too; without it its columns say nan", default=True),
        "allocator": Option(bool, "let glibc keep freed memory, in the whole process and for good", default=False),
    }
    needs: ClassVar[tuple[type[Seam], ...]] = (Evaluation,)

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self._ranks = 1
        self._kept: KeptBatches | None = None
        self._scale: ScaledImages | None = None
        self._match: Callable[[Any, Any], Any] | None = None
        self._changes: tuple[Change, ...] = ()
        self._trusted: Mapping[str, bool] = {}
        self._parts: dict[str, _Compared] = {}

    def decide(self, facts: Facts) -> Decision:
        """Act on every validation; say what the options change beside its time."""
        launcher = facts.devices.launcher
        self._ranks = (launcher.local_world_size if launcher else None) or facts.world_size
        changes = []
        if not self.values["loss"]:
            changes.append(Change("validation losses", "computed", "nan"))
        if self.values["allocator"]:
            from yolo_patches.validation import allocator

            if allocator.available():
                changes.append(Change("freed memory", "goes back to the kernel", "stays in the process"))
            else:
                self.notes.append("allocator=true changes nothing: this is not glibc")
        self._changes = tuple(changes)
        return self._decision()

    def _decision(self) -> Decision:
        reason = "the same metrics; of each image, only what they need is computed"
        if self._kept is not None and (self._kept.complete or self._kept.why):
            size = f"{self._kept.size / 2**20:,.0f} MiB of images are kept"
            reason += f"; {size}" if self._kept.complete else f"; no images are kept: {self._kept.why}"
        return Decision("active", reason, self._changes)

    def handlers(self) -> Mapping[type[Seam], Callable[[Any], Decision | None]]:
        """Replace the parts of each validation."""
        return {Evaluation: self._evaluate}

    def prove(self, live: Live) -> str:
        """Tell the allocator, before the first step takes memory."""
        if self.values["allocator"]:
            from yolo_patches.validation import allocator

            if allocator.available() and not allocator.keep_memory():
                self.notes.append("glibc has not taken the allocator's settings")
        return ""

    def verify(self, live: Live) -> bool | None:
        """Return whether every part that stands in has had upstream's results where both were made."""
        different = [name for name, part in self._parts.items() if part.differs]
        different += [name for name, equal in self._trusted.items() if not equal]
        self.trouble = (
            f"{', '.join(different)} had other results than upstream's, and is upstream's" if different else ""
        )
        return not different if different or any(part.equal for part in self._parts.values()) else None

    def _evaluate(self, seam: Evaluation) -> Decision:
        if seam.suppress is not None and seam.nms is not None:
            seam.suppress = self._suppression(seam.suppress, seam.nms)
        if seam.nms is not None:
            seam.nms = self._nms(seam.nms, seam.limit)
            seam.patient = True
        if seam.match is not None:
            seam.match = self._matching(seam.match)
        if seam.scale is not None:
            seam.scale = self._scaling()
        self._trusted = seam.trusted
        seam.metrics_on_cpu = not seam.on_cpu
        seam.timed = False
        seam.loss = seam.loss and self.values["loss"]
        if seam.unchanging:
            seam.passing = self._keeping(seam)
        parts: tuple[object, ...] = (seam.nms, seam.match, seam.scale)
        if all(part is None for part in parts) and not seam.unchanging and self.values["loss"]:
            return Decision("inert", "this validation has no part that can be done at less cost")
        return self._decision()

    def _suppression(self, upstream: Callable[..., Any], nms: Callable[..., Any]) -> Callable[..., Any]:
        from yolo_patches.validation import suppression

        def alike(ours: Any, theirs: Any) -> bool:
            return len(ours) == len(theirs) and all(one.equal(other) for one, other in zip(ours, theirs))

        part = self._parts.setdefault("suppression of a batch", _Compared())
        return part.of(upstream, lambda predictions, how: suppression.suppress(nms, predictions, how), alike)

    def _nms(self, upstream: Callable[..., Any], limit: Callable[[], int]) -> Callable[..., Any]:
        from yolo_patches.validation import suppression

        def alike(ours: Any, theirs: Any) -> bool:
            return bool(ours[: limit()].equal(theirs[: limit()]))

        part = self._parts.setdefault("suppression of an image", _Compared())
        return part.of(upstream, suppression.stand_in(upstream, limit), alike)

    def _matching(self, upstream: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        """Return the way of matching that gives what this release's gives, or upstream's where none does."""
        from yolo_patches.validation import matching

        part = self._parts.setdefault("matching", _Compared())
        if self._match is None:
            way = matching.like(upstream)
            self._match, part.differs = way or upstream, way is None
        return part.of(upstream, self._match, lambda ours, theirs: bool((ours == theirs).all()))

    def _scaling(self) -> Callable[[Any], Any]:
        from yolo_patches.validation.scaled_images import ScaledImages

        self._scale = scale = self._scale or ScaledImages()
        return scale

    def _keeping(self, seam: Evaluation) -> Callable[[Any], Iterator[Any]]:
        from yolo_patches.validation import host_memory
        from yolo_patches.validation.kept_batches import KeptBatches

        if self._kept is None:
            given = self.values["memory"]
            limit = host_memory.available() / SHARE / self._ranks if given is None else given * 2**30
            self._kept = KeptBatches(int(limit), seam.images, seam.page_locked)
        return self._kept.passing


class _Compared:
    """A part of ours, whose first calls are made both ways.

    Attributes:
        equal: Calls that have been compared and had one result.
        differs: Whether one had not; the part is upstream's from then on.
    """

    def __init__(self) -> None:
        self.equal = 0
        self.differs = False

    def of(
        self, upstream: Callable[..., Any], ours: Callable[..., Any], alike: Callable[[Any, Any], bool]
    ) -> Callable[..., Any]:
        """Return the function to call."""

        def call(*args: Any, **kwargs: Any) -> Any:
            if self.differs:
                return upstream(*args, **kwargs)
            made = ours(*args, **kwargs)
            if made is None or self.equal >= COMPARED:
                return made
            theirs = upstream(*args, **kwargs)
            self.differs = not alike(made, theirs)
            self.equal += not self.differs
            return theirs

        return call
