"""loss-norm: the gradient of N ranks is that of one process, for every head, by real ranks in float64.

Each model's BatchNorm is synchronised, so that normalisers are all that could differ. `upstream` is plain DDP.
"""

from __future__ import annotations

import json
import subprocess

import pytest

from tests.conftest import OLDEST, ROOT

DETECT = ("yolov8n", "yolov9t", "yolov10n", "yolo11n", "yolo12n", "yolo26n")
OTHERS = tuple(f"{name}-{task}" for name in ("yolov8n", "yolo11n", "yolo26n") for task in ("seg", "pose", "obb"))
#: Evenly spread boxes, and none at all, are other cases of the same code: they are tried where it differs most.
ALL_LAYOUTS = ("yolov8n", "yolo11n-obb", "yolo26n-seg", "yolo26n-pose")
LAYOUTS = ("balanced", "skewed", "one rank", "none")
BOTH = ("upstream", "patched")


def case(name, layouts, variants=BOTH, **options):
    return {"name": name, "layouts": layouts, "variants": variants, **options}


# With three ranks, no power of two hides what is rounded; each model takes one of the layouts in turn. YOLO11 has the
# heads of YOLOv8 but for the layers in front of its classes, so that one of its tasks stands for all with two ranks.
MODELS = DETECT + OTHERS
TWICE = [name for name in MODELS if name not in ("yolo11n-seg", "yolo11n-pose")]
THREE = [case(name, LAYOUTS[index % 4 :][:1], BOTH[name in TWICE :], images=1) for index, name in enumerate(MODELS)]
THREE += [case("yolo11n", ("one box",), images=1), case("yolo26n-distill", ("skewed",), images=1, ddp=False)]


def two(matrix):
    """Return the cases of two ranks; all objects on one rank are another case of the same code, too."""
    uneven = ("skewed", "one rank") if matrix else ("skewed",)
    cases = [case(name, LAYOUTS if name in ALL_LAYOUTS else uneven) for name in TWICE]
    return [*cases, case("yolov8n", ("one box",)), case("rtdetr-l", ("skewed", "one rank"), ddp=False)]


#: With smoothed targets the normaliser is the same sum: N ranks are one process with the same epsilon.
SMOOTHED = [case(name, ("skewed",), epsilon=0.1, images=1, ddp=False) for name in ("yolov8n", "yolo26n-seg")]
#: One-to-many and one-to-one terms of YOLO26's pose loss, lowered until their floor at zero falls between the ranks.
FLOORED = [case("yolo26n-pose", ("skewed",), images=3, shift=shift) for shift in (47.0, 50.0)]


def of_release(version):
    """Three images a rank: of two, 8.4.0 takes the prototypes for a pair of heads.

    Its segmentation loss ends in an error on a rank without foreground, so there is no upstream figure for that.
    """
    common = {"images": 3, "ddp": False}
    if version == "yolov10":
        return [case("yolov10n", ("skewed", "one rank"), **common)]
    if version == "8.1.34":
        return [case(f"yolov8n{task}", ("skewed",), **common) for task in ("", "-pose", "-seg")]
    cases = [case(f"yolov8n{task}", ("one rank",), **common) for task in ("", "-pose", "-obb")]
    cases += [case("yolov8n-pose", ("skewed",), **common), case("yolov8n-seg", ("skewed",), **common)]
    cases += [case("yolov8n-seg", ("one rank",), BOTH[version == "8.4.0" :], **common)]
    if version.startswith("8.4"):
        cases += [case(f"yolo26n{task}", ("one rank",), ("patched",), **common) for task in ("-pose", "-seg")]
    return cases


@pytest.fixture(scope="module")
def measure(environment, interpreter, tmp_path_factory):
    """Return a function that starts ranks once for a list of cases and returns their rows."""

    def run(ranks, cases, **variables):
        output = tmp_path_factory.mktemp("gradients") / "rows.json"
        command = [interpreter, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        done = subprocess.run(
            [*command, ROOT / "tests/distributed/loss_norm_rank.py", output, json.dumps(cases)],
            env={**environment, **variables},
            capture_output=True,
            text=True,
            timeout=900,
        )
        if done.returncode:
            pytest.fail(f"the ranks ended with {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}")
        return json.loads(output.read_text())

    return run


@pytest.fixture(scope="module")
def two_ranks(measure, matrix):
    return measure(2, two(matrix) + FLOORED)["rows"]


def check(rows, cases):
    """The patched gradient is exact where upstream's is not, by one collective a criterion call and none elsewhere."""
    assert [(row["model"], row["layout"]) for row in rows] == [
        (each["name"], layout) for each in cases for layout in each["layouts"]
    ]
    for row in rows:
        assert row["norm"] > 1, row
        assert row["patched"] <= 1e-10, row
        assert row.get("upstream", 1) > 1e-3, row
        assert row.get("upstream calls", 0) == 0, row
        calls = (2 if row["model"].startswith(("yolov10", "yolo26")) else 1) + row["model"].endswith("distill")
        assert row["patched calls"] == calls, row
        assert row["no_grad calls"] == 0, row


def test_two_ranks(two_ranks, matrix):
    check(two_ranks[: -len(FLOORED)], two(matrix))


def test_three_ranks(measure):
    check(measure(3, THREE + SMOOTHED)["rows"], THREE + SMOOTHED)


def test_likelihood_floor(two_ranks):
    """All ranks decide together on the floor of a mean, though they are on both sides of it."""
    rows = two_ranks[-len(FLOORED) :]
    check(rows, FLOORED)
    for row in rows:
        one, other = row["likelihoods"]
        assert len(one) == len(other) == 2
        assert all(min(pair) < 0 < max(pair) for pair in zip(one, other)), row


@pytest.mark.parametrize("version", ["8.1.34", "yolov10", OLDEST, "8.3.253", "8.4.0", "8.4.60"])
def test_releases(version, measure, release):
    found = measure(2, of_release(version), **release(version))
    assert found["version"] == {"yolov10": "8.1.34"}.get(version, version)
    check(found["rows"], of_release(version))
