"""Upstreams that we have never seen: names that are gone, and code that does something else under the same names.

Whatever upstream has become, it trains on: `patches=none` to the last bit as the release that it was made of, `all` to
the end. And a plan says `verified` only of what is measured outside of the package.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.conftest import NEWEST, OLDEST, ROOT, entry, last_json


def renamed(name, new=None):
    return [[f"**/*.{kind}", rf"\b{name}\b", new or f"{name}_renamed"] for kind in ("py",)]


#: Name -> the patches that cannot act, or cannot be sure, where upstream has renamed it. All others go on.
RENAMED = {
    "check_dict_alignment": [],
    "cfg2dict": [],
    "entrypoint": [],
    "generate_ddp_file": [],
    "TaskAlignedAssigner": [],
    "BaseTrainer": ["val-batch", "linear-lr"],
    "run_callbacks": ["val-batch", "linear-lr"],
    "get_dataloader": ["val-batch"],
    "build_optimizer": ["linear-lr"],
    "optimizer_step": ["linear-lr"],
    "resume_training": ["linear-lr"],
    "preprocess_batch": [],
    "set_model_attributes": [],
    "final_eval": [],
    "save_model": [],
    "tloss": [],
    "accumulate": ["linear-lr"],
    "nbs": ["linear-lr"],
    "_build_train_pipeline": [],
    "_get_warmup_iterations": [],
    "test_loader": ["val-batch"],
    "trainer.batch_size": ["val-batch", "linear-lr"],
    "trainer.optimizer": ["linear-lr"],
    "trainer.save_dir": [],
}
#: What the trainer alone calls so: others have attributes of these names, too.
OWN = {name: rf"\b(self|trainer)\.{name}\b" for name in ("accumulate", "batch_size", "optimizer", "save_dir")}
#: On the oldest release, which has most of them in the same places.
OLD = ("BaseTrainer", "run_callbacks", "optimizer_step", "preprocess_batch", "cfg2dict", "tloss")
#: Where `patches=none` is trained with, too: what is wrapped before anybody has chosen.
NONE = ("check_dict_alignment", "cfg2dict", "entrypoint", "BaseTrainer", "run_callbacks", "nbs", "TaskAlignedAssigner")
TRAINER = "engine/trainer.py"
SPEC = "all,linear-lr:base_batch=4"


@pytest.fixture(scope="module")
def doctored(tmp_path_factory, environment, interpreter, digits):
    """Return a function that trains doctored copies of a release, each in a child of one process."""
    import subprocess

    def run(version, jobs):
        folder = os.environ.get("YOLO_PATCHES_UPSTREAMS")
        if folder is None or not Path(folder, version).is_dir():
            pytest.skip(f"no release {version}: 'dev.py test' makes a folder of them")
        home = tmp_path_factory.mktemp("doctored")
        command = [interpreter, ROOT / "tests/upstream/doctored.py", Path(folder, version), digits(), home]
        done = subprocess.run(
            [*map(str, command), json.dumps(jobs)],
            cwd=home,
            env=environment,
            capture_output=True,
            text=True,
            timeout=900,
        )
        if done.returncode:
            pytest.fail(f"{done.stdout[-3000:]}\n{done.stderr[-6000:]}")
        return last_json(done)

    return run


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_each_name_renamed_in_turn(version, doctored):
    names = list(RENAMED) if version == NEWEST else OLD
    jobs = {}
    for name in names:
        own = name.removeprefix("trainer.")
        edits = [[TRAINER, OWN[own], rf"\1.{own}_renamed"]] if own in OWN else renamed(name)
        if own == "save_dir":
            edits = [*edits, ["models/yolo/detect/train.py", OWN[own], rf"\1.{own}_renamed"]]
        if name == "nbs":
            edits = [*edits, ["cfg/default.yaml", r"\bnbs\b", "nbs_renamed"]]
        specs = ["none", SPEC] if name in NONE and version == NEWEST else [SPEC]
        jobs[name] = {"edits": edits, "specs": specs, "train": {"nbs_renamed": 8} if name == "nbs" else {}}
    jobs["nothing"] = {"specs": ["none", SPEC]}
    results = doctored(version, jobs)
    upstream = results["nothing"]["none"]["weights"]
    assert upstream is not None
    for name in [*names, "nothing"]:
        result = results[name]
        assert "import" not in result, (name, result.get("import"))
        for spec in jobs[name]["specs"]:
            seen = result[str(spec)]
            assert seen["error"] is None, (name, spec, result["log"][-3000:])
            assert seen["weights"] is not None, (name, spec)
            if spec == "none":
                assert seen["weights"] == upstream, name
        check(name, result[SPEC], result["log"], RENAMED.get(name, []))


def check(name, seen, log, cannot):
    """The plan says `verified` of nothing that was not seen outside."""
    plan = seen["plan"]
    acts = {"val-batch": seen["val"] == 8, "linear-lr": [lr for lr, *_ in seen["steps"]] == pytest.approx([0.02, 0.02])}
    for patch, acted in acts.items():
        if name == "trainer.save_dir":  # without it there is no place for patches.json
            assert acted and plan is None and "something could not be recorded" in log
            continue
        if plan is None:  # nothing could be patched, and that is said
            assert patch in cannot and not acted, (name, patch)
            assert "has no effect, this Ultralytics is not supported" in log, name
            continue
        decided = entry(plan, patch)
        claims = decided["status"] == "active" and decided["verified"] is True
        assert acted or not claims, (name, decided, log[-3000:])
        assert claims is (patch not in cannot), (name, decided, log[-3000:])


#: Upstream's step in the loop itself, without the method.
INLINED = (
    "torch.nn.utils.clip_grad_norm_(self.model.parameters(), max_norm=1e9); self.scaler.step(self.optimizer); "
    "self.scaler.update(); self.optimizer.zero_grad(); self.ema.update(self.model)"
)
CHANGED = {
    "the step is inlined": [[TRAINER, r"self\.optimizer_step\(\)", INLINED]],
    "the loss is not multiplied by the batch": [["utils/loss.py", r"return loss \* batch_size,", "return loss,"]],
    "weight decay is not scaled": [
        [TRAINER, r"weight_decay = self\.args\.weight_decay \*.*", "weight_decay = self.args.weight_decay"]
    ],
    "the validator has another loader": [
        [
            TRAINER,
            r"( +)self\.run_callbacks\(\"on_train_start\"\)",
            r"\1self.validator.dataloader = type(self).get_dataloader(self, self.data[self.args.split], batch_size=5, "
            r'rank=-1, mode="val")\n\1self.run_callbacks("on_train_start")',
        ]
    ],
}


def test_changed_under_the_same_names(doctored):
    jobs = {
        name: {"edits": edits, "specs": ["none", "all,linear-lr:base_batch=8"], "train": {"batch": 16, "nbs": 16}}
        for name, edits in CHANGED.items()
    }
    results = doctored(NEWEST, jobs)
    for name in CHANGED:
        upstream, seen = results[name]["none"], results[name]["all,linear-lr:base_batch=8"]
        assert seen["error"] is None, (name, results[name]["log"][-3000:])
        (lr0, decay0, norm0), (lr, decay, norm) = upstream["steps"][0], seen["steps"][0]
        linear, val = entry(seen["plan"], "linear-lr"), entry(seen["plan"], "val-batch")
        if name == "the step is inlined":
            assert (lr, decay, norm) == pytest.approx((lr0, decay0, norm0))  # this step is upstream's
            assert linear["verified"] is False
            assert "do not come to the seam" in linear["reason"]
        elif name == "the loss is not multiplied by the batch":
            # A mean: the gradient does not grow with the batch, and must not be made smaller.
            assert (lr, decay) == pytest.approx((2 * lr0, decay0 / 2))
            assert {change["what"]: change["patched"] for change in linear["changes"]}[
                "gradient before the clip"
            ] == "x1"
            assert linear["verified"] is True
        elif name == "weight decay is not scaled":
            assert (lr, decay) == pytest.approx((2 * lr0, decay0 / 2))  # at nbs itself the two are the same
        else:
            assert (val["status"], val["verified"]) == ("active", False)
            assert linear["verified"] is True


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_an_inlined_step_is_upstreams_while_it_warms_up(version, doctored):
    """Biases warm up from a rate of their own, which we have not scaled: every rate of every step is compared."""
    more = {"epochs": 3, "warmup_epochs": 2.0}
    edits = CHANGED["the step is inlined"]
    result = doctored(version, {"inlined": {"edits": edits, "specs": ["none", SPEC], "train": more}})["inlined"]
    upstream, seen = result["none"], result[SPEC]
    assert seen["error"] is None, result["log"][-3000:]
    assert entry(seen["plan"], "linear-lr")["verified"] is False
    assert "x2 = effective batch 8 / base 4" in result["log"]
    assert max(upstream["rates"][0]) == pytest.approx(0.1)
    assert len(upstream["rates"]) == len(seen["rates"]) == 6
    for step, (theirs, ours) in enumerate(zip(upstream["rates"], seen["rates"])):
        assert ours == pytest.approx(theirs, rel=1e-9, abs=1e-15), step
    assert [norm for *_, norm in seen["steps"]] == pytest.approx([norm for *_, norm in upstream["steps"]], rel=1e-4)
