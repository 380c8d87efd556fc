"""`yolo-patches recipes`: the published recipes, the command of one, and where a finished run departed from it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from yolo_patches import recipes, registry
from yolo_patches.errors import PatchesError, nearest
from yolo_patches.recipes import MODELS, Recipe, commands, tables


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument("model", nargs="?", help="e.g. yolov10x; all of them where none is named")
    parser.add_argument("--command", dest="reproduce", metavar="MODEL", help="print the command of the authors' run")
    parser.add_argument("--gpus", type=int, help="for --command: how many GPUs to train on (default: as they had)")
    parser.add_argument("--diff", metavar="ARGS", help="args.yaml or opt.yaml of a run: where it departed")


def run(options: argparse.Namespace) -> int:
    """Run the command and return its exit status.

    Raises:
        PatchesError: There is no such model, or no such file.
    """
    if options.diff:
        print(_diff(Path(options.diff), options.json))
        return 0
    if options.gpus is not None and not options.reproduce:
        raise PatchesError("recipes: --gpus is for --command, e.g. recipes --command yolov10x --gpus 8")
    if options.gpus is not None and options.gpus < 1:
        raise PatchesError(f"recipes: {options.gpus} is not a number of GPUs; give 1 or more")
    model = options.reproduce or options.model
    if not model:
        print(json.dumps(_all(), indent=2) if options.json else tables.overview())
        return 0
    name, found = _find(model)
    defaults = _defaults(found[0])
    if options.reproduce:
        made = commands.command(found[0], name, options.gpus, defaults)
        if options.json:
            print(json.dumps(vars(made), indent=2))
            return 0
        print(made.text)
        for remark in made.remarks:
            print(f"# {remark}", file=sys.stderr)  # so that what stands in a pipe is the command alone
    elif options.json:
        print(json.dumps([tables.as_json(recipe, name, defaults) for recipe in found], indent=2))
    else:
        print("\n\n".join(tables.describe(recipe, name, defaults) for recipe in found))
    return 0


def _all() -> list[dict[str, Any]]:
    return [tables.as_json(recipes.of(family, variant), name, {}) for name, family, variant in recipes.names()]


def _find(model: str) -> tuple[str, list[Recipe]]:
    """Return a model's name and its recipes, the one for training from scratch first."""
    stem = Path(model).stem if model.endswith((".yaml", ".yml", ".pt")) else model
    for name in (stem, stem.removesuffix("-seg")):
        found = [recipes.of(family, variant) for known, family, variant in recipes.names() if known == name]
        if found:
            return name, sorted(found, key=lambda recipe: not recipe.scratch)
    known = list(dict.fromkeys(name for name, _, _ in recipes.names()))
    raise PatchesError(
        f"recipes: nothing was published for {model!r}{nearest(stem, known)}; valid are {', '.join(known)}"
    )


def _defaults(recipe: Recipe) -> Mapping[str, Any]:
    """Return the installed upstream's own values, none where it is not installed."""
    adapter = registry.adapter(MODELS[recipe.family][0])
    return adapter.defaults() if adapter is not None and adapter.installed() else {}


def _diff(file: Path, as_json: bool) -> str:
    import yaml

    try:
        run = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise PatchesError(
            f"recipes: {file} cannot be read ({type(error).__name__}); give a run's args.yaml"
        ) from error
    model = run.get("model") or run.get("cfg") if isinstance(run, dict) else None
    if not model:
        raise PatchesError(f"recipes: {file} names no model; give the args.yaml, or opt.yaml, of a run")
    hyp = file.with_name("hyp.yaml")
    if "cfg" in run and hyp.is_file():  # a checkout writes its hyperparameters beside its options
        run = {**run, **yaml.safe_load(hyp.read_text(encoding="utf-8"))}
    name, found = _find(str(model))
    scratch = not str(run.get("weights") or model).endswith(".pt") and not isinstance(run.get("pretrained"), str)
    recipe = next((recipe for recipe in found if recipe.scratch == scratch), found[0])
    run = {"batch": run.get("batch_size"), **run}
    if as_json:
        return json.dumps({"model": name, "differences": tables.difference(recipe, run)}, indent=2)
    return tables.differences(recipe, name, run)
