"""Trials of a training in a process of their own: some steps and a validation, with some arguments changed."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from yolo_patches.batch_search import Footprint
from yolo_patches.errors import PatchesError
from yolo_patches.facts import Facts
from yolo_patches.selection import spell
from yolo_patches.upstreams.ultralytics import measuring

#: Seconds of steps that show how much memory is taken.
SECONDS = 1.0
#: Seconds after which a trial is given up: a data set is read before its first step.
DEADLINE = 900.0
#: Arguments that say where a run is written, how long it is and who reads along; a trial has its own.
OWN = frozenset((
    "project", "name", "exist_ok", "save_dir", "resume", "plots", "epochs", "patience", "time", "cache", "workers",
    "mode", "verbose", "cfg",
))  # fmt: skip
#: What upstream, and torch, say when memory does not suffice.
OUT_OF_MEMORY = ("out of memory", "MemoryError", "CUBLAS_STATUS_ALLOC_FAILED", "can't allocate memory")
#: Prints which of some devices has the least memory left.
FULLEST = "import sys, torch; print(min(sys.argv[1:], key=lambda device: torch.cuda.mem_get_info(f'cuda:{device}')[0]))"


def run(words: Sequence[str], seconds: float, deadline: float | None = None) -> tuple[Mapping[str, Any] | None, str]:
    """Train in a child process that writes into a folder which is removed.

    Args:
        words: What `yolo` takes.
        seconds: How long to train.
        deadline: Seconds after which it is killed.

    Returns:
        What it has measured, None where it did not come that far; the end of what it said.

    Raises:
        subprocess.TimeoutExpired: It has taken longer than its deadline.
    """
    with tempfile.TemporaryDirectory() as scratch:
        child = [sys.executable, "-m", measuring.__name__, str(seconds), scratch, *words]
        done = subprocess.run(child, capture_output=True, check=False, timeout=deadline)
        answer = Path(scratch, measuring.ANSWER)
        said = done.stderr.decode(errors="replace")[-4000:]
        return (json.loads(answer.read_text(encoding="utf-8")) if answer.exists() else None), said


def last_line(said: str) -> str:
    """Return the line in which a child process that has failed says why.

    Args:
        said: The end of what it said.
    """
    last = (said.strip().splitlines() or ["it said nothing"])[-1]
    return last.removeprefix("yolo-patches: error: ")


class Trials:
    """Trials of one training, on the one of its devices that has the least memory left.

    Args:
        arguments: Upstream's arguments as they were given.
        chosen: The patches of the training -> their options.
        facts: Of the training.
    """

    def __init__(self, arguments: Mapping[str, Any], chosen: Mapping[str, Mapping[str, Any]], facts: Facts) -> None:
        from ultralytics.utils import DEFAULT_CFG_DICT

        self._given = {
            name: value
            for name, value in arguments.items()
            if name in DEFAULT_CFG_DICT and name not in OWN and value is not None
        }
        self._chosen = chosen
        self._devices = [str(number) for number in facts.devices.held] if facts.devices.kind in ("", "cuda") else []
        self._device = ""

    def __call__(self, changes: Mapping[str, Any], without: Sequence[str] = ()) -> Footprint | None:
        """Try the training with some arguments changed; return None where its memory did not suffice.

        Args:
            changes: Argument -> value.
            without: Patches that are left out.

        Raises:
            PatchesError: It has failed for another reason.
        """
        from ultralytics.utils import LOGGER

        told = ", ".join(f"{name}={value}" for name, value in changes.items())
        LOGGER.info(f"yolo-patches: trying {told} for some steps and a validation")
        patches = spell({name: options for name, options in self._chosen.items() if name not in without})
        values = {**self._given, **self._placed(), **changes, "workers": 0, "patches": ",".join(patches) or "none"}
        words = ["train", *(f"{name}={value}" for name, value in values.items())]
        try:
            found, said = run(words, SECONDS, DEADLINE)
        except subprocess.TimeoutExpired:
            raise PatchesError(f"a trial with {told} took longer than {DEADLINE:g} s") from None
        if found is not None:
            return Footprint(
                int(found["batch"]),
                max(int(found["train_bytes"]), int(found.get("val_bytes", 0))),
                int(found["free_bytes"]),
                int(found["weight_bytes"]),
                int(found["batches"]) * int(found["batch"]),
            )
        if any(words in said for words in OUT_OF_MEMORY):
            return None
        raise PatchesError(f"a trial with {told} failed: {last_line(said)}")

    def _placed(self) -> Mapping[str, Any]:
        """Return the device of trials, where there are several: the one that decides."""
        if not self._device and len(self._devices) > 1:
            command = [sys.executable, "-c", FULLEST, *self._devices]
            done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=DEADLINE)
            self._device = done.stdout.strip()
        return {"device": self._device} if self._device else {}
