"""Real upstreams, real images, real processes: what the tests share."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from tests import forked

ROOT = Path(__file__).resolve().parent.parent
ABSENT = ROOT / "tests" / "absent.py"
FORKED = ROOT / "tests" / "forked.py"
OLDEST, NEWEST = "8.2.103", "8.4.190"
#: A small model of each task.
MODELS = {
    "detect": "yolov8n.yaml",
    "segment": "yolov8n-seg.yaml",
    "pose": "yolov8n-pose.yaml",
    "obb": "yolov8n-obb.yaml",
    "classify": "yolov8n-cls.yaml",
    "semantic": "yolo26n-sem.yaml",
    "depth": "yolo26n-depth.yaml",
}
RELEASES = (OLDEST, "8.3.0", "8.3.253", "8.4.0", "8.4.60", NEWEST)


#: What shows on one more release, or number of ranks, what its neighbour in the file shows: `--matrix` runs it, too.
MATRIX = (
    "test_accumulate.py::test_a_resumed_run_accumulates_as_before[8.0.200]",
    "test_accumulate.py::test_a_step_has_as_many_images_as_were_asked_for[8.0.200]",
    "test_async_val.py::test_batches_and_losses_of_ranks[8.3.253]",
    "test_async_val.py::test_the_same_training[8.3.253]",
    "test_best.py::test_early_stopping_by_a_mean[8.0.200]",
    "test_checkpoint.py::test_used_and_resumed_without_the_package[8.2.103]",
    "test_compat.py::test_training_to_the_end[8.1.34]",
    "test_compat.py::test_training_to_the_end[8.3.100]",
    "test_doctor.py::test_measured[8.0.200]",
    "test_doctored.py::test_an_inlined_step_is_upstreams_while_it_warms_up[8.2.103]",
    "test_doctored.py::test_each_name_renamed_in_turn[8.2.103]",
    "test_exact_ema.py::test_half_precision_leaves_the_average_as_it_is[8.4.60]",
    "test_fast_load.py::test_device[8.4.60]",
    "test_fast_load.py::test_near[8.0.200]",
    "test_fast_val.py::test_crowds[8.0.200]",
    "test_fast_val.py::test_crowds[8.2.103]",
    "test_fast_val.py::test_crowds[8.3.253]",
    "test_fast_val.py::test_fuzzed[8.2.103-by_overlap]",
    "test_fast_val.py::test_fuzzed[8.4.60-by_overlap]",
    "test_fast_val.py::test_tasks[8.3.253-tasks1]",
    "test_feeding.py::test_trainings[8.0.200]",
    "test_invariance.py::test_losses_in_results_csv[8.2.103-counts0]",
    "test_invariance.py::test_ranks[4-yolov8n-pose.yaml-AdamW]",
    "test_invariance.py::test_ranks[5-yolo26n.yaml-SGD]",
    "test_invariance.py::test_upstream_rounds",
    "test_label_smoothing.py::test_targets_of_training_are_smoothed_and_those_of_validation_are_not[8.2.103]",
    "test_last_pixels.py::test_trainings[8.4.60]",
    "test_linear_lr.py::test_base_batch_is_upstream_and_the_plan_says_the_rest[8.2.103]",
    "test_linear_lr.py::test_resume_with_another_batch[8.2.103]",
    "test_linear_lr.py::test_step_grows_with_the_batch[8.2.103]",
    "test_linear_lr.py::test_warm_up[8.2.103]",
    "test_loss_norm.py::test_releases[8.2.103]",
    "test_loss_norm.py::test_releases[8.3.253]",
    "test_loss_norm.py::test_releases[8.4.0]",
    "test_loss_norm.py::test_releases[8.4.60]",
    "test_loss_probe.py::test_no_trace_in_a_training[8.2.103]",
    "test_one_process.py::test_trainings[8.2.103]",
    "test_oom_guard.py::test_a_training_ends_as_without_failures[8.3.253]",
    "test_oom_on_ranks.py::test_ranks_end_as_without_failures[yolov5]",
    "test_oom_ranks.py::test_every_rank_makes_the_step[3-kernels3]",
    "test_releases.py::test_validation_batch[8.3.0]",
    "test_releases.py::test_validation_batch[8.3.253]",
    "test_releases.py::test_validation_batch[8.4.0]",
    "test_releases.py::test_validation_batch[8.4.60]",
    "test_samples.py::test_the_same_samples[yolov9]",
    "test_shared_cache.py::test_nothing_is_left_of_a_run_that_ends_in_the_middle[raises in a step]",
    "test_shared_cache.py::test_nothing_is_left_of_a_run_that_ends_in_the_middle[raises while it decodes]",
    "test_shared_cache.py::test_one_copy_and_the_same_training[8.3.253]",
    "test_val_period.py::test_every_third_epoch[8.2.103]",
    "test_warmup.py::test_every_iteration_is_the_formulas[8.0.200]",
    "test_workers.py::test_generated_worker_file_activates_where_the_hook_does_not_run[8.2.103]",
)


def pytest_addoption(parser):
    parser.addoption("--matrix", action="store_true", help="run every release and number of ranks")


def pytest_collection_modifyitems(config, items):
    items.sort(key=lambda item: "/unit/" in item.nodeid)  # short ones last: no process waits for another's long one
    if config.getoption("--matrix"):
        return
    left_out = [item for item in items if item.nodeid.rpartition("/")[2] in MATRIX]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session")
def matrix(request):
    """Return whether tests try everything, not what stands for it."""
    return request.config.getoption("--matrix")


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """Return a function of the task that makes its data set and returns the `data=` argument."""
    spec = importlib.util.spec_from_file_location("make_digits", ROOT / "examples" / "make_digits.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_digits"] = module
    spec.loader.exec_module(module)
    root = tmp_path_factory.mktemp("digits")

    @functools.cache
    def make(task="detect", train=16, val=12):
        return str(module.make_digits(root / f"{task}-{train}-{val}", task=task, train=train, val=val, imgsz=64))

    return make


class Forks:
    """A process that has imported what every training imports, and becomes one for each request (`tests/forked.py`).

    Args:
        words: How it is started.
        environment: What it is started with.

    Attributes:
        environment: What it is started with.
        interpreter: A file that can be run in place of the interpreter.
    """

    def __init__(self, words, environment):
        self._folder = tempfile.mkdtemp(prefix="forks")
        self._address = str(Path(self._folder, "socket"))
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self._address)
            listener.listen()
            number = listener.fileno()
            command = [*words, str(FORKED), "serve", str(number)]
            self._process = subprocess.Popen(
                command, cwd=self._folder, env=environment, stdin=subprocess.PIPE, pass_fds=(number,)
            )
        self.environment = environment
        self.interpreter = str(Path(self._folder, "python"))
        Path(self.interpreter).write_text(f'#!/bin/sh\nexec {sys.executable} -SEI {FORKED} ask {self._address} "$@"\n')
        Path(self.interpreter).chmod(0o755)

    def run(self, words, folder, environment, timeout):
        """Return a finished process, as `subprocess.run` does; raise its TimeoutExpired."""
        with (
            tempfile.TemporaryFile("w+", errors="replace") as out,
            tempfile.TemporaryFile("w+", errors="replace") as err,
        ):
            with open(os.devnull) as nothing:
                files = tuple(file.fileno() for file in (nothing, out, err))
                stream = forked.ask(self._address, words, environment, str(folder), files)
            child = int(stream.readline())
            clock = threading.Timer(timeout, os.kill, (child, signal.SIGKILL))
            clock.start()
            status = int(stream.readline())
            if not clock.is_alive():
                raise subprocess.TimeoutExpired(words, timeout)
            clock.cancel()
            texts = []
            for file in (out, err):
                file.seek(0)
                texts.append(file.read())
        return subprocess.CompletedProcess(words, status, *texts)

    def close(self):
        self._process.stdin.close()
        self._process.wait()
        shutil.rmtree(self._folder)


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """Return what becomes child processes whose environment has no network, a font in place and nothing selected."""
    folder = tmp_path_factory.mktemp("config")
    import matplotlib

    shutil.copy(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"), folder / "Arial.ttf")
    # Children may keep what they compile: each of them would spend four seconds on torch and pandas anew.
    dropped = ("YOLO_PATCHES", "PYTEST_", "PYTHONDONTWRITEBYTECODE")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(dropped)}
    folders = {"YOLO_CONFIG_DIR": str(folder), "YOLOV5_CONFIG_DIR": str(folder)}
    server = Forks((sys.executable,), {**kept, **folders, "YOLO_OFFLINE": "true", "OMP_NUM_THREADS": "1"})
    yield server
    server.close()


@pytest.fixture(scope="session")
def environment(server):
    """Return the environment of child processes, in which torchrun's ranks begin where their imports have ended."""
    return {**server.environment, "PYTHON_EXEC": server.interpreter}


@pytest.fixture(scope="session")
def interpreter(server):
    """Return what stands for `sys.executable` in a command, and begins where its imports have ended."""
    return server.interpreter


@pytest.fixture(scope="session")
def release():
    """Return a function of the version that gives the environment variables with which it is imported."""
    folder = os.environ.get("YOLO_PATCHES_UPSTREAMS")

    def select(version):
        if folder is None or not Path(folder, version).is_dir():
            pytest.skip(
                f"no release {version}: YOLO_PATCHES_UPSTREAMS names no folder with it ('dev.py test' makes one)"
            )
        return {"PYTHONPATH": str(Path(folder, version))}

    return select


@pytest.fixture(scope="session")
def forks(server):
    """Return a function of an interpreter's words and environment that gives the process which becomes its children."""
    started = {}

    def get(words, **variables):
        if not variables:
            return server
        key = (words, variables["ABSENT_BLOCK"])
        if key not in started:
            started[key] = Forks(words, {**server.environment, **variables})
        return started[key]

    yield get
    for each in started.values():
        each.close()


@pytest.fixture
def python(environment, forks, tmp_path):
    """Return a function that runs this interpreter in an empty folder and returns the finished process."""

    def run(*words, absent=False, hook=True, fresh=False, check=True, timeout=300, **variables):
        """Run `python *words`.

        Args:
            absent: yolo_patches cannot be imported.
            hook: False: the start-up hook has not run.
            fresh: An interpreter from its start, not one that has imported torch; so are the ranks that it launches.
        """
        command, before = (sys.executable,), {}
        if absent or not hook:
            # -S keeps site-packages and its start-up files out; the script puts the folders back, blocks the package.
            command += ("-S", str(ABSENT))
            before["ABSENT_PATH"] = json.dumps([p for p in sys.path if p.endswith("-packages") or not absent])
            before["ABSENT_BLOCK"] = "1" if absent else "0"
        words, variables = [str(word) for word in words], {**environment, **before, **variables}
        if fresh or before:
            del variables["PYTHON_EXEC"]
        if fresh:
            done = subprocess.run(
                [*command, *words], cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=timeout
            )
        else:
            done = forks(command, **before).run(words, tmp_path, variables, timeout)
        if check and done.returncode:
            pytest.fail(f"{words} ended with {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}")
        return done

    return run


@pytest.fixture
def yolo(python):
    """Return a function that runs the `yolo` command."""
    return functools.partial(python, Path(sys.executable).with_name("yolo"))


def entry(plan, name="val-batch"):
    """Return one patch's entry in a plan."""
    return next(item for item in plan["patches"] if item["name"] == name)


def last_json(done):
    """Return the last line of a process's standard output, decoded."""
    return json.loads(done.stdout.strip().splitlines()[-1])
