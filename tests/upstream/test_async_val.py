"""async-val: trainings whose validations are made beside them are the same trainings, also when the process fails."""

from __future__ import annotations

import contextlib
import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.conftest import NEWEST, entry, last_json
from tests.unit.test_lifecycle import known
from yolo_patches import facts, registry
from yolo_patches.errors import PatchesError
from yolo_patches.lifecycle import Lifecycle
from yolo_patches.selection import parse

PROGRAM = Path(__file__).with_name("validated_trainings.py")
SAME = ("weights", "results", "best", "last", "fitness", "events")
SPEC = "async-val:device=same"
CLASSIFY = {"model": "yolov8n-cls.yaml", "lr0": 0.003, "optimizer": "AdamW", "warmup_epochs": 0.0, "nbs": 8}


@pytest.fixture
def trainings(python, release, digits, tmp_path):
    def make(version, *arguments, before=""):
        common = {"epochs": 4, "plots": False, "unwatched": True, "project": str(tmp_path)}
        runs = [{**common, "data": digits(), "name": str(index), **one} for index, one in enumerate(arguments)]
        program = tmp_path / "program.py"
        program.write_text(before + PROGRAM.read_text().replace("__file__", repr(str(PROGRAM))))
        done = python(program, json.dumps(runs), timeout=900, **release(version))
        return last_json(done), done.stdout + done.stderr

    return make


@pytest.mark.parametrize("version", ["8.0.200", "8.3.253", NEWEST])
def test_the_same_training(version, matrix, trainings, digits):
    """Figures, checkpoints and events: of a task whose figures differ from epoch to epoch, and of the largest one."""
    classify = {**CLASSIFY, "epochs": 5, "data": digits("classify")}
    kinds = (classify, {}) if matrix or version == NEWEST else (classify,)
    runs = [{**one, "patches": spec} for one in kinds for spec in ("none", SPEC)]
    found, log = trainings(version, {"patches": "none", "epochs": 1}, *runs)
    for upstream, late in zip(found[1::2], found[2::2]):
        assert {key: late[key] for key in SAME} == {key: upstream[key] for key in SAME}
        assert (late["plan"]["async-val"]["status"], late["plan"]["async-val"]["verified"]) == ("active", True)
        assert late["left"] == [] and late["helpers"] == 0
    assert len({row["metrics/accuracy_top5"] for row in found[1]["results"]}) > 1
    assert "made in the foreground" not in log


def test_all_four_together(trainings, digits):
    """Every second epoch, at less cost, beside the training, judged by a mean: those epochs' figures are upstream's."""
    classify = {**CLASSIFY, "data": digits("classify"), "epochs": 7}
    spec = f"val-period:every=2,fast-val:loss=false,{SPEC},best:smooth=2"
    (_, upstream, ours), _ = trainings(
        NEWEST, {"patches": "none", "epochs": 1}, {**classify, "patches": "none"}, {**classify, "patches": spec}
    )
    assert ours["weights"] == upstream["weights"]
    for mine, theirs in zip(ours["results"], upstream["results"]):
        validated = int(mine["epoch"]) in (2, 4, 6, 7)
        for name, value in theirs.items():
            if name.startswith("metrics/"):
                assert mine[name] == (value if validated else "nan"), (mine["epoch"], name)
    assert [row["epoch"] for row in ours["table"]] == ["2", "4", "6", "7"]
    statuses = {name: (one["status"], one["verified"]) for name, one in ours["plan"].items() if one["status"] != "off"}
    assert statuses == dict.fromkeys(("val-period", "async-val", "best"), ("active", True)) | {
        "fast-val": ("active", None)
    }, statuses
    assert ours["helpers"] == 0 and ours["left"] == []


#: By the name of the run, what goes wrong. In the process, when it is given its second task (`ask`); in what comes of
#: the first one: no number, or a disk that is full where figures are written into checkpoints; in upstream's first
#: backward pass.
TROUBLES = """
import os, signal, torch
from ultralytics.engine.trainer import BaseTrainer
from yolo_patches.patches import async_val
from yolo_patches.upstreams.ultralytics.late_validations import LateValidations
from yolo_patches.validation.helper_process import Helper

asked, ask, longest = [], Helper.ask, async_val.LONGEST
record, update = LateValidations._record, LateValidations._update_checkpoints
do_train, backward = BaseTrainer._do_train, torch.Tensor.backward
run = ""

def failing(self, task):
    asked.append(run)
    if asked.count(run) == 2 and run in ("killed", "stopped"):
        os.kill(self.pid, signal.SIGKILL if run == "killed" else signal.SIGSTOP)
    ask(self, b"no weights" if asked.count(run) == 2 and run == "nonsense" else task)

def recorded(self, pending, metrics):
    if run != "nan" or pending.epoch != 1:
        return record(self, pending, metrics)
    stop = record(self, pending, {**metrics, "fitness": float("nan")})
    print("last.pt is of epoch", torch.load(self._trainer.last, weights_only=False)["epoch"] + 1)
    return stop

def updated(self, epoch):
    if run == "full":
        os.symlink("/dev/full", self._trainer.last.with_suffix(".part"))
    update(self, epoch)

def trained(self, *args, **kwargs):
    global run
    run = self.save_dir.name
    async_val.LONGEST, async_val.PATIENCE = (3.0, 0.0) if run == "stopped" else (longest, 20.0)
    left = [1] if run.startswith("oom") else []
    def step(loss, *words, **more):
        if left and left.pop():
            raise RuntimeError("CUDA out of memory")
        return backward(loss, *words, **more)
    torch.Tensor.backward = step
    return do_train(self, *args, **kwargs)

Helper.ask, BaseTrainer._do_train = failing, trained
LateValidations._record, LateValidations._update_checkpoints = recorded, updated
"""
#: What is said where the process fails.
FAILURES = {
    "killed": "the process has ended",
    "stopped": "the process has not answered in 3 s more",
    "nonsense": "UnpicklingError",
}


def test_troubles(trainings, digits):
    """One process of trainings, each with another trouble; all end, and are upstream's but for what is said here."""
    classify = {**CLASSIFY, "data": digits("classify"), "epochs": 4}
    late = {**dict.fromkeys((*FAILURES, "nan", "full"), classify), "oom": {"epochs": 4}}
    runs = {"none": {**classify, "patches": "none"}, "oom-none": {"epochs": 4, "patches": "none"}}
    runs |= {name: {**arguments, "patches": SPEC} for name, arguments in late.items()}
    found, log = trainings(
        NEWEST,
        {"patches": "none", "epochs": 1},
        *({**arguments, "name": name} for name, arguments in runs.items()),
        before=TROUBLES,
    )
    found = dict(zip(("first", *runs), found))
    upstream = found["none"]
    for name, words in FAILURES.items():
        assert {key: found[name][key] for key in SAME} == {key: upstream[key] for key in SAME}, name
        assert log.count(f"made in the foreground from here on: {words}") == 1, name
        assert found[name]["plan"]["async-val"]["verified"] is False, name
    # No number is never best, and early stopping is not given it; upstream would go back to a checkpoint that is good.
    nan = found["nan"]
    assert nan["weights"] == upstream["weights"] and nan["results"] == upstream["results"]
    assert nan["fitness"] == [upstream["fitness"][0], None, *upstream["fitness"][2:]]
    assert "last.pt is of epoch 1\n" in log
    assert log.count("made in the foreground from here on: the fitness of epoch 2 is nan") == 1
    # Best.pt and last.pt go without late figures; nothing else does, and nothing is left of the attempt.
    whole = ("weights", "results", "fitness", "events", "files")
    assert {key: found["full"][key] for key in whole} == {key: upstream[key] for key in whole}
    assert log.count("something could not be recorded: OSError: [Errno 28]") == 1
    # The process has the loaders that upstream has built for the smaller batch: losses go by the batch.
    assert {key: found["oom"][key] for key in SAME} == {key: found["oom-none"][key] for key in SAME}
    assert log.count("Reducing to batch=4") == 2
    assert found["oom"]["plan"]["async-val"]["verified"] is True
    assert all(one["helpers"] == 0 for one in found.values())


#: What ranks read of a data set, and what upstream makes of their losses, by its own sampler.
RANKS = """
import json, torch
from ultralytics.data.build import ContiguousDistributedSampler
from yolo_patches.upstreams.ultralytics import validation_task
from torch.utils.data import DataLoader
compared = 0
for images in (1, 7, 20, 33):
    for ranks in (2, 3):
        for size in (1, 4, 8):
            data = list(range(images))
            loaders = [
                DataLoader(data, size, sampler=ContiguousDistributedSampler(data, ranks, rank=rank), collate_fn=list)
                for rank in range(ranks)
            ]
            theirs = [list(loader) for loader in loaders]
            assert validation_task._batches(loaders[0]) == sum(theirs, []), (images, ranks, size)
            losses = [[1.0 + batch[0] for batch in batches] for batches in theirs]
            upstream = sum(map(sum, losses)) / ranks / len(loaders[0])
            mean = sum(map(sum, losses)) / sum(map(len, losses))
            assert abs(mean * validation_task._share(loaders[0]) / upstream - 1) < 1e-12, (images, ranks, size)
            compared += 1
plain = DataLoader(data, 8)
assert validation_task._batches(plain)[-1] == [32] and validation_task._share(plain) == 1
print(compared)
"""


@pytest.mark.parametrize("version", ["8.3.253", NEWEST])
def test_batches_and_losses_of_ranks(version, release, python):
    assert last_json(python("-c", RANKS, **release(version))) == 24


def test_deterministic_algorithms_are_the_trainings():
    import torch

    from yolo_patches.upstreams.ultralytics import validation_task

    before = validation_task._switches()
    try:
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = True
        wanted = validation_task._switches()
        validation_task._switch(before)
        assert validation_task._switches() == before != wanted
        validation_task._switch(wanted)
        assert validation_task._switches() == wanted
    finally:
        validation_task._switch(before)


def test_weights_that_are_no_numbers_are_validated_at_once():
    import torch

    from yolo_patches.upstreams.ultralytics import validation_task

    model = torch.nn.BatchNorm2d(3)
    assert validation_task.all_finite(model)
    model.running_var[1] = torch.inf
    assert not validation_task.all_finite(model)


def test_what_cannot_be_sent_is_validated_in_the_foreground(trainings):
    before = """
from yolo_patches.upstreams.ultralytics import validation_task
def refuses(*_): raise TypeError("cannot pickle it")
validation_task._light = refuses
"""
    (_, upstream, late), log = trainings(
        NEWEST, {"patches": "none", "epochs": 1}, {"patches": "none"}, {"patches": SPEC}, before=before
    )
    assert {key: late[key] for key in SAME} == {key: upstream[key] for key in SAME}
    reason = "it cannot be sent to another process (TypeError: cannot pickle it)"
    assert f"async-val is unavailable, training goes on without it ({reason})" in log
    assert late["plan"]["async-val"]["status"] == "unavailable"


def test_early_stopping_comes_an_epoch_later_and_a_resumed_run_goes_on(trainings, tmp_path, digits):
    classify = {**CLASSIFY, "data": digits("classify"), "epochs": 12, "patience": 1, "lr0": 0.0}
    (_, upstream, late, cut, resumed, watched), log = trainings(
        NEWEST,
        {"patches": "none", "epochs": 1},
        {**classify, "patches": "none"},
        {**classify, "patches": SPEC},
        {"patches": SPEC, "name": "cut", "interrupt": 3, "epochs": 6},
        {"model": str(tmp_path / "cut/weights/last.pt"), "resume": True},
        {**classify, "patches": SPEC, "epochs": 3, "patience": 100, "unwatched": False},
    )
    assert watched["plan"]["async-val"]["status"] == "unavailable" and len(watched["results"]) == 3
    assert "on_val_start listens to on_val_start" in log
    assert 2 <= len(upstream["results"]) < 12
    # The first validation is made in the foreground; one that is put off stops the training an epoch later.
    assert len(late["results"]) - len(upstream["results"]) in (0, 1)
    assert late["results"][: len(upstream["results"])] == upstream["results"]
    assert cut["interrupted"] and cut["helpers"] == 0
    assert [row["epoch"] for row in cut["results"]] == ["1", "2", "3"]  # the fourth had not been validated
    assert [row["epoch"] for row in resumed["results"]] == ["1", "2", "3", "5", "6"]
    assert resumed["plan"]["async-val"]["status"] == "active"


def test_no_process_outlives_a_killed_training(environment, release, digits, tmp_path):
    runs = [{"data": digits(), "epochs": 200, "plots": False, "unwatched": True, "patches": SPEC, "imgsz": 32}]
    with subprocess.Popen(
        [sys.executable, PROGRAM, json.dumps([{**one, "project": str(tmp_path)} for one in runs])],
        env={**environment, **release(NEWEST)}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as training:  # fmt: skip
        helpers, deadline = [], time.monotonic() + 120
        while not helpers and time.monotonic() < deadline:
            time.sleep(0.2)
            with contextlib.suppress(psutil.Error):
                children = psutil.Process(training.pid).children()
                helpers = [child for child in children if "helper_process" in " ".join(child.cmdline())]
        assert helpers
        os.kill(training.pid, signal.SIGKILL)
        _, alive = psutil.wait_procs(helpers, timeout=20)
        assert not alive


def test_two_ranks(release, python, digits, tmp_path):
    """The first rank has its process; the others take its word for each epoch."""
    tables = []
    for name, spec in (("upstream", "torchrun"), ("late", f"torchrun,{SPEC}"), ("dies", f"torchrun,{SPEC}")):
        words = [
            "model=yolov8n-cls.yaml",
            f"data={digits('classify', 16, 16)}",
            "epochs=5",
            "imgsz=32",
            "batch=8",
            "workers=0",
        ]
        words += [
            "workers=0",
            "device=cpu",
            f"project={tmp_path}",
            f"name={name}",
            "plots=False",
            f"patches={spec}",
            "lr0=0.003",
        ]
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        if name == "dies":
            (tmp_path / "dies.py").write_text(
                "import os, runpy, signal\n"
                "from yolo_patches.validation.helper_process import Helper\n"
                "ask = Helper.ask\n"
                "def dying(self, task):\n"
                "    os.kill(self.pid, signal.SIGKILL)\n"
                "    ask(self, task)\n"
                "Helper.ask = dying\n"
                "runpy.run_module('yolo_patches', run_name='__main__')\n"
            )
            done = python(*launch, tmp_path / "dies.py", "train", *words, **release(NEWEST))
        else:
            done = python(*launch, "-m", "yolo_patches", "train", *words, **release(NEWEST))
        with open(tmp_path / name / "results.csv") as file:
            tables.append([{key: value for key, value in row.items() if key != "time"} for row in csv.DictReader(file)])
        if name != "upstream":
            item = entry(json.loads((tmp_path / name / "patches.json").read_text()), "async-val")
            assert item["status"] == "active" and item["verified"] is (name == "late"), item
    upstream, late, dies = tables
    assert [row["epoch"] for row in late] == [row["epoch"] for row in dies] == [row["epoch"] for row in upstream]
    for theirs, ours in zip(upstream, late):
        for key, value in theirs.items():
            assert float(ours[key]) == pytest.approx(float(value), rel=1e-4, abs=2e-5), key
    # Ranks would have to validate together, and the others have gone on: the figures of that one epoch are lost.
    lost = [math.isnan(float(row["metrics/accuracy_top1"])) for row in dies]
    assert lost == [False, True, False, False, False]
    assert "made in the foreground from here on" in done.stdout + done.stderr


def decided(spec, devices=None, **more):
    return Lifecycle.of(known(**more), parse(spec, registry.specs())).plan


@pytest.mark.parametrize(("spec", "message"), [
    ("async-val:device=gpu", "device=gpu is no device; give cuda:N, cpu or same"),
    ("async-val:device=cuda:7", "cuda:7 is not there: this machine has no CUDA devices"),
])  # fmt: skip
def test_bad_input(spec, message, monkeypatch, tmp_path):
    monkeypatch.setattr("yolo_patches.patches.async_val.DEVICES", tmp_path / "none")
    with pytest.raises(PatchesError, match=message):
        decided(spec)


def test_a_device_that_the_training_has(monkeypatch, tmp_path):
    for name in ("0", "1"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr("yolo_patches.patches.async_val.DEVICES", tmp_path)
    busy = known(optimization=facts.Optimization(epochs=9))
    busy = type(busy)(**{**vars(busy), "devices": facts.Devices(1, held=(1,))})
    with pytest.raises(PatchesError, match="cuda:1 is one that the training has; give another, or device=same"):
        Lifecycle.of(busy, parse("async-val:device=cuda:1", registry.specs()))
    plan = Lifecycle.of(busy, parse("async-val:device=0", registry.specs())).plan
    assert next(one for one in plan.entries if one.name == "async-val").decision.status == "active"


@pytest.mark.parametrize(("spec", "more", "reason"), [
    ("async-val", {}, "needs a device of its own"),
    (SPEC, {"validates": False}, "validate the last epoch alone"),
    (SPEC, {"optimization": facts.Optimization(hours=1.0)}, "ends by the clock"),
    (SPEC, {"optimization": facts.Optimization(epochs=2)}, "there are no others"),
])  # fmt: skip
def test_inert(spec, more, reason):
    item = next(one for one in decided(spec, **more).entries if one.name == "async-val")
    assert item.decision.status == "inert" and reason in item.decision.reason
