"""The start-up hook: there from a wheel and from an editable install, free, idempotent, and never in the way."""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT, last_json

OURS = {"yolo_patches", "yolo_patches._bootstrap", "yolo_patches.upstreams", "yolo_patches.upstreams.start"}
FINDERS = "import sys, json; print(json.dumps([type(f).__name__ for f in sys.meta_path].count('UpstreamFinder')))"


@pytest.fixture
def python(python):
    """An interpreter from its start is what these tests are about."""
    return functools.partial(python, fresh=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build the wheel with its own back end, in this environment."""
    from hatchling.builders.wheel import WheelBuilder

    folder = tmp_path_factory.mktemp("wheel")
    return Path(next(WheelBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"])))


@pytest.fixture(scope="module")
def bare(wheel, tmp_path_factory):
    """Return the interpreter and the site-packages of an environment that holds the wheel's files and nothing else."""
    home = tmp_path_factory.mktemp("bare")
    venv.create(home, with_pip=False)
    site = next(home.glob("lib/python*/site-packages"))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return home / "bin" / "python", site


def call(python, code, *flags):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    command = [str(python), *flags, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, env=environment)


def test_files_at_the_root_of_the_wheel(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        assert {"yolo_patches.pth", "yolo_patches.start", "yolo_patches/py.typed"} <= set(names)
        # PEP 829: the .start file names the same callable, and disables the import line of the .pth file beside it.
        assert archive.read("yolo_patches.start").decode().strip() == "yolo_patches.upstreams.start:register"
        assert "yolo_patches.upstreams.start.register()" in archive.read("yolo_patches.pth").decode()


def test_active_from_a_wheel(bare):
    assert call(bare[0], FINDERS).stdout.strip() == "1"


def test_active_in_this_installation(python):
    assert last_json(python("-c", FINDERS)) == 1


def test_idempotent(bare):
    code = f"from yolo_patches.upstreams import start; start.register(); start.register(); {FINDERS}"
    assert call(bare[0], code).stdout.strip() == "1"


def test_imports_the_standard_library_only(bare):
    code = "import sys; print(*sorted(sys.modules))"
    with_hook = set(call(bare[0], code).stdout.split())
    without = set(call(bare[0], code, "-S").stdout.split())
    site_itself = set(call(sys.executable, code, "-I").stdout.split()) | {"site", "_sitebuiltins"}
    ours = {name for name in with_hook - without if name.startswith("yolo_patches")}
    assert ours == OURS
    assert with_hook - without - ours <= site_itself | set(sys.stdlib_module_names)


def test_costs_less_than_the_interpreters_own_start(bare):
    """Against modules of the standard library in the same trace: a millisecond is not the same on every machine."""
    call(bare[0], "pass")  # compiles
    shares = []
    for _ in range(9):
        trace = call(bare[0], "pass", "-X", "importtime").stderr
        found = re.findall(r"\|\s+(\d+) \|\s+(yolo_patches\.upstreams\.start|os|encodings)$", trace, re.MULTILINE)
        costs = {name: int(microseconds) for microseconds, name in found}
        shares.append(costs["yolo_patches.upstreams.start"] / (costs["os"] + costs["encodings"]))
    assert min(shares) < 0.6, shares  # the least of them: a busy machine only adds


def test_a_broken_package_does_not_stop_the_interpreter(bare, tmp_path):
    _, site = bare
    hook = site / "yolo_patches" / "_bootstrap.py"
    text = hook.read_text()
    try:
        hook.write_text("raise RuntimeError('broken')")
        assert call(bare[0], "print('alive')").stdout.strip() == "alive"
    finally:
        hook.write_text(text)


def test_a_failing_activation_does_not_stop_the_upstream(bare, tmp_path):
    """The bare environment has no wrapt: importing the upstream must work all the same, and say so once."""
    (tmp_path / "ultralytics.py").write_text("answer = 42")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import ultralytics; print(ultralytics.answer)"
    done = call(bare[0], code)
    assert done.stdout.strip() == "42"
    assert done.stderr.count("yolo-patches: inactive, its start-up failed") == 1


def test_nothing_happens_until_an_upstream_is_imported(python):
    code = "import json, sys; import yolo_patches; print(json.dumps([m for m in sys.modules if 'wrapt' in m]))"
    assert last_json(python("-c", code)) == []


LOOK = """
import json, sys, time
from importlib.util import find_spec
find_spec("json.tool")
started = time.perf_counter()
spec = find_spec(sys.argv[1])
took = time.perf_counter() - started
ours = [name for name in sys.modules if name.startswith(("yolo_patches", "torch", "wrapt"))]
print(json.dumps([spec is not None, sorted(ours), took]))
"""


def test_whoever_only_asks_where_an_upstream_is_pays_nothing(python):
    """`find_spec("ultralytics")` used to import torch and wrapt: seconds."""
    found, ours, took = last_json(python("-c", LOOK, "ultralytics"))
    assert found
    assert set(ours) == OURS
    assert took < 0.05


def test_another_projects_utils_wakes_nobody(python, tmp_path):
    (tmp_path / "utils").mkdir()
    (tmp_path / "utils" / "__init__.py").write_text("answer = 42\n")
    code = """
import json, sys
import utils
type_of_loader = type(utils.__loader__).__name__
ours = [name for name in sys.modules if name.startswith(("yolo_patches", "torch", "wrapt"))]
print(json.dumps([utils.answer, sorted(ours), type_of_loader, "exec_module" in vars(utils.__loader__)]))
"""
    answer, ours, loader, left = last_json(python("-c", code))
    assert (answer, loader, left) == (42, "SourceFileLoader", False)
    scripts = {"yolo_patches.upstreams.scripts", "yolo_patches.upstreams.scripts.recognition"}
    assert set(ours) == OURS | scripts


THIRD_PARTY = """
import json, sys
from yolo_patches import _bootstrap
seen = []
_bootstrap.wake = lambda name, spec: seen.append(name)
_bootstrap.register({"colorsys": None, "wave": lambda spec: False, "chunky": None})
import colorsys, wave
print(json.dumps([seen, sorted(_bootstrap.pending() & {"colorsys", "wave", "chunky"})]))
"""


def test_other_adapters_name_their_packages_themselves(python):
    assert last_json(python("-c", THIRD_PARTY)) == [["colorsys"], ["chunky", "wave"]]


def test_from_an_archive(wheel, python):
    """`python -m zipfile`, pex, and whatever else leaves the files in an archive: data and commands come out of it."""
    code = "import yolo_patches.cli, sys; sys.exit(yolo_patches.cli.main())"
    words = ("doctor", "model=yolov10x.yaml", "optimizer=SGD", "batch=320", "device=cpu", "--json")
    done = python(
        "-c",
        f"import yolo_patches; assert '.whl' in yolo_patches.__file__; {code}",
        *words,
        check=False,
        PYTHONPATH=str(wheel),
    )
    plan = json.loads(done.stdout)
    (found,) = [item for item in plan["patches"] if item["name"] == "linear-lr"]
    assert found["reason"] == "x2 = effective batch 320 / base 160"  # from the recipes
