"""shared-cache: images that are kept in host memory are there once a machine, not once a rank."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar

from yolo_patches import agreement
from yolo_patches.caching_seams import CacheRoom, ImageCache
from yolo_patches.facts import Facts
from yolo_patches.patch import Patch, Phase
from yolo_patches.plan import Change, Decision
from yolo_patches.seams import Act, Live, Seam

if TYPE_CHECKING:
    from yolo_patches.loading.shared_images import SharedImages

GIB = 1 << 30
#: How much later the first rank of a machine may come to a data set than the others.
BEHIND = timedelta(minutes=2)
#: How long it may take to decode one.
DECODES = timedelta(hours=2)
FITS, TOO_LARGE = "fits", "too large"


class SharedCache(Patch):
    """Keep the decoded images of `cache=ram` once a machine.

    Upstream's ranks each decode all images and keep them. Here the first rank of each machine lets upstream decode
    them into memory that the others map; they read, and write nothing. Ranks come to a data set one after another
    anyway, the first one first; a rank that waits in vain decodes for itself.
    """

    name: ClassVar[str] = "shared-cache"
    summary: ClassVar[str] = "cache=ram once a machine, not once a rank"
    source: ClassVar[str] = "https://github.com/ultralytics/ultralytics/issues/22307"
    default: ClassVar[bool] = False
    needs: ClassVar[tuple[type[Seam], ...]] = (CacheRoom, ImageCache)
    phase: ClassVar[Phase] = Phase.COMPUTE

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self._first = self._ranks = 0
        self._joined: set[str] = set()  # data sets for which the machine's first rank has been heard
        self._shared: list[tuple[SharedImages, ImageCache]] = []

    def decide(self, facts: Facts) -> Decision:
        """Act where several ranks of a machine keep images in memory."""
        from yolo_patches.loading.shared_images import why_not

        ranks, launcher = facts.devices.on_node, facts.devices.launcher
        if str(facts.given.values.get("cache")).lower() not in ("ram", "true"):
            return Decision("inert", "images are not kept in memory: that is cache=ram")
        if ranks == 1:
            return Decision("inert", "one rank a machine keeps its images once")
        if why := why_not():
            return Decision("inert", why)
        self._first = launcher.rank - launcher.local_rank if launcher else 0
        self._ranks = ranks
        change = Change("copies of the images in a machine's memory", ranks, 1)
        return Decision("active", f"{ranks} ranks read the images that one of them has decoded", (change,))

    def handlers(self) -> Mapping[type[Seam], Callable[[Any], Decision | None]]:
        """Have one judgement of whether the images fit."""
        return {CacheRoom: self._room}

    def around(self) -> Mapping[type[Act], Callable[[Any, Callable[[], Any]], Any]]:
        """Decode on one rank, read on the others."""
        return {ImageCache: self._cache}

    def verify(self, live: Live) -> bool | None:
        """Return whether images lie, on this rank, where the first rank of the machine has put them."""
        if self.trouble:
            return False
        if not self._shared:
            return None
        return all(shared.has(act.read(i)) for shared, act in self._shared for i in (0, len(shared) - 1))

    def close(self) -> None:
        """Let go of the memory; it is gone when the data sets are."""
        for shared, _ in self._shared:
            shared.close()
        self._shared.clear()

    def _room(self, seam: CacheRoom) -> Decision | None:
        if not seam.keeps():
            return Decision("inert", "this release puts most decoded images away again: there is little to share")
        if agreement.this_rank() == self._first:
            self._judge(seam)
            return None
        answer = agreement.heard(f"{seam.key}/room", self._first, BEHIND)
        if answer is None:
            self._apart(seam, f"rank {self._first} has not come to this data set within {BEHIND.seconds // 60} minutes")
        else:
            self._joined.add(seam.key)
            seam.fits = answer == FITS
        return None

    def _judge(self, seam: CacheRoom) -> None:
        """Judge for the machine: upstream looks at the memory of the host, which a container may not have."""
        from yolo_patches.validation import host_memory

        answer = FITS if seam.fits else TOO_LARGE  # upstream's word, if ours fails
        try:
            needed, free = seam.needed(), host_memory.available()
            if seam.fits and needed > free:
                answer = TOO_LARGE
                line = (
                    f"shared-cache: {seam.images} images take {needed / GIB:.3g} GiB decoded, and this machine or "
                    f"container has {free / GIB:.3g} GiB left: they are not kept in memory; cache=disk keeps them "
                    "on the disk, and a smaller imgsz makes them smaller"
                )
                seam.tell(line)
                self.notes.append(line)
        finally:
            seam.fits = answer == FITS
            agreement.leave(f"{seam.key}/room", answer)

    def _cache(self, act: ImageCache, proceed: Callable[[], Any]) -> Any:
        if agreement.this_rank() == self._first:
            return self._decode(act, proceed)
        if act.key not in self._joined:
            return proceed()
        from yolo_patches.loading.shared_images import Handle, SharedImages

        answer = agreement.heard(f"{act.key}/images", self._first, DECODES)
        if not answer:
            self._apart(act, f"rank {self._first} has no images to share")
            return proceed()
        try:
            shared = SharedImages.attach(Handle.read(answer))
        except OSError as error:
            self._apart(act, f"the images of rank {self._first} cannot be reached ({type(error).__name__}: {error})")
            return proceed()
        act.keep(shared, shared.notes)
        self._shared.append((shared, act))
        return None

    def _decode(self, act: ImageCache, proceed: Callable[[], Any]) -> Any:
        """Decode for the machine, and say where the images are, or that they are not."""
        from yolo_patches.loading.shared_images import Filling

        answer = ""
        try:
            act.into = filling = Filling(act.images)
            result = proceed()
            try:
                shared = filling.finish(act.notes())
            except OSError as error:
                self._apart(act, f"the images could not be shared ({error})")
                return result
            act.keep(shared, shared.notes)
            self._shared.append((shared, act))
            answer = shared.handle.text()
            self.notes.append(
                f"{act.images} images, {shared.bytes / GIB:.3g} GiB, are kept once for {self._ranks} ranks, which "
                f"would keep {self._ranks * shared.bytes / GIB:.3g}"
            )
            return result
        finally:
            agreement.leave(f"{act.key}/images", answer)

    def _apart(self, seam: CacheRoom | ImageCache, why: str) -> None:
        """Go on as upstream: this rank decodes for itself."""
        self.trouble = f"{why}: this rank keeps images of its own, as upstream has it"
        seam.tell(f"shared-cache: {self.trouble}")
