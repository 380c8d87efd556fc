"""What today's stack has taken from YOLOv9 and YOLOv5: failing without compat, working with it, for them alone."""

from __future__ import annotations

from tests.conftest import last_json
from tests.scripts.conftest import arguments, plan, run, statuses
from tests.scripts.test_training import OLD_SETUPTOOLS


def test_upstream_alone(script, drive, yolov9, models, data, tmp_path):
    """It does not start; with an older setuptools, it dies after the last epoch, and its plots are lost."""
    words = arguments(models / "dual.yaml", data("detect"), models / "hyp9.yaml", tmp_path)
    done = script(yolov9, "train_dual.py", *words, YOLO_PATCHES="none", check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "ModuleNotFoundError: No module named 'pkg_resources'"
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "pkg_resources.py").write_text(OLD_SETUPTOOLS)
    (seen,) = drive(
        [run("alone", yolov9, "train_dual.py", words)], PYTHONPATH=str(tmp_path / "old"), YOLO_PATCHES="all,-compat"
    ).values()
    assert "UnpicklingError: Weights only load failed" in seen["error"]
    assert "AttributeError: 'FreeTypeFont' object has no attribute 'getsize'" in seen["log"]
    assert "FutureWarning: `torch.cuda.amp" in seen["log"]
    # The other patches act without it, and say what came of the run so far.
    assert seen["loaders"] == [[True, 16, 4], [False, 12, 4]]
    assert seen["validations"] == [4]
    assert seen["left"] == []
    assert plan(tmp_path / "run")["selection"] == "all,-compat"
    assert statuses(tmp_path / "run")["val-batch"] == ("active", True)


LIBRARIES = """
import json, sys
import numpy, torch
load, trapz = torch.load, hasattr(numpy, "trapz")
from utils import general, metrics
from yolov5.utils import general as general5, metrics as metrics5
found = {}
for name, module in (("yolov9", metrics), ("yolov5", metrics5)):
    try:
        found[name] = module.compute_ap([0.1, 0.9], [0.9, 0.5])[0]
    except AttributeError as error:
        found[name] = str(error)
found["untouched"] = [torch.load is load, hasattr(numpy, "trapz") is trapz, "pkg_resources" not in sys.modules]
print(json.dumps(found))
"""


def test_libraries_are_replaced_in_upstream_alone(python, yolov9, package5, tmp_path):
    """A checkout of one and the package of the other, in one process."""
    paths = f"{yolov9}:{package5}"
    found = last_json(python("-c", LIBRARIES, YOLO_PATCHES="all", PYTHONPATH=paths))
    assert found.pop("untouched") == [True, True, True]
    assert all(0 <= found[name] <= 1 for name in ("yolov9", "yolov5"))
    (tmp_path / "pkg_resources.py").write_text(OLD_SETUPTOOLS)
    bare = last_json(python("-c", LIBRARIES, YOLO_PATCHES="none", PYTHONPATH=f"{paths}:{tmp_path}"))
    assert all("has no attribute 'trapz'" in bare[name] for name in ("yolov9", "yolov5"))


LOADING = """
import json, pickle, sys, torch
from models.experimental import attempt_load
from models.yolo import Model
torch.save({"model": Model(sys.argv[1], ch=3, nc=10), "ema": None}, "mine.pt")
torch.save({"model": Model(sys.argv[1], ch=3, nc=10), "ema": None}, "other.pt")
result = {}
for name in ("mine.pt", "other.pt", "sub/../mine.pt"):
    try:
        result[name] = type(attempt_load(name)).__name__
    except pickle.UnpicklingError:
        result[name] = "refused"
print(json.dumps(result))
"""


def test_only_files_that_the_user_named_are_unpickled(python, yolov9, models, tmp_path):
    (tmp_path / "sub").mkdir()
    words = ("-c", LOADING, models / "single.yaml", "--weights", "mine.pt")
    found = last_json(python(*words, YOLO_PATCHES="compat", PYTHONPATH=str(yolov9)))
    assert found == {"mine.pt": "DetectionModel", "other.pt": "refused", "sub/../mine.pt": "DetectionModel"}


def test_resume_goes_on_as_it_was_started(script, yolov9, models, data, tmp_path):
    """Also with what upstream needs to be imported, and to unpickle weights/last.pt: nothing is said a second time."""
    words = arguments(models / "single.yaml", data("detect"), models / "hyp9.yaml", tmp_path)
    script(yolov9, "train.py", *words, "--noplots", "--patches", "compat,val-batch:batch=3")
    folder = tmp_path / "run"
    options = (folder / "opt.yaml").read_text()
    (folder / "opt.yaml").write_text(options.replace("epochs: 1\n", "epochs: 2\n"))
    # train.py strips into another file: last.pt still has its optimizer.
    done = script(yolov9, "train.py", "--resume", folder / "weights" / "last.pt")
    assert "Resuming training from" in done.stderr + done.stdout
    assert plan(folder)["selection"] == "compat,val-batch:batch=3"
    assert statuses(folder)["compat"] == statuses(folder)["val-batch"] == ("active", True)
