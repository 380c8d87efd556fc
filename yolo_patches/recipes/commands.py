"""The command that reproduces the authors' run of a recipe, in the words of the upstream that trained it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from yolo_patches.errors import PatchesError
from yolo_patches.recipes import MODELS, Recipe

#: Data set in a recipe -> the file by which Ultralytics and the checkouts know it.
DATA = {"COCO train2017": "coco.yaml", "Objects365v1": "Objects365.yaml"}
#: What a checkout takes from its hyperparameters' file, and by which of them it has these values.
HYP = {"yolov5": {0.5: "hyp.scratch-low.yaml", 0.9: "hyp.scratch-high.yaml"}, "yolov9": {0.9: "hyp.scratch-high.yaml"}}


@dataclass(frozen=True)
class Command:
    """A command, ready to paste.

    Attributes:
        text: The command.
        remarks: What it does not say, a sentence each.
    """

    text: str
    remarks: tuple[str, ...]


def command(recipe: Recipe, model: str, gpus: int | None, defaults: Mapping[str, Any]) -> Command:
    """Return the command that reproduces the authors' run.

    Args:
        recipe: What they trained with.
        model: The model's name in its upstream.
        gpus: How many GPUs to train on; None for as many as they had, or one.
        defaults: Upstream's own values: what is the same is not repeated. Without any, every value is written.

    Raises:
        PatchesError: Their batch cannot be shared by so many GPUs.
    """
    theirs = recipe.value("gpus", "low")
    gpus = gpus or theirs or 1
    batch = recipe.value("batch", "low")
    if batch is not None and batch % gpus:
        fitting = [n for n in range(1, min(batch, 64) + 1) if batch % n == 0]
        raise PatchesError(
            f"recipes: the authors' batch of {batch} cannot be shared by {gpus} GPUs; give one of "
            f"{', '.join(map(str, fitting))}"
        )
    upstream = MODELS[recipe.family][0]
    if upstream == "ultralytics":
        text = " ".join(_ultralytics(recipe, model, gpus, batch, theirs, defaults))
    else:
        text = " ".join(_script(recipe, upstream, model, gpus, batch))
    return Command(text, tuple(_remarks(recipe, gpus, batch, theirs)))


def _ultralytics(
    recipe: Recipe, model: str, gpus: int, batch: int | None, theirs: int | None, defaults: Mapping[str, Any]
) -> Iterator[str]:
    weights = recipe.value("init")
    yield f"yolo train model={weights or f'{model}.yaml'} data={DATA[recipe.data]}"
    yield f"device={','.join(map(str, range(gpus)))}"
    if batch is not None:
        yield f"batch={batch}"
    for name, value in recipe.arguments.items():
        if value.trusted() and (name == "optimizer" or defaults.get(name) != value.value):
            yield f"{name}={value.value}"
    # On other GPUs than theirs, ranks must train like theirs did; on theirs, every value is written out already.
    yield "patches=none" if gpus == theirs else "patches=default"


def _script(recipe: Recipe, upstream: str, model: str, gpus: int, batch: int | None) -> Iterator[str]:
    segments = "segment/" if model.endswith("-seg") else ""
    dual = upstream == "yolov9" and not model.startswith("gelan")
    launcher = f"torchrun --nproc_per_node {gpus}" if gpus > 1 else "python"
    yield f"{launcher} {segments}train{'_dual' * dual}.py --weights '' --data data/{DATA[recipe.data]}"
    folder = {"yolov9": "models/detect/", "yolov5": "models/segment/" if segments else "models/"}[upstream]
    yield f"--cfg {folder}{model}.yaml --device {','.join(map(str, range(gpus)))}"
    if batch is not None:
        yield f"--batch-size {batch}"
    yield f"--imgsz {recipe.value('imgsz', 'low')} --epochs {recipe.value('epochs', 'low')}"
    hyp = HYP[upstream].get(recipe.value("scale", "low"))
    if hyp:
        yield f"--hyp data/hyps/{hyp}"
    if upstream == "yolov9":
        yield f"--close-mosaic {recipe.value('close_mosaic', 'low')} --min-items 0"
    if recipe.value("sync_bn", "low"):
        yield "--sync-bn"
    yield "--patches none" if gpus == recipe.value("gpus", "low") else "--patches default"


def _remarks(recipe: Recipe, gpus: int, batch: int | None, theirs: int | None) -> Iterator[str]:
    if recipe.partial:
        yield f"this is not all of it: {recipe.partial}"
    if batch is None:
        yield "their batch is unknown"
    if theirs is None:
        yield "their number of GPUs is unknown; yolo-patches lets any number train like one"
    elif gpus != theirs:
        yield f"they trained on {theirs}; yolo-patches lets any number of GPUs train like one"
    unknown = [name for name, value in recipe.arguments.items() if value.value is None]
    if unknown:
        yield f"unknown, and left at upstream's default: {', '.join(unknown)}"
    weak = [f"{name}={value.value}" for name, value in recipe.arguments.items() if value.confidence == "low"]
    if weak and MODELS[recipe.family][0] == "ultralytics":
        yield f"left out, of weak sources: {', '.join(weak)}"
    yield from recipe.notes
