"""The parts of Ultralytics' validator that patches may replace, in place for one validation."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from copy import copy
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch

from yolo_patches.lifecycle import Lifecycle
from yolo_patches.upstreams.followed_loader import FollowedLoader
from yolo_patches.upstreams.ultralytics import host_copies
from yolo_patches.upstreams.ultralytics.origin import is_upstreams
from yolo_patches.validation_seams import Evaluation, Suppression
from yolo_patches.wrapping import Call, instead

#: Upstream's samplers that go through a data set in the same order in every pass.
SAMPLERS = ("SequentialSampler", "ContiguousDistributedSampler")
#: Upstream's transforms without chance; `Format` draws a number for what it does not do in validation.
TRANSFORMS = ("LetterBox", "Format")
#: Upstream's data sets; a user's own may give what it likes.
DATA_SETS = "ultralytics.data.dataset"
#: Upstream's function that suppresses, and seconds an image after which it may give up.
SUPPRESSION = "non_max_suppression"
PATIENCE = 1e6
#: Where upstream's validation goes through its loader.
VALIDATOR = "ultralytics.engine.validator"


def parts(trainer: Any, trusted: dict[str, bool], told: bool) -> Evaluation:
    """Return what a validation is made of.

    Args:
        trainer: Whose validation it is.
        trusted: Parts that have been compared in this training -> whether they were equal.
        told: Whether the user is told how long its stages take.
    """
    validator, args = trainer.validator, trainer.validator.args
    loader = getattr(validator, "dataloader", None) or getattr(trainer, "test_loader", None)
    on_cpu, on_cuda = (trainer.device.type == name for name in ("cpu", "cuda"))
    return Evaluation(
        unchanging=loader is not None and _unchanging(loader),
        images=lambda batch: batch.get("img") if isinstance(batch, dict) else None,
        nms=import_module("torchvision").ops.nms if _finds_boxes(validator) else None,
        limit=lambda: int(args.max_det),
        suppress=_suppress(suppression_module()) if _finds_boxes(validator) else None,
        match=_match(validator) if _matches(validator) else None,
        scale=_scale if on_cpu and _finds_boxes(validator) and _has_upstreams(validator, "preprocess") else None,
        on_cpu=on_cpu,
        page_locked=on_cuda,
        timed=on_cuda and not told,
        trusted=trusted,
    )


def figures(trainer: Any) -> list[str]:
    """Return what a trainer's validation will call its figures, before there has been one.

    Upstream's own names are those of the metrics that its validator was built with. Depth estimation has others from
    its first validation on.
    """
    validator, names = copy(trainer.validator), list(trainer.metrics)
    built_with = list(validator.metrics.keys)
    validator.data, validator.device, validator.training = trainer.data, trainer.device, True
    validator.init_metrics(getattr(trainer.model, "module", trainer.model))
    return [*validator.metrics.keys, *(name for name in names if name not in built_with)]


@contextmanager
def in_place(lifecycle: Lifecycle, trainer: Any, parts: Evaluation, before: Evaluation) -> Iterator[None]:
    """Let a validation be made of these parts; each is upstream's again afterwards.

    Args:
        lifecycle: Is told where a part fails.
        trainer: Whose validation it is.
        parts: As patches have made them.
        before: As upstream has them.
    """
    validator = trainer.validator
    put = _Put(lifecycle, validator, parts.trusted)
    with ExitStack() as stack:
        if parts.nms is not None and parts.nms is not before.nms:
            ops = import_module("torchvision").ops
            stack.enter_context(instead(ops, "nms", lifecycle.guarded(parts.nms, ops.nms, Evaluation)))
        if parts.suppress is not before.suppress or parts.patient:
            ours = None if parts.suppress is before.suppress else parts.suppress
            stack.enter_context(put.suppression(ours, parts.patient))
        if parts.match is not before.match:
            stack.enter_context(put.matching(parts.match))
        if parts.scale is not before.scale:
            stack.enter_context(put.scaling(parts.scale))
        if parts.metrics_on_cpu and validator.args.task in ("detect", "pose", "obb"):
            stack.enter_context(put.metrics_on_cpu())
        if before.timed and not parts.timed:
            stack.enter_context(put.timed_by_the_host())
        if parts.passing is not before.passing:
            stack.enter_context(put.passing(parts.passing))
        if not parts.loss:
            stack.enter_context(put.no_loss(trainer))
        yield


class _Put:
    """Puts parts into one validator."""

    def __init__(self, lifecycle: Lifecycle, validator: Any, trusted: dict[str, bool]) -> None:
        self._lifecycle = lifecycle
        self._validator = validator
        self._trusted = trusted

    def _ours(self, do: Callable[[], Any]) -> Any:
        return self._lifecycle.attempt(do, Evaluation)

    @contextmanager
    def suppression(self, ours: Any, patient: bool) -> Iterator[None]:
        module = suppression_module()
        function = vars(module).get(SUPPRESSION)
        if function is None:
            yield
            return

        def suppress(*args: Any, **kwargs: Any) -> Any:
            call = self._ours(lambda: Call(function, args, kwargs))
            if call is None:
                return function(*args, **kwargs)
            how = self._ours(lambda: _settings(call)) if ours is not None else None
            found = None if how is None else self._ours(lambda: ours(_tensor(call), how))
            if found is None and patient and "max_time_img" in call:
                call["max_time_img"] = PATIENCE
            return function(*call.args, **call.kwargs) if found is None else found

        with instead(module, SUPPRESSION, suppress):
            yield

    @contextmanager
    def matching(self, ours: Any) -> Iterator[None]:
        upstreams = self._validator.match_predictions
        thresholds = self._validator.iouv.cpu().numpy()

        def right(predicted: Any, true: Any, iou: Any) -> Any:
            found = ours((iou * (true[:, None] == predicted)).numpy(), thresholds)
            return None if found is None else torch.from_numpy(found)

        def match(predicted: Any, true: Any, iou: Any, *args: Any, **kwargs: Any) -> Any:
            found = None
            if not (args or kwargs) and iou.device.type == predicted.device.type == "cpu":
                found = self._ours(lambda: right(predicted, true, iou))
            return upstreams(predicted, true, iou, *args, **kwargs) if found is None else found

        with instead(self._validator, "match_predictions", match):
            yield

    @contextmanager
    def scaling(self, ours: Any) -> Iterator[None]:
        upstreams = self._validator.preprocess
        trusted = self._trusted

        def scaled(batch: dict[str, Any]) -> dict[str, Any]:
            images = batch["img"]
            result = upstreams({**batch, "img": images[:, :, :1, :1]})
            return {**result, "img": ours(images)}

        def preprocess(batch: dict[str, Any]) -> Any:
            images = batch.get("img")
            if not isinstance(images, torch.Tensor) or images.dtype is not torch.uint8:
                return upstreams(batch)
            if not trusted.get("scaling", True):
                return upstreams(batch)
            if "scaling" not in trusted:
                made = self._ours(lambda: scaled(dict(batch)))
                theirs = upstreams(batch)
                trusted["scaling"] = made is not None and _alike(made, theirs)
                return theirs
            made = self._ours(lambda: scaled(batch))
            return upstreams(batch) if made is None else made

        with instead(self._validator, "preprocess", preprocess):
            yield

    @contextmanager
    def metrics_on_cpu(self) -> Iterator[None]:
        validator, upstreams, preprocessed = self._validator, self._validator.update_metrics, self._validator.preprocess
        host = host_copies.HostCopies()

        def preprocess(batch: Any) -> Any:
            self._ours(lambda: host.remember(batch))
            return preprocessed(batch)

        def update_metrics(preds: Any, batch: Any) -> Any:
            moved = self._ours(lambda: (host_copies.predictions(preds), host.labels(batch)))
            if moved is None:
                return upstreams(preds, batch)
            device, validator.device = validator.device, torch.device("cpu")
            try:
                return upstreams(*moved)
            finally:
                validator.device = device

        with instead(validator, "preprocess", preprocess), instead(validator, "update_metrics", update_metrics):
            yield

    @contextmanager
    def timed_by_the_host(self) -> Iterator[None]:
        """Let upstream's stopwatch, which waits for the device at either end of each stage, wait for nothing."""
        module = import_module(VALIDATOR)
        stopwatch = vars(module).get("Profile")
        if not (isinstance(stopwatch, type) and callable(getattr(stopwatch, "time", None))):
            yield
            return
        with instead(module, "Profile", type("Profile", (stopwatch,), {"time": lambda _: time.perf_counter()})):
            yield

    @contextmanager
    def passing(self, ours: Any) -> Iterator[None]:
        validator = self._validator
        loader = validator.dataloader
        if loader is None:
            yield
            return
        validator.dataloader = FollowedLoader(loader, ours)
        try:
            yield
        finally:
            validator.dataloader = loader

    @contextmanager
    def no_loss(self, trainer: Any) -> Iterator[None]:
        ema = getattr(trainer, "ema", None)
        model = (ema.ema if ema else None) or trainer.model

        def loss(*args: Any, **kwargs: Any) -> tuple[None, Any]:
            items = trainer.loss_items
            if isinstance(items, Mapping):
                return None, {name: torch.full_like(item, math.nan) for name, item in items.items()}
            return None, torch.full_like(items, math.nan)

        with instead(model, "loss", loss):
            yield


def suppression_module() -> ModuleType:
    """Return the module with upstream's suppression."""
    name = "ultralytics.utils.nms"
    return import_module(name if find_spec(name) else "ultralytics.utils.ops")


def _suppress(module: ModuleType) -> Callable[[Any, Suppression], Any] | None:
    """Return upstream's suppression with our settings."""
    function = vars(module).get(SUPPRESSION)
    if function is None:
        return None

    def suppress(predictions: Any, how: Suppression) -> Any:
        return function(
            predictions.clone(), how.confidence, how.overlap, nc=how.classes, agnostic=how.agnostic,
            multi_label=True, max_det=how.limit, max_time_img=PATIENCE,
        )  # fmt: skip

    return suppress


def _tensor(call: Call) -> Any:
    prediction = call["prediction"]
    return prediction[0] if isinstance(prediction, (list, tuple)) else prediction


def _settings(call: Call) -> Suppression | None:
    """Return how upstream is about to suppress, or None where it is not the plain way."""
    predictions = _tensor(call)
    plain = {"classes": None, "labels": (), "rotated": False, "end2end": False, "return_idxs": False}
    other = [name for name, value in plain.items() if name in call and call[name] != value and call[name]]
    if other or not call["multi_label"] or predictions.shape[-1] == 6:
        return None
    return Suppression(
        confidence=call["conf_thres"],
        overlap=call["iou_thres"],
        classes=call["nc"] or predictions.shape[1] - 4,
        agnostic=bool(call["agnostic"]),
        limit=call["max_det"],
    )


def _scale(images: Any) -> Any:
    return images.float() / 255


def _match(validator: Any) -> Callable[[Any, Any], Any]:
    """Return upstream's matching of objects and predictions of one class, with NumPy's arrays."""

    def match(iou: Any, thresholds: Any) -> Any:
        objects, predictions = (torch.zeros(size) for size in iou.shape)
        return type(validator).match_predictions(validator, predictions, objects, torch.from_numpy(iou)).numpy()

    return match


def _finds_boxes(validator: Any) -> bool:
    return isinstance(getattr(validator, "iouv", None), torch.Tensor) and "max_det" in vars(validator.args)


def _matches(validator: Any) -> bool:
    return _finds_boxes(validator) and _has_upstreams(validator, "match_predictions")


def _has_upstreams(owner: Any, name: str) -> bool:
    """Return whether a method of an object is the one of upstream's class."""
    return name not in vars(owner) and is_upstreams(getattr(type(owner), name, None))


def _unchanging(loader: Any) -> bool:
    """Return whether all passes over a loader give the same batches: upstream's own data set, in its own order."""
    dataset = getattr(loader, "dataset", None)
    transforms = getattr(getattr(dataset, "transforms", None), "transforms", None)
    return (
        type(dataset).__module__ == DATA_SETS
        and type(getattr(loader, "sampler", None)).__name__ in SAMPLERS
        and isinstance(transforms, list)
        and all(type(one).__name__ in TRANSFORMS and is_upstreams(one) for one in transforms)
    )


def _alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value is other[key]
        for key, value in one.items()
    )
