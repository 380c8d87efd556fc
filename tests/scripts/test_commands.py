"""The flag, the environment variable, and the yolo-patches command, in a checkout."""

from __future__ import annotations

import json

from tests.conftest import entry, last_json
from tests.scripts.conftest import arguments, plan, run, statuses

BAD = {
    "name": ("--patches", "val-bach"),
    "value": ("--patches=val-batch:batch=0",),
    "none": ("--patches", "--epochs", "1"),
    "variable": (),
}
MESSAGES = {
    "name": "argument --patches: unknown patch 'val-bach' in 'val-bach' (did you mean",
    "value": "'0' is not valid for val-batch:batch; it must be an int of at least",
    "none": "argument --patches: expected one argument",
    "variable": "YOLO_PATCHES: unknown option 'size'",
}


def test_bad_input_is_one_message_before_anything_is_made(drive, yolov9, tmp_path):
    project = ("--project", tmp_path / "runs")
    runs = [run(name, yolov9, "train_dual.py", (*words, *project), fresh=True) for name, words in BAD.items()]
    runs[-1]["before"] = "import os\nos.environ['YOLO_PATCHES'] = 'compat:size=1'"
    more = ("--patches", "all", "--nonsense", *project)
    runs.append(run("upstream's", yolov9, "train_dual.py", more, fresh=True, before="del os.environ['YOLO_PATCHES']"))
    runs[-1]["before"] = "import os\n" + runs[-1]["before"]
    done = drive(runs)
    for name, message in MESSAGES.items():
        assert done[name]["error"] == "SystemExit: 2"
        (line,) = done[name]["log"].strip().splitlines()
        assert line.startswith("train_dual.py: error: ")
        assert message in line
    assert done["upstream's"]["error"] == "SystemExit: 2"
    assert "train_dual.py: error: unrecognized arguments: --nonsense" in done["upstream's"]["log"]
    assert "--patches" not in done["upstream's"]["log"].split("error:")[1]
    assert not (tmp_path / "runs").exists()


#: Asks doctor several times, and prints its answers: exit status, what it says, and its complaints.
DOCTOR = """
import contextlib, io, json, os, sys
from yolo_patches.cli import main
answers = []
for words, variables in json.loads(sys.argv.pop()):
    os.environ.pop("WORLD_SIZE", None)
    os.environ.pop("YOLO_PATCHES", None)
    os.environ.update(variables)
    said, complained = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(complained):
        try:
            status = main(["doctor", *words])
        except SystemExit as end:
            status = end.code
    answers.append([status, said.getvalue(), complained.getvalue()])
print(json.dumps(answers))
"""


def ask(python, *questions):
    """Return doctor's answers to words and variables, asked in one process."""
    asked = [[list(map(str, words)), variables] for words, variables in questions]
    return last_json(python("-c", DOCTOR, json.dumps(asked)))


def test_doctor(python, yolov9, models, data, tmp_path):
    hyp, script = models / "hyp9.yaml", yolov9 / "train_dual.py"
    words = arguments(models / "dual.yaml", data("detect"), hyp, tmp_path)
    masks = arguments(models / "segment.yaml", data("segment"), hyp, tmp_path)
    ranks = {"WORLD_SIZE": "4", "YOLO_PATCHES": "all"}  # what a launcher would say
    (tmp_path / "no_hyp.yaml").write_text("")
    flags, launched, *bad = ask(
        python,
        (("--json", script, *words, "--patches=val-batch", "--patches", "val-batch:batch=3"), {"YOLO_PATCHES": "all"}),
        ((yolov9 / "segment" / "train.py", *masks, "--batch-size", 128, "--sync-bn"), ranks),
        ((script, "--patches", "nope"), {}),
        ((script, "--data", "no.yaml"), {}),
        ((script, *words, "--hyp", tmp_path / "no_hyp.yaml"), {}),
        ((script, *words, "--batch-size", 2), {"WORLD_SIZE": "4"}),
        ((yolov9 / "val_dual.py",), {}),
        ((yolov9 / "no.py",), {}),
    )
    found = json.loads(flags[1])
    assert found["selection"] == "val-batch:batch=3", "the flag beats the environment"
    assert entry(found)["changes"] == [{"what": "val batch per rank", "upstream": 8, "patched": 3}]
    assert not (tmp_path / "run").exists(), "doctor makes nothing"

    assert "yolov9 checkout, batch 128, 4 ranks, patches=all" in launched[1]
    assert "val batch per rank 64 -> 32" in launched[1]
    assert "target score sum each rank's own -> mean of 4 ranks" in launched[1]
    assert "lr0 0.01 -> 0.02" in launched[1]
    assert "sync-bn: inert - --sync-bn was given: upstream converts the layers itself" in launched[1]

    messages = [
        "argument --patches: unknown patch 'nope'",
        "did not come as far as training: AssertionError: File not found: no.yaml",
        "no_hyp.yaml holds no hyperparameters",
        "batch=2 is smaller than the number of ranks (4)",
        "is no training script; yolov9 has train_dual.py",
        "is no training script of yolov9 or yolov5",
    ]
    for (status, _, complained), message in zip(bad, messages):
        assert status == 2
        assert "Traceback" not in complained
        assert message in complained


def test_doctor_in_yolov5_and_list(python, yolov9, yolov5, models, data, tmp_path):
    words = arguments(models / "v5-detect.yaml", data("detect"), models / "hyp5.yaml", tmp_path)
    ((_, said, _),) = ask(python, (("--json", yolov5 / "train.py", *words, "--patches", "all"), {}))
    found = json.loads(said)
    assert (found["upstream"]["name"], found["global_batch"]) == ("yolov5", 4)

    code = (
        "import contextlib, io, json, os, sys; from yolo_patches.cli import main\n"
        "rows = []\n"
        "for root in sys.argv[1:]:\n"
        "    os.chdir(root)\n"
        "    with contextlib.redirect_stdout(io.StringIO()) as said: main(['list', '--json'])\n"
        "    rows.append(json.loads(said.getvalue()))\n"
        "print(json.dumps(rows))"
    )
    for rows, name in zip(last_json(python("-c", code, yolov9, yolov5)), ("yolov9", "yolov5")):
        assert rows["upstreams"][name] == "checkout"
        for row in rows["patches"]:
            # Nothing in scripts can do an epoch's bookkeeping later, and their images in memory are their own.
            there = row["status"].get(name, "available") == "available"
            lacking = {"async-val", "shared-cache"} | ({"label-smoothing"} if name == "yolov5" else set())
            assert there is (row["name"] not in lacking), row["name"]


def test_run_without_the_start_up_hook(python, yolov9, models, data, tmp_path):
    words = arguments(models / "single.yaml", data("detect"), models / "hyp9.yaml", tmp_path)
    command = ("-m", "yolo_patches", "run", "--patches", "all")
    python(*command, yolov9 / "train.py", *words, "--noplots", "--noval", hook=False)
    assert plan(tmp_path / "run")["selection"] == "all"
    assert statuses(tmp_path / "run")["val-batch"] == ("active", True)


REVERT = """
import inspect, json, sys
import yolo_patches
from yolo_patches.activation import activation
import val_dual, segment.val
from utils import autobatch, dataloaders, general, loss_tal, loss_tal_dual, plots, torch_utils
from utils.segment import dataloaders, loss_tal as segment_loss
finders = len(sys.meta_path)
handles = [h for w in activation._wrappings.values() for h in w._handles]
wrapped = sorted({f"{owner.__name__}.{name}" for owner, name, _, _ in handles})
same = all(inspect.signature(w) == inspect.signature(o) for _, _, o, w in handles if inspect.isfunction(o))
yolo_patches.revert()
restored = all(vars(owner)[name] is original for owner, name, original, _ in handles)
print(json.dumps([wrapped, same, restored, finders - len(sys.meta_path)]))
"""


def test_signatures_and_revert(python, yolov9):
    wrapped, same, restored, finders = last_json(python("-c", REVERT, YOLO_PATCHES="all", PYTHONPATH=str(yolov9)))
    for name in ("utils.torch_utils.select_device", "utils.dataloaders.create_dataloader", "utils.general.torch",
                 "utils.metrics.np", "utils.plots.check_pil_font", "ComputeLoss.__call__",
                 "utils.torch_utils.smart_optimizer", "TaskAlignedAssigner.forward"):  # fmt: skip
        assert name in wrapped
    assert same
    assert restored
    assert finders == 1
