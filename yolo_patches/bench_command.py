"""`yolo-patches bench-loading`: images a second of your own data, by cores, workers and levels of fast-load."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from yolo_patches import api, cores, registry
from yolo_patches.doctor.loading import Figures, compare
from yolo_patches.errors import PatchesError

#: Seconds of each measurement, where nobody says how many.
SECONDS = 5.0
PATCH = "fast-load"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    parser.add_argument(
        "--seconds", default=str(SECONDS), help="of each measurement, one a core and one for each number of workers"
    )
    parser.add_argument(
        "arguments", nargs=argparse.REMAINDER, help="what you would give to 'yolo train'; data= at least"
    )


def run(options: argparse.Namespace) -> int:
    """Run the command and return its exit status.

    Raises:
        PatchesError: Bad input, or upstream cannot read the data set.
    """
    words = [word for word in options.arguments if word != "--json"]
    as_json, seconds = options.json or "--json" in options.arguments, _seconds(options.seconds)
    names = [word.lstrip("-").partition("=")[0] for word in words]
    if "data" not in names and "cfg" not in names:
        raise PatchesError("bench-loading reads your training images: give data=, e.g. data=coco8.yaml")
    if "patches" in names:
        raise PatchesError(f"bench-loading compares the levels of {PATCH} with upstream: leave patches= out")
    adapter = registry.adapter("ultralytics")
    if adapter is None or not adapter.installed():
        raise PatchesError("bench-loading reads with the installed upstream, and there is none; install ultralytics")
    api.watch()
    there = cores.usable()

    def read(selection: str) -> Figures:
        print(f"bench-loading: reading with patches={selection}", file=sys.stderr)
        return adapter.loading(words, selection, seconds, there)

    found = compare(read, _levels(), there)
    print(json.dumps(found.to_dict(), indent=2) if as_json else found)
    return 0


def _levels() -> dict[str, str]:
    """Return the levels that the patch has, by name, as they are selected."""
    patch: Any = registry.patches().get(PATCH)
    return {level: f"{PATCH}:level={level}" for level in (patch.options["level"].choices if patch else ())}


def _seconds(given: str) -> float:
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise PatchesError(f"bench-loading: --seconds {given} is no number of seconds; give e.g. --seconds {SECONDS:g}")
    return seconds
