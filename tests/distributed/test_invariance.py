"""From the command line to results.csv and `verify`: N ranks train like one, and upstream's do not."""

from __future__ import annotations

import csv
import json
import os
import zipfile
from importlib import metadata

import pytest

from tests.conftest import NEWEST, OLDEST, ROOT, last_json
from yolo_patches import verify
from yolo_patches.errors import PatchesError

OFF = [f"{name}=0.0" for name in ("hsv_h", "hsv_s", "hsv_v", "translate", "scale", "fliplr", "mosaic", "erasing")]


def losses(folder):
    with open(folder / "results.csv") as file:
        rows = [{key.strip(): value for key, value in row.items()} for row in csv.DictReader(file)]
    return [[float(row[key]) for key in row if key.startswith("train/")] for row in rows]


@pytest.mark.parametrize(("version", "counts"), [(OLDEST, (2,)), (NEWEST, (2, 4))])
def test_losses_in_results_csv(version, counts, matrix, release, python, digits, tmp_path):
    """16 images, one step an epoch: every epoch's losses are the same, however many ranks share them."""

    def train(name, ranks, spec, model, *more):
        words = [f"model={model}", f"data={digits()}", "imgsz=64", "device=cpu", "amp=False", "plots=False", *OFF]
        words += [f"project={tmp_path}", f"name={name}", *more]
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        launch = launcher if ranks > 1 else []
        python(*launch, "-m", "yolo_patches", "train", *words, f"patches={spec}", **release(version))
        return losses(tmp_path / name)

    # At first weights no box overlaps: upstream's clamp is then the normaliser, and the losses round to nothing.
    train("base", 1, "none", "yolov8n.yaml", "epochs=12", "batch=4", "nbs=4", "optimizer=AdamW", "lr0=0.002")

    def tuned(ranks, spec):
        words = ("epochs=5", "batch=16", "nbs=16", "optimizer=SGD", "lr0=0.01")
        return train(f"{ranks}-{spec}", ranks, spec, tmp_path / "base/weights/last.pt", *words)

    one = tuned(1, "all")
    assert len(one) == 5
    assert min(map(min, one)) > 0.5
    assert one[4][0] < one[0][0]  # it trains
    for ranks in counts if matrix else counts[-1:]:
        shared = tuned(ranks, "all")
        for epoch in range(5):
            assert shared[epoch] == pytest.approx(one[epoch], rel=1e-3), (ranks, epoch)
    upstream = tuned(2, "torchrun")
    assert any(upstream[epoch] != pytest.approx(one[epoch], rel=1e-2) for epoch in range(5))
    print(f"{version}: one process {one[4]}, {ranks} ranks {shared[4]}, 2 ranks of upstream {upstream[4]}")


@pytest.fixture
def here(environment, interpreter, monkeypatch):
    """Let the children of this process have the tests' environment."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.executable", interpreter)


@pytest.fixture
def patched(here, monkeypatch):
    """Return a function that verifies without upstream's ranks, whose only use is to show that the check can fail."""
    monkeypatch.setattr(verify, "PATCHES", {"patched": verify.PATCHES["patched"]})
    return verify.verify


def test_verify(python):
    """The command: gradient, statistics, and six steps with accumulation, clip, EMA and warm-up."""
    done = python("-m", "yolo_patches", "verify", "--model", "yolo26n-pose.yaml", "--json", timeout=600)
    result = json.loads(done.stdout)
    assert result["holds"] is True
    assert result["blind"] == []
    assert "utils.loss.calculate_rle_loss" in result["casts"]
    for what, limit in result["limits"].items():
        assert result["errors"]["patched"][what] <= limit
        assert result["errors"]["upstream"][what] > 1e-4  # what it would be without: the check can fail


@pytest.mark.parametrize(
    ("ranks", "model", "optimizer"),
    [(3, "yolo11n-seg.yaml", "MuSGD"), (4, "yolov8n-pose.yaml", "AdamW"), (5, "yolo26n.yaml", "SGD")],
)
def test_ranks(patched, ranks, model, optimizer):
    """Numbers of ranks whose roundings two ranks hide. The long table: benchmarks/verify.py."""
    result = patched(model, ranks, optimizer)
    assert result["holds"], result["errors"]


def test_upstream_rounds(patched):
    """What the two casts that `verify` names make of three ranks: targets of a cross-entropy, and Muon's bfloat16."""
    result = patched("yolo11n-seg.yaml", 3, "MuSGD", steps=2, rounds=True)
    errors = result["errors"]["patched"]
    assert errors["BatchNorm statistics"] <= verify.LIMITS["BatchNorm statistics"]
    assert verify.LIMITS["gradient"] < errors["gradient"] < 1e-6
    assert verify.LIMITS["trajectory"] < errors["trajectory"] < 1e-2
    assert result["casts"] == []


def test_from_an_archive(python, tmp_path):
    """Workers find the package in the archive that their parent has imported it from."""
    archive = tmp_path / "yolo_patches.whl"
    with zipfile.ZipFile(archive, "w") as wheel:
        for file in (ROOT / "yolo_patches").rglob("*"):
            if file.is_file() and "__pycache__" not in file.parts:
                wheel.write(file, file.relative_to(ROOT))
        info = metadata.distribution("yolo-patches")
        for name in ("METADATA", "entry_points.txt"):
            wheel.writestr(f"yolo_patches-{info.version}.dist-info/{name}", info.read_text(name))
    code = (
        "import json; from yolo_patches import __file__, verify\n"
        "verify.PATCHES = {'patched': verify.PATCHES['patched']}\n"
        "errors = verify.verify('yolov8n.yaml', 2, steps=1)['errors']['patched']\n"
        "print(json.dumps([__file__, errors['gradient'] <= verify.LIMITS['gradient']]))"
    )
    home, holds = last_json(python("-c", code, fresh=True, PYTHONPATH=str(archive)))
    assert home.startswith(str(archive))
    assert holds


REFUSED = [
    *(("yolo11n.yaml", ranks, "is not a number of ranks to compare") for ranks in (1, 0, -3, 65, 2.0)),
    ("nonsense.yaml", 2, "no such model file: nonsense.yaml"),
    ("no-such-folder/weights.pt", 2, "no such file: no-such-folder/weights.pt"),
    ("yolo11n", 2, "is no model file"),
    ("", 2, "is no model file"),
    ("broken.yaml", 2, "YOLO('broken.yaml') ends in "),
    ("rtdetr-l.yaml", 2, "YOLO('rtdetr-l.yaml') ends in NotImplementedError"),
    *((f"yolo{name}.yaml", 2, f"is of the task {task}") for name, task in (
        ("11n-cls", "classify"), ("26n-sem", "semantic"), ("26n-depth", "depth"),
    )),
    ("yolov8s-world.yaml", 2, "is trained by WorldTrainer"),
]  # fmt: skip


def test_what_cannot_be_judged(python, tmp_path):
    """One line each, before any process is started."""
    (tmp_path / "broken.yaml").write_text("nc: 1\nbackbone: 3\nhead: []\n")
    code = (
        "import json, sys; from yolo_patches import verify; from yolo_patches.errors import PatchesError\n"
        "def started(*_): raise AssertionError\n"
        "verify._start, found = started, []\n"
        "for model, ranks in json.loads(sys.argv[1]):\n"
        "    try: verify.verify(model, ranks)\n"
        "    except PatchesError as error: found.append(str(error))\n"
        "print(json.dumps(found))"
    )
    found = last_json(python("-c", code, json.dumps([case[:2] for case in REFUSED])))
    assert len(found) == len(REFUSED)
    for message, (_, _, expected) in zip(found, REFUSED):
        assert message.startswith("verify: ")
        assert expected in message
        assert "\n" not in message
    assert "detect, segment, pose, obb" in found[-1]


def test_exit_status_of_what_cannot_be_judged(python):
    done = python("-m", "yolo_patches", "verify", "--model", "yolo11n-cls.yaml", check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith("yolo-patches: error: verify: plain YOLO models of the ")


def test_upstream_fails_by_itself(here):
    with pytest.raises(PatchesError) as caught:
        verify.verify("yolo11n.yaml", 2, "Sgdd")
    first, *trace = str(caught.value).splitlines()
    assert first.startswith("verify: upstream's own training, in one process and without any patch, failed in ultra")
    assert "NotImplementedError: Optimizer 'Sgdd' not found" in first
    assert trace[0] == "Traceback (most recent call last):"


@pytest.mark.parametrize(
    ("fault", "first", "last"),
    [
        (
            "raise UnboundLocalError('final_epoch')",
            "verify: the patched training by 2 ranks failed on rank 1 in yolo_patches.upstreams.ultralytics."
            "proof: UnboundLocalError: final_epoch",
            "UnboundLocalError: final_epoch",
        ),
        (
            "os.kill(os.getpid(), 9)",
            "verify: the patched training by 2 ranks was ended by Signal 9 (SIGKILL); where nobody sent it, memory may "
            "have run out",
            "",
        ),
    ],
)
def test_one_rank_fails(here, monkeypatch, tmp_path, fault, first, last):
    """The rank that failed first is shown, not those that the launcher ended, nor the launcher's own words."""
    script = tmp_path / "worker.py"
    script.write_text(
        "import os, sys, time\nfrom yolo_patches.upstreams.ultralytics import proof\n"
        f"def train(job):\n    if os.environ['RANK'] == '1': {fault}\n    time.sleep(60)\n"
        "proof.train = train\nproof.main(sys.argv[1])\n"
    )
    monkeypatch.setattr(verify, "WORKER", [str(script)])
    from yolo_patches.upstreams.ultralytics.proof import Job

    job = dict.fromkeys(Job.__dataclass_fields__, "") | {"out": str(tmp_path / "patched.pt")}
    with pytest.raises(PatchesError) as caught:
        verify._start(json.dumps(job), "patched", 2, tmp_path)
    lines = str(caught.value).splitlines()
    assert lines[0] == first
    assert lines[-1] == (last or first)


PLAN = {"patches": [{"name": name, "status": "active", "reason": "because"} for name in ("torchrun", "sync-bn")]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, None),
        ({"ranks": 1}, "2 ranks were started, but 1 trained together"),
        ({"images": ["a", "a", "a", "a"]}, "not given the same images"),
        ({"images": ["a", "a", "b"]}, "not given the same images"),
        ({"weights": 1e-9}, "did not start from the same weights"),
        ({"spec": "torchrun,sync-bn,loss-norm"}, "loss-norm was absent where patches=torchrun,sync-bn,loss-norm"),
        ({"spec": "torchrun"}, "sync-bn was active where patches=torchrun"),
        ({"plan": None}, "sync-bn was absent where patches=torchrun,sync-bn: no patches.json was written"),
        ({"plan": {"patches": [PLAN["patches"][0], {"name": "sync-bn", "status": "unavailable", "reason": "no seam"}]}},
         "sync-bn was unavailable where patches=torchrun,sync-bn: no seam"),
    ],
)  # fmt: skip
def test_trainings_that_cannot_be_compared(tmp_path, change, message):
    given = {"ranks": 2, "images": ["a", "a", "b", "b"], "spec": "torchrun,sync-bn", "plan": PLAN, **change}
    torch = pytest.importorskip("torch")
    start = torch.zeros(2)
    one = {"images": ["a", "a", "b", "b"], "start": start}
    patched = {"ranks": given["ranks"], "images": given["images"], "start": start + given.get("weights", 0)}
    runs = {"one": one, "patched": patched}
    (tmp_path / "patched").mkdir()
    if given["plan"]:
        (tmp_path / "patched/patches.json").write_text(json.dumps(given["plan"]))
    if message is None:
        verify._check("patched", runs, 2, 2, given["spec"], tmp_path)
        return
    with pytest.raises(PatchesError, match=message):
        verify._check("patched", runs, 2, 2, given["spec"], tmp_path)


@pytest.mark.parametrize(
    ("upstream", "patched", "holds", "words"),
    [(1.0, 0.0, True, ["ok"]), (1.0, 1e-3, False, ["FAILS"]), (0.0, 0.0, False, ["blind", "could not have failed"])],
)
def test_a_check_that_cannot_fail(monkeypatch, upstream, patched, holds, words):
    """Where upstream's own ranks are right, as with a check that sees nothing, nothing is said to hold."""
    from yolo_patches.upstreams.ultralytics import subjects

    torch = pytest.importorskip("torch")
    error = {"one": 0.0, "upstream": upstream, "patched": patched}
    names = ("gradient", "statistics", "parameters", "buffers", "ema parameters", "ema buffers")

    def load(file):
        run = os.path.basename(file).partition(".")[0]
        values = dict.fromkeys(names, torch.tensor([1.0 + error[run]]))
        return {"casts": [], "start": torch.zeros(1), **values}

    for name, stand_in in (("_start", lambda *_: None), ("_check", lambda *_: None), ("_load", load)):
        monkeypatch.setattr(verify, name, stand_in)
    monkeypatch.setattr(subjects, "task_of", lambda model: "detect")
    result = verify.verify("yolo11n.yaml", 2)
    assert result["holds"] is holds
    text = verify.describe(result)
    assert all(word in text for word in words)
    assert "Upstream puts boxes and losses in float32; here all of it is computed in float64." in text
    assert ("blind" in text) is ("blind" in words)
