"""The `yolo-patches` command; as `python -m yolo_patches train ...` also `yolo`."""

from __future__ import annotations

import argparse
import json
import os
import runpy
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from yolo_patches import __version__, api, bench_command, recipes_command, registry
from yolo_patches.adapter import Adapter
from yolo_patches.doctor import finding, machine
from yolo_patches.doctor.examination import examine
from yolo_patches.doctor.measurement import Largest, Measured, Outlook, outlook
from yolo_patches.errors import PatchesError, nearest
from yolo_patches.forecast import Foreseen
from yolo_patches.plan import Plan
from yolo_patches.selection import COMMON_OPTIONS, Option
from yolo_patches.upstreams.scripts import recognition

#: Seconds of each measurement, where nobody says how many.
MEASURE = 30.0
COMMANDS = ("list", "doctor", "bench-loading", "recipes", "verify", "run")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: The words after the program's name; the process's own by default.

    Returns:
        The exit status: 0, 1 where `verify` finds that the guarantees do not hold or `doctor` has warnings, or 2 for
        bad input and for errors that `doctor` has found.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if words and words[0] not in COMMANDS and not words[0].startswith("-"):
            return _yolo(words)
        options = _parser().parse_args(words)
        command = {
            "list": _list,
            "doctor": _doctor,
            "bench-loading": bench_command.run,
            "recipes": recipes_command.run,
            "verify": _verify,
            "run": _run,
        }[options.command]
        status = command(options)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # `| head` has what it wants; the interpreter's own flush at exit must find a place, too
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except PatchesError as error:
        print(f"yolo-patches: error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="yolo-patches", description="YOLO training that comes out right.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar=f"{{{','.join(COMMANDS)},train ...}}")
    as_json = argparse.ArgumentParser(add_help=False)
    as_json.add_argument("--json", action="store_true", help="print JSON")
    commands.add_parser("list", parents=[as_json], help="patches, options, and their status against the upstream here")
    doctor = commands.add_parser(
        "doctor", parents=[as_json], help="show what a training would change and why, without training"
    )
    doctor.add_argument(
        "--measure",
        nargs="?",
        const=str(MEASURE),
        metavar="SECONDS",
        help="train for so many seconds in a folder that is removed, and after each change that may pay "
        f"(default: {MEASURE:g})",
    )
    doctor.add_argument(
        "arguments", nargs=argparse.REMAINDER, help="what you would give to 'yolo train', or a script and its arguments"
    )
    bench_command.add_arguments(
        commands.add_parser(
            "bench-loading", parents=[as_json], help="images a second of your data, by cores, workers and levels"
        )
    )
    recipes_command.add_arguments(
        commands.add_parser("recipes", parents=[as_json], help="what models' authors trained with, and their command")
    )
    verify = commands.add_parser(
        "verify", parents=[as_json], help="prove in about a minute that N ranks train like one process here"
    )
    verify.add_argument("--model", default="yolo11n.yaml", help="a model file (default: %(default)s)")
    verify.add_argument("--world-size", type=int, default=2, help="number of ranks (default: %(default)s)")
    verify.add_argument("--optimizer", default="SGD", help="upstream's name of it (default: %(default)s)")
    run = commands.add_parser("run", parents=[as_json], help="run a script with the patches active")
    run.add_argument("--patches", default="default", help="e.g. all,-val-batch (default: %(default)s)")
    run.add_argument("script", help="a Python file")
    run.add_argument("arguments", nargs=argparse.REMAINDER, help="the script's own arguments")
    return parser


def _yolo(words: list[str]) -> int:
    """Run Ultralytics' own command with the hooks in place, as `yolo` does where the start-up hook is active."""
    guess = nearest(words[0], COMMANDS, cutoff=0.7)
    adapter = _installed("ultralytics")
    if guess or adapter is None:
        raise PatchesError(
            f"unknown command {words[0]!r}{guess}; valid are {', '.join(COMMANDS)} and, where Ultralytics is installed,"
            " what 'yolo' takes"
        )
    api.watch()
    return adapter.command(words)


def _list(options: argparse.Namespace) -> int:
    installed = {name: adapter for name in registry.upstreams() if (adapter := _installed(name))}
    with redirect_stdout(sys.stderr):  # upstream logs while it is imported
        missing = {name: adapter.missing() for name, adapter in installed.items()}
    rows: list[dict[str, Any]] = []
    for name, cls in registry.patches().items():
        status = {
            upstream: "; ".join(dict.fromkeys(f"unavailable: {why[seam]}" for seam in cls.needs if seam in why))
            or "available"
            for upstream, why in missing.items()
            if cls.upstream in ("", upstream)
        }
        rows.append(
            {
                "name": name,
                "default": cls.default,
                "summary": cls.summary,
                "source": cls.source,
                "options": {key: _option(option) for key, option in {**cls.options, **COMMON_OPTIONS}.items()},
                "status": status,
            }
        )
    if options.json:
        upstreams = {name: adapter.version() for name, adapter in installed.items()}
        print(json.dumps({"yolo_patches": __version__, "upstreams": upstreams, "patches": rows}, indent=2))
        return 0
    print(f"yolo-patches {__version__}")
    for name in registry.upstreams():
        print(f"upstream {name}: {installed[name].version() if name in installed else 'not installed'}")
    for row in rows:
        print(f"\n{row['name']}{' (default)' if row['default'] else ''}: {row['summary']}\n  {row['source']}")
        for upstream, status in row["status"].items():
            print(f"  {upstream}: {status}")
        for key, option in row["options"].items():
            print(f"  {row['name']}:{key}=...  {option['help']} ({option['valid']}; default: {option['default']})")
    return 0


def _option(option: Option) -> dict[str, Any]:
    return {"help": option.help, "valid": option.describe(), "default": option.default}


def _installed(name: str) -> Adapter | None:
    """Return an adapter where its upstream is installed, or lies in this folder."""
    adapter = registry.adapter(name)
    return adapter if adapter is not None and adapter.installed() else None


def _doctor(options: argparse.Namespace) -> int:
    words = list(options.arguments)
    as_json = options.json or "--json" in words
    words = [word for word in words if word != "--json"]
    seconds, words = _seconds(options.measure, words)
    script = words[0] if words and words[0].endswith(".py") else None
    if script is None:
        adapter = _installed("ultralytics")
    else:
        found = recognition.of_script(script) if Path(script).is_file() else None
        if found is None:
            raise PatchesError(f"{script} is no training script of {' or '.join(recognition.MARKS)}")
        adapter = registry.adapter(found[0])
    if adapter is None:
        raise PatchesError("doctor asks the installed upstream, and there is none; install ultralytics")
    api.watch()
    with redirect_stdout(sys.stderr):  # upstream's log; stdout holds the answer alone
        foreseen = adapter.forecast(words)
        findings = examine(foreseen, machine.here(foreseen.facts.devices))
        taken = _outlook(adapter, foreseen, words, seconds) if seconds else None
    if as_json:
        answer = {**foreseen.plan.to_dict(), "findings": [one.to_dict() for one in findings]}
        if taken is not None:
            answer["measured"] = taken.to_dict()
        print(json.dumps(answer, indent=2))
    else:
        print("\n".join([_table(foreseen.plan), *map(str, findings), *([] if taken is None else [str(taken)])]))
    return finding.status(findings)


def _seconds(given: str | None, words: list[str]) -> tuple[float, list[str]]:
    """Return how long to measure, 0 for not at all, and the words of the training.

    Raises:
        PatchesError: It is no number of seconds.
    """
    if given is None:
        return 0.0, words
    if "=" in given or given.endswith(".py") or given == "train":  # the flag stood alone
        return MEASURE, [given, *words]
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise PatchesError(f"doctor: --measure {given} is no number of seconds; give e.g. --measure {MEASURE:g}")
    return seconds, words


def _outlook(adapter: Adapter, foreseen: Foreseen, words: list[str], seconds: float) -> Outlook:
    if foreseen.facts.world_size > 1:
        raise PatchesError("doctor --measure trains on one rank; give one device and the batch of one rank")

    def measure(changes: Mapping[str, Any]) -> Measured | None:
        told = ", ".join(f"{name}={value}" for name, value in changes.items()) or "the training as it is"
        print(f"doctor: measuring {told}", file=sys.stderr)
        return adapter.measured(words, changes, seconds)

    def find() -> Largest | None:
        print("doctor: looking for the largest batch that fits, where memory is measured", file=sys.stderr)
        return adapter.at_largest_batch(words, foreseen.plan, seconds)

    return outlook(foreseen, machine.here(foreseen.facts.devices), measure, find)


def _verify(options: argparse.Namespace) -> int:
    if _installed("ultralytics") is None:
        raise PatchesError("verify trains with the installed upstream, and there is none; install ultralytics")
    from yolo_patches.verify import describe, verify

    result = verify(options.model, options.world_size, options.optimizer)
    if options.json:
        print(json.dumps(result, indent=2))
        return 0 if result["holds"] else 1
    print(describe(result))
    return 0 if result["holds"] else 1


def _table(plan: Plan) -> str:
    batch = f"batch {plan.global_batch:g}" if plan.global_batch >= 1 else "batch measured by upstream"
    lines = [
        f"{plan.upstream} {plan.version}, {batch}, {plan.world_size} rank{'s' * (plan.world_size > 1)}, "
        f"patches={plan.selection}"
    ]
    for entry in plan.entries:
        lines.append(f"{entry.name}: {entry.decision.status} - {entry.decision.reason}")
        lines += [f"  {change}" for change in entry.decision.changes]
        lines += [f"  note: {note}" for note in entry.notes]
    return "\n".join(lines)


def _run(options: argparse.Namespace) -> int:
    """Run a script as `python SCRIPT` would, with the adapters active before its first import."""
    if not Path(options.script).is_file():
        raise PatchesError(f"run: no such file: {options.script}")
    api.apply(options.patches)
    sys.argv[:] = [options.script, *options.arguments]
    sys.path.insert(0, str(Path(options.script).resolve().parent))
    try:
        runpy.run_path(options.script, run_name="__main__")
    finally:
        if options.json:
            print(json.dumps(api.status(), indent=2))
    return 0
