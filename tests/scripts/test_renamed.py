"""Checkouts that we have never seen, and faults of our own: training goes on as upstream, to the last bit.

One process for each upstream trains them all, two steps each. Its stack is one on which upstream runs without compat.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.conftest import entry
from tests.scripts.conftest import arguments, plan, run, statuses
from tests.scripts.test_training import OLD_SETUPTOOLS

SPECS = ("none", "default", "all")
LOADERS = ("val-batch", "linear-lr")
#: What is renamed, in which files, from what to what -> the patches that cannot do without it; None where none can act.
RENAMED = {
    "nothing": ((), ()),
    "select_device": ((("**/*.py", r"\bselect_device\b", "choose_device"),), None),
    "train": ((("train.py", r"(?<!\.)\btrain\(", "fit("),), None),
    "smart_optimizer": ((("**/*.py", r"\bsmart_optimizer\b", "clever_optimizer"),), ("linear-lr",)),
    "smart_resume": ((("**/*.py", r"\bsmart_resume\b", "clever_resume"),), ("linear-lr",)),
    "create_dataloader": ((("**/*.py", r"\bcreate_dataloader\b", "make_loader"),), LOADERS),
    "augment": ((("**/*.py", r"\baugment\b", "augmented"),), LOADERS),
    "check_amp": ((("**/*.py", r"\bcheck_amp\b", "amp_works"),), ("sync-bn",)),
    "check_train_batch_size": ((("**/*.py", r"\bcheck_train_batch_size\b", "largest_batch"),), ()),
    "clip_grad_norm_": ((("train.py", r"torch\.nn\.utils\.clip", "nn.utils.clip"),), ("linear-lr",)),
    "ComputeLoss": ((("**/*.py", r"\bComputeLoss\b", "Criterion"),), ("loss-norm",)),
    "callbacks.run": (
        (("**/*.py", r"\bcallbacks\.run\(", "callbacks.fire("), ("utils/callbacks.py", r"\bdef run\(", "def fire(")),
        (),  # the loader says where a step begins
    ),
    "callbacks.run and create_dataloader": (
        (
            ("**/*.py", r"\bcallbacks\.run\(", "callbacks.fire("),
            ("utils/callbacks.py", r"\bdef run\(", "def fire("),
            ("**/*.py", r"\bcreate_dataloader\b", "make_loader"),
        ),
        (*LOADERS, "sync-bn", "loss-norm"),
    ),
    "validate.run": (
        (("train.py", r"\bvalidate\.run\(", "validate.go("), ("val.py", r"^def run\(", "def go(")),
        (),
    ),
    "cfg": ((("train.py", r"\bcfg\b", "config"),), ()),
    "Rprop": ((("utils/torch_utils.py", r"optim\.SGD\(.*\)", "optim.Rprop(g[2], lr=lr)"),), ()),
}
RENAMED9 = {**RENAMED, "TaskAlignedAssigner": ((("**/*.py", r"\bTaskAlignedAssigner\b", "Assigner"),), ("loss-norm",))}
RENAMED5 = {
    name: RENAMED[name] for name in ("nothing", "select_device", "create_dataloader", "ComputeLoss", "callbacks.run")
} | {
    "build_targets": ((("**/*.py", r"\bbuild_targets\b", "match"),), ("loss-norm",)),
    "bbox_iou": ((("utils/*.py", r"\bbbox_iou\b", "overlap"),), ()),
}
#: What is renamed -> what `all` has beside the defaults that cannot do without it.
OF_ALL = {
    "create_dataloader": {"fast-load", "feeding", "monitor", "warmup"},
    "augment": {"fast-load", "feeding", "monitor", "warmup"},
    "callbacks.run and create_dataloader": {"fast-load", "feeding", "monitor", "warmup"},
    "clip_grad_norm_": {"warmup"},
    "validate.run": {"fast-val"},
}
#: Whose training is another than upstream's.
OTHER = ("Rprop",)
#: Every patch of the defaults raises wherever it can.
RAISING = """
from yolo_patches import registry, seams
from yolo_patches.patches.val_batch import ValBatch
def fail(*args):
    raise RuntimeError("ours")
every = [cls for cls in vars(seams).values() if isinstance(cls, type) and issubclass(cls, seams.Seam)]
class Raising(ValBatch):
    def handlers(self):
        return {cls: fail for cls in every if not issubclass(cls, seams.Act)}
    def around(self):
        return {cls: fail for cls in every if issubclass(cls, seams.Act)}
    prove = verify = close = undo = fail
run["patch"] = registry.patches()["val-batch"]
registry.patches()["val-batch"] = Raising
"""
BACK = """
from yolo_patches import registry
from yolo_patches.patches.val_batch import ValBatch
registry.patches()["val-batch"] = ValBatch
"""


@pytest.fixture
def renamed(tmp_path):
    """Return a function that copies a checkout in which something is renamed."""

    def make(root, name, edits):
        copy = Path(shutil.copytree(root, tmp_path / "checkouts" / name.replace(" ", "-"), ignore=ignored))
        for files, old, new in edits:
            paths, found = list(copy.glob(files)), 0
            for path in paths:
                text, count = re.subn(old, new, path.read_text(encoding="utf-8"), flags=re.MULTILINE)
                if count:
                    path.write_text(text, encoding="utf-8")
                    found += count
            assert found, (name, old)
        return copy

    return make


def ignored(folder, names):
    return [name for name in names if name.endswith((".jpg", ".pyc", ".ipynb")) or name == "__pycache__"]


@pytest.fixture
def old_stack(tmp_path):
    """Return the environment in which upstream runs without compat."""
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "pkg_resources.py").write_text(OLD_SETUPTOOLS)
    return {"PYTHONPATH": str(tmp_path / "old"), "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}


@pytest.mark.parametrize("upstream", ["yolov9", "yolov5"])
def test_a_checkout_that_we_have_never_seen(
    upstream, drive, renamed, old_stack, yolov9, yolov5, models, digits, tmp_path
):
    root, model, hyp, cases = {
        "yolov9": (yolov9, "single", "hyp9", RENAMED9),
        "yolov5": (yolov5, "v5-detect", "hyp5", RENAMED5),
    }[upstream]
    runs = []
    for name, (edits, lacking) in cases.items():
        copy = renamed(root, name, edits)
        for spec in SPECS:
            case = f"{name}, {spec}"
            words = arguments(models / f"{model}.yaml", digits("detect", 8, 4), models / f"{hyp}.yaml", tmp_path, case)
            words = ["--config" if word == "--cfg" and name == "cfg" else word for word in words]
            fresh = lacking is None  # that is told while it is imported
            runs.append(run(case, copy, "train.py", [*words, "--noplots"], spec, fresh=fresh))
    done = drive(runs, **old_stack)
    for name, (_, lacking) in cases.items():
        for spec in SPECS:
            seen, folder = done[f"{name}, {spec}"], tmp_path / f"{name}, {spec}"
            assert "error" not in seen, (name, spec, seen["error"], seen["log"][-2000:])
            like = done[f"{name if name in OTHER else 'nothing'}, none"]
            assert seen["digest"] == like["digest"], (name, spec)
            assert seen["left"] == [], (name, spec)
            assert (folder / "weights" / "best.pt").is_file()
            assert (folder / "patches.json").is_file() is (spec != "none" and lacking is not None), (name, spec)
            if spec == "none":
                assert "yolo-patches" not in seen["log"], (name, spec)
            elif lacking is None:
                assert "yolo-patches: inactive, " in seen["log"], (name, spec)
            else:
                found = statuses(folder)
                unavailable = {patch for patch, (status, _) in found.items() if status == "unavailable"}
                # What would do nothing on one rank is not missed there.
                missed = {patch for patch in lacking if found[patch][0] != "inert"}
                assert set(lacking) - missed <= {"sync-bn", "loss-norm"}, (name, spec)
                of_all = OF_ALL.get(name, set()) if spec == "all" else set()
                assert unavailable == missed | of_all, (name, spec)
                assert "failed" not in {status for status, _ in found.values()}, (name, spec)
                for patch in missed:
                    assert f"{patch} is unavailable, training goes on without it" in seen["log"], (name, spec)
                if "val-batch" not in lacking:
                    assert found["val-batch"] == ("active", True), (name, spec)


def test_faults(drive, renamed, old_stack, yolov9, models, digits, tmp_path):
    """What upstream ends with, it ends with; what is ours is a warning."""
    raising = renamed(
        yolov9, "raising", [("utils/loss_tal.py", r"m = de_parallel\(model\).*", "raise RuntimeError('no')")]
    )
    unknown = renamed(yolov9, "unknown", RENAMED["check_train_batch_size"][0])
    doctored = renamed(
        yolov9,
        "doctored",
        [
            # No gradient is clipped, and validations read another loader than the one that was built for them.
            ("train.py", r"torch\.nn\.utils\.clip_grad_norm_\(.*\)", r"(lambda: \g<0>)"),
            (
                "train.py",
                r"dataloader=val_loader",
                "dataloader=type(val_loader)(val_loader.dataset, 3, collate_fn=val_loader.collate_fn)",
            ),
        ],
    )
    no_lr0 = tmp_path / "no_lr0.yaml"
    no_lr0.write_text((models / "hyp9.yaml").read_text().replace("lr0: 0.01", "lr: 0.01"))

    def case(name, spec, root=yolov9, hyp=models / "hyp9.yaml", words=(), **more):
        files = (models / "single.yaml", digits("detect", 8, 4), hyp, tmp_path)
        words = (*arguments(*files, name), "--noplots", *words)
        return run(name, root, "train.py", words, spec, **more)

    resume = ("--resume", tmp_path / "resumed" / "weights" / "last.pt")
    options = str(tmp_path / "resumed" / "opt.yaml")
    report = tmp_path / "resumed" / "patches.json"
    (tmp_path / "unwritable" / "patches.json").mkdir(parents=True)
    runs = [
        case("none", "none"),
        case("raises", "default", before=RAISING),
        case(
            "no facts",
            "default",
            before=BACK + "from yolo_patches.upstreams.scripts import script_facts\n"
            "run, script_facts.facts = None, None\n",
        ),
        case(
            "facts",
            "default",
            before="from importlib import reload\n"
            "from yolo_patches.upstreams.scripts import script_facts\nreload(script_facts)\n",
        ),
        case("unwritable", "all"),
        case("interrupted", "all", steps=1),
        case("lr0, none", "none", hyp=no_lr0),
        case("lr0, all", "all", hyp=no_lr0),
        case("resumed", "compat,val-batch:batch=3"),
        run("again", yolov9, "train.py", resume, None, edits=[(options, "epochs: 1\n", "epochs: 2\n")]),
        run(
            "said",
            yolov9,
            "train.py",
            resume,
            "compat,linear-lr:base_batch=32",
            edits=[(options, "epochs: 2\n", "epochs: 3\n")],
        ),
        run(
            "broken",
            yolov9,
            "train.py",
            resume,
            None,
            edits=[(options, "epochs: 3\n", "epochs: 4\n"), (str(report), '"schema": 1', '"schema": 99')],
        ),
        case("criterion, none", "none", raising),
        case("criterion, all", "all", raising),
        case("measured", "all", words=("--batch-size", -1)),
        case("unknown, none", "none", unknown, words=("--batch-size", -1)),
        case("unknown, all", "all", unknown, words=("--batch-size", -1)),
        case("doctored, scaled", "val-batch,linear-lr:base_batch=32", doctored),
    ]
    done = drive(runs, **old_stack)
    assert all(seen["left"] == [] for seen in done.values())
    for name in ("none", "raises", "no facts", "facts", "unwritable"):
        assert "error" not in done[name], (name, done[name]["error"], done[name]["log"][-2000:])
        assert done[name]["digest"] == done["none"]["digest"], name
    for name, error in (("criterion", "RuntimeError: no"), ("lr0", "KeyError: 'lr0'")):
        assert done[f"{name}, none"]["error"] == done[f"{name}, all"]["error"] == error

    item = entry(plan(tmp_path / "raises"))
    assert (item["status"], item["verified"]) == ("failed", None)
    assert done["raises"]["log"].count("val-batch failed and is dropped, training goes on as upstream has it") == 1
    assert "yolo-patches: inactive for this training: TypeError" in done["no facts"]["log"]
    assert not (tmp_path / "no facts" / "patches.json").exists()
    assert statuses(tmp_path / "facts")["val-batch"] == ("active", True)
    assert done["unwritable"]["log"].count("yolo-patches: no patches.json: ") == 1

    # A resumed run goes on as it was started, unless something is said; then its checkpoint's values do not stand.
    for name in ("again", "said", "broken"):
        assert "Resuming training from" in done[name]["log"], (name, done[name].get("error"), done[name]["log"][-2000:])
        assert "error" not in done[name], (name, done[name]["error"])
    assert [done[name]["validations"][0] for name in ("resumed", "again", "said", "broken")] == [3, 3, 8, 4]
    assert done["said"]["rates"][-1][1] == 0.00025, "half the weight decay at twice the base batch"
    assert "does not say which patches the run was started with" in done["broken"]["log"]
    assert done["broken"]["log"].count("going on with the defaults") == 1

    # AutoBatch: upstream takes 16 images on a CPU, and no data set here has more than eight.
    assert plan(tmp_path / "measured")["global_batch"] == 16
    assert done["measured"]["loaders"] == [[True, 8, 8], [False, 4, 4]]
    assert statuses(tmp_path / "measured")["val-batch"] == ("active", True)
    assert done["unknown, all"]["digest"] == done["unknown, none"]["digest"] == done["measured"]["digest"]
    item = entry(plan(tmp_path / "unknown, all"))
    assert item["status"] == "failed" and "the batch that upstream has measured is not known" in item["reason"]

    # What has no effect does not say that it has.
    found = statuses(tmp_path / "doctored, scaled")
    assert found["val-batch"] == found["linear-lr"] == ("active", False)
    assert (
        "linear-lr did not take effect: the optimizer's steps do not come to the seam"
        in done["doctored, scaled"]["log"]
    )
    assert "val-batch did not take effect" in done["doctored, scaled"]["log"]
