"""Ultralytics 8.0.200 to 8.4.190 and later: where its command line, its trainer and its DDP launcher meet the seams."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from types import ModuleType
from typing import ClassVar

from yolo_patches.activation import Adapter
from yolo_patches.errors import PatchesError
from yolo_patches.lifecycle import Forecast, forecasting
from yolo_patches.plan import Plan
from yolo_patches.seams import Seam
from yolo_patches.upstreams.ultralytics import commands, ddp, loss_wrappers, stack_gaps, trainer
from yolo_patches.upstreams.ultralytics.facts import version
from yolo_patches.wrapping import Wrapping


class Ultralytics(Adapter):
    """Adapter for the `ultralytics` package, whichever distribution installed it."""

    name: ClassVar[str] = "ultralytics"

    def hooks(self) -> Mapping[str, Callable[[ModuleType, Wrapping], None]]:
        """Return the modules in which something is wrapped."""
        return {
            "ultralytics.utils": commands.take_argument,
            "ultralytics.cfg": commands.install,
            "ultralytics.engine.model": commands.install_model,
            "ultralytics.engine.trainer": trainer.install,
            "ultralytics.utils.dist": ddp.install,
            **dict.fromkeys(loss_wrappers.MODULES, loss_wrappers.install),
            **dict.fromkeys(stack_gaps.MODULES, stack_gaps.install),
        }

    def missing(self) -> Mapping[type[Seam], str]:
        """Return the seams that the installed BaseTrainer lacks."""
        return trainer.missing(import_module("ultralytics.engine.trainer").BaseTrainer)

    def version(self) -> str:
        """Return the version that the installed distribution declares."""
        return version()

    def command(self, words: list[str]) -> int:
        """Run `yolo` with these words."""
        sys.argv[:] = ["yolo", *words]
        import_module("ultralytics.cfg").entrypoint()
        return 0

    def forecast(self, words: list[str]) -> Plan:
        """Let `yolo train` come as far as its trainer's constructor, which has every argument and has made nothing."""
        token = forecasting.set(True)
        try:
            self.command(words if "train" in words or "mode=train" in words else ["train", *words])
        except Forecast as forecast:
            return forecast.run.plan
        finally:
            forecasting.reset(token)
        raise PatchesError(f"'yolo {' '.join(words)}' starts no training; give what you would give to 'yolo train'")


ADAPTER = Ultralytics()
