"""Whether trainings are the same with each patch for validation: every task, old and new releases, 1 and 2 ranks.

    python -m tests.upstream.validation_matrix FOLDER [RELEASE,...] [TASK,...] [RANKS,...]

FOLDER is written to. Releases are folders of YOLO_PATCHES_UPSTREAMS, as `dev.py test` makes them. Three epochs without
random augmentation, which validations with `workers=0` would draw from. Compared are results.csv but its times, and the
weights in best.pt and last.pt, by hash; with val-period the epochs that are validated, and last.pt. Over ranks sums
depend on which rank is first to add: figures may differ by 2e-5 there, and weights are not compared.
"""

import csv
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import torch

from tests.conftest import MODELS, NEWEST, ROOT

PROGRAM = Path(__file__).with_name("validated_trainings.py")
RELEASES = ("8.0.200", "8.3.253", NEWEST)
#: The first of the releases here that has a task; all have the others.
SINCE = {"obb": "8.1.34", "semantic": "8.4.60", "depth": "8.4.190"}
SPECS = ("fast-val", "async-val:device=same", "best:smooth=2", "val-period:every=2")
STILL = dict.fromkeys(("mosaic", "hsv_h", "hsv_s", "hsv_v", "translate", "scale", "fliplr", "erasing"), 0.0)
COMMON = {"epochs": 3, "imgsz": 64, "batch": 8, "workers": 0, "plots": False, "device": "cpu", **STILL}


def environment(release):
    """Return the environment of a process with a release."""
    return {
        **os.environ,
        "PYTHONPATH": f"{Path(os.environ['YOLO_PATCHES_UPSTREAMS'], release)}{os.pathsep}{ROOT}",
        "YOLO_OFFLINE": "true",
        "OMP_NUM_THREADS": "1",
    }


def on_one_rank(folder, release, task, data):
    """Return what upstream's training was, and each patch's."""
    common = {**COMMON, "data": data, "model": MODELS[task], "project": str(folder), "unwatched": True}
    if release == "8.0.200":
        common.pop("erasing")  # which came with 8.1
    # The first training of a process draws other numbers in some releases.
    specs = ("none", "none", *SPECS)
    runs = [{**common, "name": str(index), "patches": spec} for index, spec in enumerate(specs)]
    done = subprocess.run(
        [sys.executable, PROGRAM, json.dumps(runs)], env=environment(release), capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    _, upstream, *patched = json.loads(done.stdout.strip().splitlines()[-1])
    return upstream, dict(zip(SPECS, patched))


def on_ranks(folder, release, task, data, ranks):
    """Return the same of trainings of several ranks, each in processes of its own."""
    found = []
    for index, spec in enumerate(("", *SPECS)):
        patches = ",".join(filter(None, ("torchrun,compat", spec)))
        defaults = Path(os.environ["YOLO_PATCHES_UPSTREAMS"], release, "ultralytics/cfg/default.yaml").read_text()
        words = [f"{key}={value}" for key, value in {**COMMON, "imgsz": 32}.items() if f"\n{key}:" in defaults]
        words += [f"model={MODELS[task]}", f"data={data}", f"project={folder}", f"name=ranks{index}"]
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        done = subprocess.run(
            [*command, "-m", "yolo_patches", "train", *words, f"patches={patches}"],
            env=environment(release), capture_output=True, text=True, timeout=900,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{spec or 'upstream'}: {done.stderr[-2000:]}")
        run = folder / f"ranks{index}"
        rows = [
            {key.strip(): value.strip() for key, value in row.items() if key.strip() != "time"}
            for row in csv.DictReader((run / "results.csv").read_text().splitlines())
        ]
        plan = json.loads((run / "patches.json").read_text())["patches"]
        found.append({"results": rows, "plan": {one["name"]: one for one in plan}})
    return found[0], dict(zip(SPECS, found[1:]))


def judged(spec, upstream, ours, exact):
    """Return "same", or what is not."""
    entry = ours["plan"].get(spec.partition(":")[0], {})
    if entry.get("status") in ("failed", "unavailable") or entry.get("verified") is False:
        return f"{entry['status']}: {entry['reason']}"
    names = ("last",) if "val-period" in spec else ("best", "last")
    different = [f"{name}.pt" for name in names if exact and ours[name] != upstream[name]]
    if len(ours["results"]) != len(upstream["results"]):
        different.append(f"{len(ours['results'])} rows instead of {len(upstream['results'])}")
    for mine, theirs in zip(ours["results"], upstream["results"]):
        for key, value in theirs.items():
            a, b = mine[key], value
            left_out = "val-period" in spec and key.startswith(("metrics/", "val/")) and math.isnan(float(a))
            if a != b and not left_out and (exact or not math.isclose(float(a), float(b), rel_tol=1e-4, abs_tol=2e-5)):
                different.append(f"{key} of epoch {theirs['epoch']}: {a}, not {b}")
    return (
        "; ".join(different[:3]) or f"same{'' if entry.get('status') == 'active' else ', ' + str(entry.get('status'))}"
    )


def _age(release):
    return tuple(map(int, release.split(".")))


def main(folder, releases="", tasks="", ranks="1,2"):
    """Print a line a cell, and end with status 1 where one is not the same."""
    sys.path.insert(0, str(ROOT / "examples"))
    from make_digits import make_digits

    torch.set_num_threads(1)
    wrong = 0
    for release in releases.split(",") if releases else RELEASES:
        for task in tasks.split(",") if tasks else MODELS:
            if _age(release) < _age(SINCE.get(task, release)):
                continue
            data = str(make_digits(Path(folder, "data", task), task=task, train=16, val=12, imgsz=64))
            for number in map(int, ranks.split(",")):
                place = Path(folder, release, f"{task}-{number}")
                try:
                    upstream, patched = (
                        on_one_rank(place, release, task, data)
                        if number == 1
                        else on_ranks(place, release, task, data, number)
                    )
                    cells = {spec: judged(spec, upstream, ours, number == 1) for spec, ours in patched.items()}
                except RuntimeError as error:
                    cells = {"all": f"ended: {error}"}
                for spec, word in cells.items():
                    wrong += not word.startswith("same")
                    print(f"{release} {task:<8} {number} rank(s) {spec:<22} {word}", flush=True)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main(*sys.argv[1:])
