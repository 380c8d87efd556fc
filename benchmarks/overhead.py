"""What yolo-patches costs: interpreter start-up, `import ultralytics`, and a training step.

Two environments that differ in nothing but the package take turns, so that a machine whose speed drifts slows both; the
figures are medians and the ratio is the median over pairs. Run it in an environment with Ultralytics and yolo-patches:

    python benchmarks/overhead.py [--starts 40] [--imports 8] [--trainings 3] [--json]

Bars: start-up at most 1 ms more, import at most 1.05 times, step at most 1.02 times, with monitor beside none 1.01.
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
STEPS = """
import json, sys, time
from ultralytics import YOLO
data, project, patches, clock = sys.argv[1:5]
now = getattr(time, clock)
model, times = YOLO("yolo11n.yaml"), []
model.add_callback("on_train_batch_start", lambda trainer: times.append(-now()))
def end(trainer): times[-1] += now()
model.add_callback("on_train_batch_end", end)
more = {"patches": patches} if patches else {}
model.train(data=data, project=project, epochs=3, imgsz=96, batch=8, device="cpu", plots=False, val=False,
            verbose=False, **more)
print()
print(json.dumps(sorted(times[5:])[len(times[5:]) // 2]))
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


def step(python: Path, data: str, patches: str, clock: str = "perf_counter") -> float:
    """Return the median step time of one short training, by a clock of Python's."""
    with tempfile.TemporaryDirectory() as project:
        done = subprocess.run(
            [python, "-c", STEPS, data, project, patches, clock],
            check=True,
            capture_output=True,
            text=True,
            cwd=project,
        )
    return float(done.stdout.strip().splitlines()[-1])


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
    parser.add_argument("--trainings", type=int, default=3, help="pairs of trainings, for each of none and all")
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
        wholes = (("start-up", "pass", options.starts), ("import", "import ultralytics", options.imports))
        for what, code, count in wholes:
            figures[what] = pairs(lambda: seconds(without, code), lambda: seconds(with_it, code), count)  # noqa: B023
        for spec in ("none", "all"):
            figures[f"step, patches={spec}"] = pairs(
                lambda: step(without, data, ""),
                lambda: step(with_it, data, spec),  # noqa: B023
                options.trainings,
            )
        # Processor time: what monitor adds is less than what wall clocks of two trainings differ by.
        figures["step, monitor, CPU"] = pairs(
            lambda: step(with_it, data, "none", "process_time"),
            lambda: step(with_it, data, "monitor", "process_time"),
            options.trainings,
        )
    if options.json:
        print(json.dumps(figures, indent=2))
        return
    for what, figure in figures.items():
        print(
            f"{what:20} without {figure['without_ms']:9.2f} ms  with {figure['with_ms']:9.2f} ms  "
            f"difference {figure['difference_ms']:+7.2f} ms  ratio {figure['ratio']:.3f}"
        )


if __name__ == "__main__":
    main()
