"""Recipes for people to read: all of them, one beside upstream's defaults, and one beside a finished run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from yolo_patches import recipes
from yolo_patches.recipes import Recipe, Value

#: What the overview shows of a recipe.
OVERVIEW = ("scale", "mixup", "copy_paste", "optimizer", "lr0", "epochs", "batch", "gpus")


def overview() -> str:
    """Return all published models, a line each."""
    rows: list[tuple[str, ...]] = [("model", *OVERVIEW, "published for")]
    for name, family, variant in recipes.names():
        recipe = recipes.of(family, variant)
        start = "scratch" if recipe.scratch else "fine-tuning"
        rows.append((name, *(_short(recipe, column) for column in OVERVIEW), f"{start}, {recipe.data}"))
    marks = "~ of medium confidence, ? of low, - unknown; `yolo-patches recipes MODEL` shows everything, with sources"
    return "\n".join([*_columns(rows), marks])


def _short(recipe: Recipe, name: str) -> str:
    value = recipe.arguments.get(name) or recipe.run.get(name)
    if value is None or value.value is None:
        return "-"
    return f"{value.value}{ {'high': '', 'medium': '~', 'low': '?'}[value.confidence] }"


def describe(recipe: Recipe, model: str, defaults: Mapping[str, Any]) -> str:
    """Return a recipe beside upstream's defaults, with sources, conflicts and notes.

    Args:
        recipe: The recipe.
        model: The model's name.
        defaults: Upstream's own values; empty where it is not installed.
    """
    start = "from scratch" if recipe.scratch else "from weights"
    lines = [f"{model}: {recipe.title} {recipe.variant}, {start} on {recipe.data}"]
    if recipe.partial:
        lines.append(f"not all of it: {recipe.partial}")
    rows = [("argument", "upstream", "recipe", "confidence", "source")]
    for name, value in {**recipe.arguments, **recipe.run}.items():
        upstream = _text(defaults[name]) if name in recipe.arguments and name in defaults else ""
        same = upstream and not _differ(defaults[name], value.value)
        rows.append(
            (name, upstream, _text(value.value), value.confidence, ", ".join(value.sources) + " =" * bool(same))
        )
    lines += _columns(rows)
    lines += [f"not there: {name}: {why}" for name, why in recipe.absent.items()]
    for cost in recipe.costs:
        lines.append(f"without {', '.join(cost.arguments)}: {cost.text} ({', '.join(cost.sources)})")
    for conflict in recipe.conflicts:
        lines.append(
            f"conflict: {conflict.argument}: a: {conflict.one}; b: {conflict.other}; stronger: {conflict.stronger}"
        )
    lines += [f"note: {note}" for note in recipe.notes]
    used = {name for value in (*recipe.arguments.values(), *recipe.run.values()) for name in value.sources}
    used |= {name for cost in recipe.costs for name in cost.sources}
    lines += [f"{name}: {source.what} <{source.url}>" for name, source in recipe.sources.items() if name in used]
    return "\n".join(lines)


def difference(recipe: Recipe, run: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return where a run departed from its model's recipe, and what that is known to cost.

    Args:
        recipe: The recipe.
        run: The run's arguments, upstream's names.

    Returns:
        A row each: argument, run, recipe, confidence, costs (texts, each with the addresses of its sources).
    """
    rows = []
    for name, value in {
        **recipe.arguments,
        **{key: recipe.run[key] for key in ("batch",) if key in recipe.run},
    }.items():
        if value.value is None or name not in run or not _differ(run[name], value.value):
            continue
        costs = [
            f"{cost.text} ({', '.join(recipe.sources[source].url for source in cost.sources)})"
            for cost in recipe.costs
            if name in cost.arguments
        ]
        rows.append(
            {"argument": name, "run": run[name], "recipe": value.value, "confidence": value.confidence, "costs": costs}
        )
    return rows


def differences(recipe: Recipe, model: str, run: Mapping[str, Any]) -> str:
    """Return `difference` as lines."""
    found = difference(recipe, run)
    start = "from scratch" if recipe.scratch else "from weights"
    head = f"{model}, published {start} on {recipe.data}"
    if not found:
        return f"{head}: the run has every value of the recipe that is known"
    rows = [("argument", "run", "recipe", "confidence"), *(
        (row["argument"], _text(row["run"]), _text(row["recipe"]), row["confidence"]) for row in found
    )]  # fmt: skip
    costs = dict.fromkeys(cost for row in found for cost in row["costs"])
    return "\n".join([head, *_columns(rows), *(f"known: {cost}" for cost in costs)])


def as_json(recipe: Recipe, model: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe as data, with upstream's defaults beside it."""

    def value(name: str, item: Value) -> dict[str, Any]:
        sources = [{"name": key, **vars(recipe.sources[key])} for key in item.sources]
        shown = {"value": item.value, "confidence": item.confidence, "sources": sources}
        return {**shown, "upstream": defaults[name]} if name in defaults else shown

    return {
        "model": model,
        "family": recipe.family,
        "variant": recipe.variant,
        "start": "scratch" if recipe.scratch else "finetune",
        "data": recipe.data,
        "arguments": {name: value(name, item) for name, item in recipe.arguments.items()},
        "run": {name: value("", item) for name, item in recipe.run.items()},
        "absent": dict(recipe.absent),
        "partial": recipe.partial,
        "costs": [vars(cost) for cost in recipe.costs],
        "conflicts": [vars(conflict) for conflict in recipe.conflicts],
        "notes": list(recipe.notes),
    }


def _differ(one: Any, other: Any) -> bool:
    if isinstance(one, (int, float)) and isinstance(other, (int, float)):
        return not math.isclose(one, other, rel_tol=1e-9)
    return str(one).lower() != str(other).lower()


def _text(value: Any) -> str:
    return "unknown" if value is None else str(value)


def _columns(rows: Sequence[Iterable[str]]) -> Iterator[str]:
    cells = [list(map(str, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells)]
    for row in cells:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
