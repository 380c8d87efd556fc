"""Ultralytics 8.0.200 to 8.4.190 and later: where its command line, its trainer and its DDP launcher meet the seams."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import fields
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

from yolo_patches.activation import ENVIRONMENT, activation
from yolo_patches.adapter import Adapter, Install
from yolo_patches.defect import found_in, number
from yolo_patches.doctor.loading import Figures
from yolo_patches.doctor.measurement import Largest, Measured
from yolo_patches.errors import PatchesError
from yolo_patches.forecast import Forecast, Foreseen, forecasting
from yolo_patches.patch import Patch
from yolo_patches.plan import Plan
from yolo_patches.seams import Seam
from yolo_patches.wrapping import Wrapping

#: Upstream module -> the module of ours that wraps in it, and its function. Imported when upstream's is: the adapter
#: itself is loaded in every process that asks for the patches' names.
HOOKS: Mapping[str, tuple[str, str]] = {
    "ultralytics.utils": ("commands", "take_argument"),
    "ultralytics.cfg": ("commands", "install"),
    "ultralytics.engine.model": ("commands", "install_model"),
    "ultralytics.engine.trainer": ("trainer", "install"),
    "ultralytics.data.base": ("cached_images", "install"),
    "ultralytics.utils.dist": ("ddp", "install"),
    "ultralytics.utils.tal": ("loss_wrappers", "install"),
    "ultralytics.utils.loss": ("loss_wrappers", "install"),
    "ultralytics.models.utils.loss": ("loss_wrappers", "install"),
    "ultralytics.nn.distill_model": ("loss_wrappers", "install"),
    "ultralytics.nn.tasks": ("stack_gaps", "install"),
    "ultralytics.utils.torch_utils": ("stack_gaps", "install"),
    "ultralytics.utils.metrics": ("stack_gaps", "install"),
}
#: The oldest release that is supported.
FLOOR = "8.0.200"
#: The patch whose search `doctor --measure` lets run.
SEARCH = "auto-batch"
#: Task -> what names its model files; without detection, whose have none.
SUFFIXES = {"segment": "-seg", "classify": "-cls", "pose": "-pose", "obb": "-obb"}


class Ultralytics(Adapter):
    """Adapter for the `ultralytics` package, whichever distribution installed it."""

    name: ClassVar[str] = "ultralytics"
    packages: ClassVar[tuple[str, ...]] = ("ultralytics",)

    def installed(self) -> bool:
        """Return whether the package can be found."""
        return find_spec("ultralytics") is not None

    def hooks(self) -> Mapping[str, Install]:
        """Return the modules in which something is wrapped."""
        return {module: _lazily(*where) for module, where in HOOKS.items()}

    def patches(self) -> Mapping[str, type[Patch]]:
        """Return the defects of Ultralytics' releases."""
        from yolo_patches.upstreams.ultralytics import defects

        return found_in(defects)

    def missing(self) -> Mapping[type[Seam], str]:
        """Return the seams that the installed BaseTrainer lacks: all of them below the oldest supported release."""
        from yolo_patches.upstreams.ultralytics import seam_sources

        why = below_floor() or "; ".join(seam_sources.left_alone())
        if why:
            return dict.fromkeys((*seam_sources.SEAMS, *seam_sources.ELSEWHERE), why)
        return seam_sources.missing(import_module("ultralytics.engine.trainer").BaseTrainer)

    def version(self) -> str:
        """Return the version that the installed package declares, and whose copy of Ultralytics it is."""
        from yolo_patches.upstreams.ultralytics.facts import described_version

        return described_version()

    def defaults(self) -> Mapping[str, Any]:
        """Return what default.yaml holds."""
        import yaml

        spec = find_spec("ultralytics")
        file = Path(spec.origin).parent / "cfg" / "default.yaml" if spec is not None and spec.origin else None
        loaded = yaml.safe_load(file.read_text(encoding="utf-8")) if file is not None and file.is_file() else None
        return loaded if isinstance(loaded, dict) else {}

    def command(self, words: list[str]) -> int:
        """Run `yolo` with these words."""
        from yolo_patches.upstreams.ultralytics.commands import split

        sys.argv[:] = ["yolo", *words]
        module = import_module("ultralytics.cfg")  # the first import has taken `patches=`; a later command has its own
        sys.argv[1:], activation.command_line = split(words)
        if not hasattr(module, "entrypoint"):
            raise PatchesError("this Ultralytics has no command line that we know: ultralytics.cfg.entrypoint is gone")
        module.entrypoint()
        return 0

    def forecast(self, words: list[str]) -> Foreseen:
        """Let `yolo train` come as far as its trainer's constructor, which has every argument and has made nothing."""
        why = below_floor()
        if why:
            raise PatchesError(why)
        token = forecasting.set(True)
        try:
            self.command(words if "train" in words or "mode=train" in words else ["train", *words])
        except Forecast as forecast:
            return forecast.foreseen
        except PatchesError:
            raise
        except (Exception, SystemExit) as error:
            reason = str(error).strip().splitlines()
            raise PatchesError(
                f"'yolo {' '.join(words)}' does not come as far as training: "
                f"{reason[0] if reason else type(error).__name__}"
            ) from error
        finally:
            forecasting.reset(token)
        raise PatchesError(f"'yolo {' '.join(words)}' starts no training; give what you would give to 'yolo train'")

    def measured(self, words: list[str], changes: Mapping[str, Any], seconds: float) -> Measured | None:
        """Train in a child process, which writes into a folder that is removed."""
        from yolo_patches.upstreams.ultralytics import trials

        found, _ = trials.run(_changed(words, changes), seconds)
        return None if found is None else _measured(found)

    def at_largest_batch(self, words: list[str], plan: Plan, seconds: float) -> Largest | None:
        """Train in a child process with batch=-1 and auto-batch, as a user would; it finds the batch."""
        from yolo_patches.upstreams.ultralytics import trials

        selected = plan.entry(SEARCH).decision.status != "off"
        selection = plan.selection if selected else f"{plan.selection},{SEARCH}"
        batch = {"batch": -1} if plan.global_batch >= 1 else {}
        asked = _changed(words, {**batch, "patches": selection})
        try:
            foreseen = self.forecast(asked)
        except PatchesError as error:  # another patch does not go with a batch that is found
            return Largest(str(error))
        if foreseen.plan.entry(SEARCH).decision.status != "active":
            return None
        found, said = trials.run(asked, seconds)
        if found is None:
            return Largest(trials.last_line(said))
        status, reason = found["decided"].get(SEARCH, ("failed", f"{SEARCH} was dropped"))
        return Largest(reason, _measured(found) if status == "active" else None)

    def loading(self, words: list[str], selection: str, seconds: float, cores: int) -> Figures:
        """Make samples in a child process, which writes into a folder that is removed."""
        why = below_floor()
        if why:
            raise PatchesError(why)
        from yolo_patches.upstreams.ultralytics import loading_figures

        start = words if "train" in words or "mode=train" in words else ["train", *words]
        if not any(word.startswith("model=") for word in start):  # upstream would download weights, which nobody needs
            task = next((word[5:] for word in start if word.startswith("task=")), "")
            start = [*start, f"model=yolov8n{SUFFIXES.get(task, '')}.yaml"]
        with tempfile.TemporaryDirectory() as scratch:
            child = [sys.executable, "-m", loading_figures.__name__, str(seconds), scratch, str(cores)]
            # A cache on disk is a file beside each image, which nobody has asked this command for.
            kept = [word for word in start if word != "cache=disk"]
            environ = {**os.environ, ENVIRONMENT: selection}
            done = subprocess.run([*child, *kept], capture_output=True, check=False, text=True, env=environ)
            answer = Path(scratch, loading_figures.ANSWER)
            if not answer.exists():
                said = [line.strip() for line in f"{done.stdout}\n{done.stderr}".splitlines() if line.strip()]
                raise PatchesError(f"bench-loading: the training set cannot be read: {said[-1] if said else 'no word'}")
            found = json.loads(answer.read_text(encoding="utf-8"))
        return Figures(**{**found, "workers": {int(key): value for key, value in found["workers"].items()}})


def _changed(words: list[str], changes: Mapping[str, Any]) -> list[str]:
    """Return the words of a training with some arguments changed, for a child process that leaves nothing behind."""
    start = words if "train" in words or "mode=train" in words else ["train", *words]
    # A cache on disk is a file beside each image, which nobody has asked this command for.
    kept = [word for word in start if word.partition("=")[0] not in changes and word != "cache=disk"]
    return [*kept, *(f"{name}={value}" for name, value in changes.items())]


def _measured(found: Mapping[str, Any]) -> Measured:
    return Measured(**{field.name: found[field.name] for field in fields(Measured) if field.name in found})


def below_floor() -> str:
    """Return a line that names the oldest supported release where the installed one is older, else nothing."""
    from yolo_patches.upstreams.ultralytics.facts import version

    installed = version()
    if number(installed) >= number(FLOOR) or not number(installed):
        return ""
    return f"Ultralytics {installed} is older than {FLOOR}, the oldest release that yolo-patches supports"


def _lazily(ours: str, function: str) -> Install:
    def install(module: ModuleType, wrapping: Wrapping) -> None:
        found = import_module(f"yolo_patches.upstreams.ultralytics.{ours}")
        getattr(found, function)(module, wrapping)

    return install


ADAPTER = Ultralytics()
