"""The parts of a script's validation that patches may replace, in place for one validation."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from importlib import import_module
from types import ModuleType
from typing import Any

import torch

from yolo_patches.lifecycle import Lifecycle
from yolo_patches.upstreams.followed_loader import FollowedLoader, read_by
from yolo_patches.upstreams.scripts.validation_losses import ValidationLosses
from yolo_patches.validation_seams import Evaluation
from yolo_patches.wrapping import instead

#: Upstream's function that tells which predictions are right, by boxes.
MATCHING, PARAMETERS = "process_batch", ["detections", "labels", "iouv"]
DATA_SETS = ("LoadImagesAndLabels", "LoadImagesAndLabelsAndMasks")


@contextmanager
def in_place(
    lifecycle: Lifecycle, module: Any, keywords: dict[str, Any]
) -> Iterator[tuple[dict[str, Any], Callable[[Any], Any]]]:
    """Let a validation be made of the parts that patches have made of upstream's.

    Args:
        lifecycle: The training's.
        module: The script's module for validations.
        keywords: Of the call that validates.

    Yields:
        The keywords to call with, and what makes of the result what the script is to have.
    """
    with ExitStack() as stack:
        made = None
        if isinstance(module, ModuleType) and lifecycle.listens(Evaluation):
            made = lifecycle.attempt(lambda: _put(stack, lifecycle, module, keywords), Evaluation)
        yield made or (keywords, lambda result: result)


def _put(
    stack: ExitStack, lifecycle: Lifecycle, module: ModuleType, keywords: dict[str, Any]
) -> tuple[dict[str, Any], Callable[[Any], Any]]:
    before = _parts(lifecycle, module, keywords)
    parts = lifecycle.fire(replace(before))
    keywords = dict(keywords)
    if parts.nms is not None and parts.nms is not before.nms:
        ops = import_module("torchvision").ops
        stack.enter_context(instead(ops, "nms", lifecycle.guarded(parts.nms, ops.nms, Evaluation)))
    if parts.match is not before.match:
        matching = lifecycle.guarded(_matching(module, parts.match), vars(module)[MATCHING], Evaluation)
        stack.enter_context(instead(module, MATCHING, matching))
    if parts.passing is not before.passing:
        keywords["dataloader"] = read_by(keywords["dataloader"], parts.passing)
    if not parts.loss or before.loss:
        return keywords, lambda result: result
    losses = ValidationLosses(keywords, lambda do: lifecycle.attempt(do, Evaluation))
    stack.enter_context(losses.computed())
    keywords["dataloader"] = FollowedLoader(keywords["dataloader"], lambda loader: losses.following(iter(loader)))

    def tell(result: Any) -> Any:
        told, parts.results["losses"] = losses.told(result)
        return told

    return keywords, lambda result: lifecycle.attempt(lambda: tell(result), Evaluation) or result


def _parts(lifecycle: Lifecycle, module: ModuleType, keywords: Mapping[str, Any]) -> Evaluation:
    loader = keywords.get("dataloader")
    limit = inspect.signature(vars(module)["run"]).parameters.get("max_det")
    function = vars(module).get(MATCHING)
    known = (
        callable(function) and list(inspect.signature(function).parameters) == PARAMETERS and "box_iou" in vars(module)
    )
    model, facts = keywords.get("model"), lifecycle.facts
    return Evaluation(
        unchanging=loader is not None and _unchanging(loader),
        images=lambda batch: batch[0] if isinstance(batch, (list, tuple)) and batch else None,
        nms=None if limit is None else import_module("torchvision").ops.nms,
        limit=lambda: int(limit.default) if limit is not None else 0,
        match=_upstreams_matching(module) if known else None,
        on_cpu=model is not None and next(model.parameters()).device.type == "cpu",
        loss=facts is None or facts.loss.validated,
    )


def _matching(module: ModuleType, match: Any) -> Callable[..., Any]:
    def right(detections: Any, labels: Any, iouv: Any) -> Any:
        if detections.device.type != "cpu":
            return None
        iou = vars(module)["box_iou"](labels[:, 1:], detections[:, :4])
        found = match((iou * (labels[:, 0:1] == detections[:, 5])).numpy(), iouv.numpy())
        return None if found is None else torch.from_numpy(found)

    return right


def _upstreams_matching(module: ModuleType) -> Callable[[Any, Any], Any]:
    """Return upstream's matching as a function of the overlaps, which it computes itself."""
    function = vars(module)[MATCHING]

    def match(iou: Any, thresholds: Any) -> Any:
        objects, predictions = iou.shape
        with instead(module, "box_iou", lambda *boxes: torch.from_numpy(iou)):
            found = function(torch.zeros(predictions, 6), torch.zeros(objects, 5), torch.from_numpy(thresholds))
        return found.numpy()

    return match


def _unchanging(loader: Any) -> bool:
    """Return whether all passes over a loader give the same batches: upstream's own data set, not augmented."""
    dataset = getattr(loader, "dataset", None)
    return (
        type(dataset).__name__ in DATA_SETS
        and type(dataset).__module__.rpartition(".")[2] == "dataloaders"
        and getattr(dataset, "augment", True) is False
        and type(getattr(loader, "sampler", None)).__name__ == "SequentialSampler"
    )
