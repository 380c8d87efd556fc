"""The `yolo` and `yolo-patches` commands as users type them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import NEWEST, OLDEST, entry

TRAIN = ("model=yolov8n.yaml", "epochs=1", "imgsz=64", "batch=4", "device=cpu", "plots=False", "workers=0", "name=run")


def plan(folder):
    return json.loads((Path(folder) / "patches.json").read_text())


@pytest.fixture
def train(yolo, digits, tmp_path):
    """Return a function that runs `yolo train` and returns the finished process and the plan, or None."""

    def run(*words, mode=("train",), check=True, **variables):
        arguments = (f"project={tmp_path / 'runs'}", "exist_ok=True", f"data={digits()}")
        done = yolo(*mode, *TRAIN, *arguments, *words, check=check, **variables)
        file = tmp_path / "runs" / "run" / "patches.json"
        written = json.loads(file.read_text()) if file.exists() else None
        file.unlink(missing_ok=True)
        return done, written

    return run


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_train(train, release, version, tmp_path):
    done, written = train("patches=all", **release(version))
    banners = [line for line in done.stdout.splitlines() + done.stderr.splitlines() if "yolo-patches" in line]
    assert len(banners) == 1
    assert "val-batch: val batch per rank 8 -> 4 (the training batch)" in banners[0]
    assert (written["selection"], written["upstream"]["version"]) == ("all", version)
    assert "patches" not in (tmp_path / "runs" / "run" / "args.yaml").read_text()


@pytest.mark.parametrize(
    ("words", "mode"),
    [
        (("patches", "=", "val-batch:batch=3"), ("detect", "train")),
        (("--patches=val-batch:batch=3",), ("mode=train",)),
        (("patches=none", "patches=val-batch:batch=3"), ("train",)),
    ],
)
def test_spellings(train, words, mode):
    _, written = train(*words, mode=mode)
    assert written["selection"] == "val-batch:batch=3"
    assert entry(written)["changes"] == [{"what": "val batch per rank", "upstream": 8, "patched": 3}]


def test_authority_argument_then_file_then_environment_then_default(python, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("patches: [default, 'val-batch:batch=2']\nlr0: 0.02\n")

    def selected(*words, **variables):
        words = ("model=yolov8n.yaml", "batch=4", "device=cpu", *words)
        return json.loads(python("-m", "yolo_patches", "doctor", "--json", *words, check=False, **variables).stdout)[
            "selection"
        ]

    assert selected() == "default"
    assert selected(YOLO_PATCHES="val-batch:batch=5") == "val-batch:batch=5"
    assert selected(f"cfg={file}", YOLO_PATCHES="val-batch:batch=5") == "default,val-batch:batch=2"
    assert selected(f"cfg={file}", "patches=val-batch") == "val-batch"
    assert selected("patches=none", YOLO_PATCHES="val-batch") == "none"


BAD = {
    "patches=val-bach": "unknown patch 'val-bach' in 'val-bach' (did you mean 'val-batch'?)",
    "patches=val-batch:size=3": "unknown option 'size'",
    "patches=val-batch:batch=many": "'many' is not valid for val-batch:batch; it must be an int of at least 1",
    "patches=val-batch:batch=0": "at least 1",
    "patches=all,,none": "empty item",
    "patches=": "empty item",
    "patches": "empty item",
    "patches=none,-val-batch": "removes a patch that is not selected",
}
COMMAND_LINES = """
import contextlib, io, json, sys
import ultralytics.cfg
from yolo_patches.upstreams.ultralytics.commands import take_argument
seen = []
for word in json.loads(sys.argv[1]):
    sys.argv[:] = ["yolo", "train", "model=yolov8n.yaml", "project=runs", word]
    take_argument(None, None)
    errors, output = io.StringIO(), io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(output):
        try:
            status = ultralytics.cfg.entrypoint()
        except SystemExit as exit:
            status = exit.code
    seen.append([status, errors.getvalue(), output.getvalue()])
print(json.dumps(seen))
"""


def test_bad_input_is_one_message_before_anything_is_made(python, tmp_path):
    seen = json.loads(python("-c", COMMAND_LINES, json.dumps(list(BAD))).stdout.splitlines()[-1])
    for (status, errors, output), (word, message) in zip(seen, BAD.items()):
        assert status == 2, word
        assert "Traceback" not in errors + output, word
        assert message in errors
        assert len(errors.strip().splitlines()) == 1, word
    assert not (tmp_path / "runs").exists()


def test_garbage_in_the_environment(train):
    done, _ = train(check=False, YOLO_PATCHES="%$;garbage")
    assert done.returncode == 2
    assert done.stderr.startswith("yolo-patches: error: YOLO_PATCHES: unknown patch")


def test_garbage_in_the_environment_does_not_stop_what_does_not_train(yolo):
    assert yolo("version", YOLO_PATCHES="%$;garbage").returncode == 0


def test_unwritable_run_directory(train, tmp_path):
    (tmp_path / "file").write_text("")
    done, _ = train("patches=all", f"project={tmp_path / 'file'}", check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "cannot write the run directory" in done.stderr
    assert "project=" in done.stderr


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_other_modes_say_that_it_has_no_effect(yolo, digits, release, version, tmp_path):
    model = "yolov8n.yaml"
    source = next(Path(digits()).parent.glob("images/val/*.png"))
    common = ("imgsz=64", "device=cpu", "patches=all", "plots=False", f"project={tmp_path}")
    for words in (("val", f"data={digits()}"), ("predict", f"source={source}", "save=False")):
        done = yolo(*words, f"model={model}", *common, **release(version))
        assert (done.stdout + done.stderr).count(f"'patches=' has no effect on {words[0]}") == 1


def test_export_says_that_it_has_no_effect(yolo):
    done = yolo("export", "model=yolov8n.yaml", "imgsz=64", "device=cpu", "patches=all", "format=torchscript")
    assert (done.stdout + done.stderr).count("'patches=' has no effect on export") == 1


@pytest.mark.parametrize("hook", [True, False])
def test_python_m_is_yolo(python, digits, tmp_path, hook):
    words = (*TRAIN, f"project={tmp_path / 'runs'}", f"data={digits()}", "patches=all")
    python("-m", "yolo_patches", "train", *words, hook=hook)
    assert entry(plan(tmp_path / "runs" / "run"))["verified"] is True


def test_second_copy_of_the_configuration_module(python, digits, tmp_path):
    """The tuner starts its children as `python -m ultralytics.cfg.__init__`, in which no wrapper of ours exists."""
    words = (*TRAIN, f"project={tmp_path / 'runs'}", f"data={digits()}", "patches=all")
    python("-m", "ultralytics.cfg.__init__", "train", *words)
    assert plan(tmp_path / "runs" / "run")["selection"] == "all"


def test_tuner_children_are_patched(python, digits, tmp_path):
    code = f"""
from ultralytics import YOLO
YOLO("yolov8n.yaml").tune(data={digits()!r}, epochs=1, iterations=1, imgsz=64, batch=4, device="cpu", plots=False,
    val=False, project={str(tmp_path / "runs")!r}, patches="val-batch:batch=3")
"""
    python("-c", code)
    (file,) = (tmp_path / "runs").rglob("patches.json")
    assert plan(file.parent)["selection"] == "val-batch:batch=3"


def test_doctor(python, tmp_path):
    words = ("model=yolov8n.yaml", "batch=8", "device=0,1,2,3", "patches=all")
    done = python("-m", "yolo_patches", "doctor", *words, check=False)
    assert "batch 8, 4 ranks, patches=all" in done.stdout
    assert "val batch per rank 4 -> 2" in done.stdout
    data = json.loads(python("-m", "yolo_patches", "doctor", "train", *words, "--json", check=False).stdout)
    assert (data["world_size"], data["global_batch"]) == (4, 8)
    assert entry(data)["changes"] == [{"what": "val batch per rank", "upstream": 4, "patched": 2}]
    assert not list(tmp_path.iterdir())  # nothing was made


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("doctor", "model=yolov8n.yaml", "batch=2", "device=0,1,2"), "smaller than the number of ranks (3)"),
        (("doctor", "model=yolov8n.yaml", "patches=nope"), "unknown patch 'nope'"),
        (("doctr",), "did you mean 'doctor'"),
        (("run", "no/such/file.py"), "no such file: no/such/file.py"),
        (("run", "--patches", "nope", __file__), "unknown patch 'nope'"),
        (("doctor", "model=yolo11n-nowhere.pt"), "does not come as far as training: "),
    ],
)
def test_bad_input_of_our_own_command(python, words, message):
    done = python("-m", "yolo_patches", *words, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert message in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("yolo-patches: error: ")


def test_list(python):
    rows = json.loads(python("-m", "yolo_patches", "list", "--json").stdout)
    assert rows["upstreams"]["ultralytics"] == NEWEST
    row = entry(rows)
    assert row["status"] == {"ultralytics": "available"}
    assert {"batch", "strict"} <= set(row["options"])
    text = python("-m", "yolo_patches", "list").stdout
    assert "val-batch (default): " in text
    assert "val-batch:batch=..." in text


@pytest.mark.parametrize("hook", [True, False])
def test_run_a_script(python, digits, tmp_path, hook):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\nfrom ultralytics import YOLO\n"
        f"YOLO('yolov8n.yaml').train(data={digits()!r}, epochs=1, imgsz=64, batch=4, device='cpu', plots=False,\n"
        f"    project={str(tmp_path / 'runs')!r}, name=sys.argv[1])\n"
    )
    python("-m", "yolo_patches", "run", "--patches", "val-batch:batch=3", script, "here", hook=hook)
    assert entry(plan(tmp_path / "runs" / "here"))["options"] == {"batch": 3}
