"""The model authors' published hyperparameters: one file a family, each value with its source and confidence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

#: Family -> the upstream that trains it, and the names that its models have there; a variant with a hyphen is a name.
MODELS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "yolov5": ("yolov5", ("yolov5*",)),
    "yolov5-seg": ("yolov5", ("yolov5*-seg",)),
    "yolov8": ("ultralytics", ("yolov8*",)),
    "yolov9": ("yolov9", ("yolov9-*",)),
    "yolov9-ultralytics": ("ultralytics", ("yolov9*",)),
    "yolov10": ("ultralytics", ("yolov10*",)),
    "yolo11": ("ultralytics", ("yolo11*",)),
    "yolov12": ("ultralytics", ("yolo12*", "yolov12*")),
    "yolov13": ("ultralytics", ("yolov13*",)),
    "yolo26": ("ultralytics", ("yolo26*",)),
    "yolo26-objects365": ("ultralytics", ("yolo26*",)),
    "rtdetr": ("ultralytics", ("rtdetr-*",)),
}
#: From weak to strong: a recollection or a guess of somebody's; one indirect step; the authors' own table, file or log.
CONFIDENCES = ("low", "medium", "high")
#: In a file: what could not be established. It stays so.
UNKNOWN = "unknown"
#: The arguments that say how images are augmented. All others are about the optimisation.
AUGMENTATION = frozenset(
    {"mosaic", "scale", "mixup", "copy_paste", "cutmix", "translate", "degrees", "shear", "perspective", "bgr"}
    | {"flipud", "fliplr", "hsv_h", "hsv_s", "hsv_v", "erasing"}
)


@dataclass(frozen=True)
class Source:
    """Where a value was published.

    Attributes:
        what: What it is, and where in it the value stands.
        url: Its address.
    """

    what: str
    url: str


@dataclass(frozen=True)
class Value:
    """One published value.

    Attributes:
        value: The value; None where it could not be established.
        sources: Names of the recipe's sources that say so.
        confidence: One of `CONFIDENCES`; "unknown" where there is no value.
    """

    value: Any
    sources: tuple[str, ...]
    confidence: str

    def trusted(self, least: str = "medium") -> bool:
        """Return whether there is a value, and its confidence is at least this."""
        return self.value is not None and CONFIDENCES.index(self.confidence) >= CONFIDENCES.index(least)


@dataclass(frozen=True)
class Conflict:
    """Two sources that say different things.

    Attributes:
        argument: What they differ in.
        one: What one side says.
        other: What the other side says.
        stronger: Which side was taken, and why.
    """

    argument: str
    one: str
    other: str
    stronger: str


@dataclass(frozen=True)
class Cost:
    """What is known of trainings that departed from a recipe.

    Attributes:
        arguments: In what.
        text: What came of it.
        sources: Names of the recipe's sources that say so.
    """

    arguments: tuple[str, ...]
    text: str
    sources: tuple[str, ...]


@dataclass(frozen=True)
class Recipe:
    """What the authors of one model trained it with.

    Attributes:
        family: Name of its file, e.g. "yolov10".
        variant: e.g. "x".
        title: The family's name as its authors write it.
        scratch: Whether it starts from random weights.
        data: What it was trained on.
        arguments: Upstream's arguments -> their values.
        run: How it was run -> values: batch (images per step over all GPUs), gpus, sync_bn, ...
        sources: Names -> sources.
        absent: Arguments that the authors' code does not have, or that do nothing -> why.
        partial: What of it no argument of upstream does; empty where the arguments are all of it.
        costs: What departures from it have cost.
        conflicts: Where sources differ.
        notes: What else is to be known.
    """

    family: str
    variant: str
    title: str
    scratch: bool
    data: str
    arguments: Mapping[str, Value]
    run: Mapping[str, Value]
    sources: Mapping[str, Source]
    absent: Mapping[str, str] = field(default_factory=dict)
    partial: str = ""
    costs: tuple[Cost, ...] = ()
    conflicts: tuple[Conflict, ...] = ()
    notes: tuple[str, ...] = ()

    def value(self, name: str, least: str = "medium") -> Any:
        """Return an argument's or a circumstance's value, or None where it is not known with this confidence."""
        found = self.arguments.get(name) or self.run.get(name)
        return found.value if found is not None and found.trusted(least) else None


def names(upstream: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield every published model: its name in an upstream, its family and its variant.

    Args:
        upstream: An adapter's name; empty for those of all.
    """
    for family, (where, patterns) in MODELS.items():
        if upstream in ("", where):
            for variant in _table(family)["variants"]:
                for pattern in patterns:
                    yield variant if "-" in variant else pattern.replace("*", variant), family, variant


def known(upstream: str) -> frozenset[str]:
    """Return the names of all published models of an upstream."""
    return frozenset(name for name, _, _ in names(upstream))


def find(upstream: str, model: str, scratch: bool = True) -> Recipe | None:
    """Return the recipe of a published model, or None where there is none.

    Args:
        upstream: An adapter's name; empty for whichever has a model of this name.
        model: The model's name there, e.g. "yolov10x", without the suffix of a task.
        scratch: Whether training starts from random weights. Where it does not, and nothing was published for that,
            the recipe for training from scratch is returned, which says so.
    """
    recipes = [of(family, variant) for name, family, variant in names(upstream) if name == model]
    fitting = [recipe for recipe in recipes if recipe.scratch == scratch] or ([] if scratch else recipes)
    return fitting[0] if fitting else None


def of(family: str, variant: str) -> Recipe:
    """Return the recipe of a family's variant.

    Raises:
        KeyError: There is no such family or variant.
    """
    table = _table(family)
    if variant not in table["variants"]:
        raise KeyError(variant)

    def applies(item: Mapping[str, Any]) -> bool:
        return variant in item.get("variants", [variant])

    return Recipe(
        family=family,
        variant=variant,
        title=table["title"],
        scratch=table["start"] == "scratch",
        data=table["data"],
        arguments={name: _value(row, variant) for name, row in table["arguments"].items()},
        run={name: _value(row, variant) for name, row in table["run"].items()},
        sources={name: Source(source["what"], source["url"]) for name, source in table["sources"].items()},
        absent=table.get("absent", {}),
        partial=table.get("partial", ""),
        costs=tuple(
            Cost(tuple(item["arguments"]), item["text"], tuple(item["source"]))
            for item in table.get("costs", ())
            if applies(item)
        ),
        conflicts=tuple(
            Conflict(item["argument"], str(item["a"]), str(item["b"]), item["stronger"])
            for item in table.get("conflicts", ())
            if applies(item)
        ),
        notes=tuple(item["text"] for item in table.get("notes", ()) if applies(item)),
    )


def _value(row: Mapping[str, Any], variant: str) -> Value:
    value = row["values"][variant] if "values" in row else row["value"]
    confidence = row["confidence"]
    if not isinstance(confidence, str):
        confidence = confidence[variant]
    if value == UNKNOWN:
        return Value(None, tuple(row["source"]), UNKNOWN)
    return Value(value, tuple(row["source"]), confidence)


@cache
def _table(family: str) -> Mapping[str, Any]:
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # 20 times as fast where libyaml is there
    text = files(__package__).joinpath(f"{family}.yaml").read_text(encoding="utf-8")
    table: Mapping[str, Any] = yaml.load(text, Loader=loader)
    return table
