"""`bench-loading`: what making training samples takes on this machine, upstream and with patches, and what pays."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

#: What two measurements of the same may differ by: less is no gain.
PAYS = 1.05
#: Of all the time, the share of decoding from which it is worth keeping decoded images.
DECODING = 0.4
UPSTREAM = "upstream"


@dataclass(frozen=True)
class Figures:
    """What making the samples of one training takes.

    Attributes:
        images: Of the training set.
        batch: Images of a batch.
        imgsz: Their longer side, in pixels.
        core: Images a second of one core's time.
        workers: Number of loader workers -> images a second of the loader.
        stages: Stage -> its share of the time, the largest first.
    """

    images: int
    batch: int
    imgsz: int
    core: float
    workers: Mapping[int, float]
    stages: Mapping[str, float]


#: Measures with a selection of patches.
Read = Callable[[str], Figures]


@dataclass(frozen=True)
class Comparison:
    """Upstream, and each level.

    Attributes:
        cores: That this process may use.
        arms: Upstream's name, or a level's -> what it takes.
        selections: The same names -> what is given as `patches=`.
    """

    cores: int
    arms: Mapping[str, Figures]
    selections: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return this as `bench-loading --json` has it."""
        arms = {name: {**asdict(arm), "patches": self.selections[name]} for name, arm in self.arms.items()}
        return {"schema": 1, "cores": self.cores, "arms": arms, "advice": list(self.advice())}

    def advice(self) -> Iterator[str]:
        """Yield what pays, a sentence each, with its figure."""
        theirs = self.arms[UPSTREAM]
        name, best = max(self.arms.items(), key=lambda item: item[1].core)
        gain = best.core / theirs.core
        if gain > PAYS:
            yield f"patches={self.selections[name]}: {gain:.2f} times the images of a core"
        elif len(self.arms) > 1:
            yield f"no level makes {PAYS:.0%} of upstream's images here, as many as two measurements may differ by"
        if theirs.workers:
            most = max(theirs.workers.values())
            enough = min(number for number, speed in theirs.workers.items() if speed * PAYS >= most)
            more = max(theirs.workers) > enough
            yield f"workers={enough}: {_figure(most)} images/s" + (
                ", more are no faster" if more else f", as many as the {self.cores} cores were tried with"
            )
        decode = theirs.stages.get("decode", 0.0)
        if decode >= DECODING:
            yield f"decoding is {decode:.0%} of the time: cache=ram or cache=disk, or smaller images on disk"

    def __str__(self) -> str:
        theirs = self.arms[UPSTREAM]
        numbers = list(theirs.workers)
        width = max(len(name) for name in self.arms)
        lines = [
            f"{theirs.images} images, imgsz {theirs.imgsz}, batch {theirs.batch}, {self.cores} cores; images/s",
            f"{'':{width}} {'a core':>9} {'gain':>6} "
            + " ".join(f"{f'{number} worker' + 's' * (number > 1):>10}" for number in numbers),
        ]
        for name, arm in self.arms.items():
            speeds = " ".join(f"{_figure(arm.workers.get(number, 0.0)):>10}" for number in numbers)
            lines.append(f"{name:{width}} {_figure(arm.core):>9} {arm.core / theirs.core:>5.2f}x {speeds}".rstrip())
        for name, arm in self.arms.items():
            shares = ", ".join(f"{stage} {share:.0%}" for stage, share in arm.stages.items() if share >= 0.005)
            lines.append(f"{name}'s time: {shares}")
        return "\n".join([*lines, *(f"advice: {line}" for line in self.advice())])


def _figure(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def compare(read: Read, selections: Mapping[str, str], cores: int) -> Comparison:
    """Measure upstream and each selection.

    Args:
        read: Measures with a selection of patches.
        selections: Name -> what is given as `patches=`; upstream's is added.
        cores: That this process may use.
    """
    arms = {UPSTREAM: "none", **selections}
    return Comparison(cores, {name: read(selection) for name, selection in arms.items()}, arms)
