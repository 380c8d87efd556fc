"""What yolo-patches costs: interpreter start-up, `import ultralytics`, and a training step.

Two environments that differ in nothing but the package take turns, so that a machine whose speed drifts slows both; the
figures are medians and the ratio is the median over pairs. Run it in an environment with Ultralytics and yolo-patches:

    python benchmarks/overhead.py [--starts 40] [--imports 8] [--trainings 3] [--json]

Bars: start-up at most 1 ms more, import at most 1.05 times, step at most 1.02 times, with monitor beside none 1.01.
oom-guard is measured without a failure: its step with the optimizer's in each (nbs=8), which it copies what that
changes for, and with the optimizer's in one of eight (upstream's nbs=64, warm). accumulate has 32 images a step of the
optimizer beside upstream's nbs=32.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
#: Two measurements that take turns, and how often.
Pair = tuple[Callable[[], float], Callable[[], float], int]
STEPS = """
import json, sys, time
from ultralytics import YOLO
data, project, patches, clock, more = sys.argv[1:6]
now, more = getattr(time, clock), json.loads(more)
model, times = YOLO("yolo11n.yaml"), []
model.add_callback("on_train_batch_start", lambda trainer: times.append(-now()))
def end(trainer): times[-1] += now()
model.add_callback("on_train_batch_end", end)
more |= {"patches": patches} if patches else {}
model.train(data=data, project=project, epochs=3, imgsz=96, batch=8, device="cpu", plots=False, val=False,
            verbose=False, **more)
print()
print(json.dumps([sorted(times[5:])[len(times[5:]) // 2], sum(times[8:]) / len(times[8:])]))
"""


def environments(folder: Path) -> tuple[Path, Path]:
    """Return two interpreters that share this one's packages: the first without yolo-patches, the second with it."""
    pythons = []
    for name in ("without", "with"):
        venv.create(folder / name, with_pip=False)
        site = next((folder / name).glob("lib/python*/site-packages"))
        # A path line adds the shared packages; start-up files in there are not read for it.
        (site / "shared.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
        if name == "with":
            shutil.copytree(ROOT / "yolo_patches", site / "yolo_patches")
            for hook in (ROOT / "start").iterdir():
                shutil.copy(hook, site)
        pythons.append(folder / name / "bin" / "python")
    return pythons[0], pythons[1]


def seconds(python: Path, code: str) -> float:
    """Return the wall time of one process."""
    begin = time.perf_counter()
    subprocess.run([python, "-c", code], check=True, capture_output=True)
    return time.perf_counter() - begin


def step(python: Path, data: str, patches: str, clock: str = "perf_counter", **more: float) -> float:
    """Return the step time of one short training, by a clock of Python's: the median, or with other arguments the mean.

    There, some steps have one of the optimizer's in them, and others have not.
    """
    with tempfile.TemporaryDirectory() as project:
        done = subprocess.run(
            [python, "-c", STEPS, data, project, patches, clock, json.dumps(more)],
            check=True,
            capture_output=True,
            text=True,
            cwd=project,
        )
    return float(json.loads(done.stdout.strip().splitlines()[-1])[bool(more)])


def pairs(first: Callable[[], float], second: Callable[[], float], count: int) -> dict[str, float]:
    """Return medians of two measurements that take turns, which of them goes first alternating as well."""
    one, two = [], []
    first(), second()  # compiles, warms the file cache
    for index in range(count):
        for function, figures in ((first, one), (second, two))[:: 1 if index % 2 else -1]:
            figures.append(function())
    return {
        "without_ms": 1e3 * statistics.median(one),
        "with_ms": 1e3 * statistics.median(two),
        "difference_ms": 1e3 * statistics.median(b - a for a, b in zip(one, two)),
        "ratio": statistics.median(b / a for a, b in zip(one, two)),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=40, help="pairs of interpreter starts")
    parser.add_argument("--imports", type=int, default=8, help="pairs of 'import ultralytics'")
    parser.add_argument("--trainings", type=int, default=3, help="pairs of trainings, for each comparison")
    parser.add_argument("--only", default="", help="what has this in its name, and nothing else")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.path.insert(0, str(ROOT / "examples"))
    from make_digits import make_digits

    figures = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        without, with_it = environments(folder)
        data = str(make_digits(folder / "digits", train=64, val=8, imgsz=96))

        def trainings(patches: tuple[str, str], clock: str, plain: dict[str, float], changed: dict[str, float]) -> Pair:
            pythons = (with_it if patches[0] else without, with_it)
            return (
                lambda: step(pythons[0], data, patches[0], clock, **plain),
                lambda: step(pythons[1], data, patches[1], clock, **changed),
                options.trainings,
            )

        def whole(code: str, count: int) -> Pair:
            return lambda: seconds(without, code), lambda: seconds(with_it, code), count

        cold = {"warmup_epochs": 0, "optimizer": "AdamW"}
        each, eighth, half = ({**cold, "nbs": nbs} for nbs in (8, 64, 32))
        wall, processor = "perf_counter", "process_time"  # the latter where less is added than wall clocks differ by
        comparisons: dict[str, Pair] = {
            "start-up": whole("pass", options.starts),
            "import": whole("import ultralytics", options.imports),
            "step, patches=none": trainings(("", "none"), wall, {}, {}),
            "step, patches=all": trainings(("", "all"), wall, {}, {}),
            "step, monitor, CPU": trainings(("none", "monitor"), processor, {}, {}),
            "step, oom-guard, nbs=8, CPU": trainings(("none", "oom-guard"), processor, each, each),
            "step, oom-guard, nbs=64, CPU": trainings(("none", "oom-guard"), processor, eighth, eighth),
            "step, accumulate, CPU": trainings(("none", "accumulate:effective=32"), processor, half, cold),
        }
        for what, pair in comparisons.items():
            if options.only in what:
                figures[what] = pairs(*pair)
    if options.json:
        print(json.dumps(figures, indent=2))
        return
    for what, figure in figures.items():
        print(
            f"{what:28} without {figure['without_ms']:9.2f} ms  with {figure['with_ms']:9.2f} ms  "
            f"difference {figure['difference_ms']:+7.2f} ms  ratio {figure['ratio']:.3f}"
        )


if __name__ == "__main__":
    main()
