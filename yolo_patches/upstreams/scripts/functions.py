"""The functions that the scripts call on their way, as wrappers that hand what they see to the training under way."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import numpy
import torch

from yolo_patches.loading_seams import Samples
from yolo_patches.seams import Step
from yolo_patches.upstreams import followed_clip, stack
from yolo_patches.upstreams.fed_loaders import fed
from yolo_patches.upstreams.scripts import sample_parts
from yolo_patches.upstreams.scripts.session import Session
from yolo_patches.wrapping import Call as Called
from yolo_patches.wrapping import Wrapper

Call = Callable[..., Any]
Arguments = tuple[Any, ...]
Keywords = dict[str, Any]


def install(session: Session, name: str, module: ModuleType) -> None:
    """Wrap the functions of one module that has just been imported."""
    wrappers: dict[str, Call] = {
        "utils.general": {"check_amp": _check_amp},
        "utils.torch_utils": {"smart_optimizer": _smart_optimizer, "smart_resume": _smart_resume},
        "utils.autobatch": {"check_train_batch_size": _check_train_batch_size},
    }.get(name, {})
    if any(name == task.loaders for task in session.layout.tasks.values()):
        wrappers = {"create_dataloader": _create_dataloader}
    for function, wrapper in wrappers.items():
        if function in vars(module):
            session.wrapping.wrap(module, function, partial(wrapper, session))


def stand_in(session: Session, module: ModuleType, script: bool = False) -> None:
    """Put what today's stack lacks into one module's globals.

    Args:
        session: The session.
        module: The module.
        script: Whether it is the training script, which shall clip, step and save by way of us.
    """
    gaps = stack.gaps()
    load = stack.TORCH_LOAD in gaps and session.asks(stack.TORCH_LOAD, trusted=True)
    amp = stack.AMP in gaps and session.asks(stack.AMP)
    if vars(module).get("torch") is torch and (load or amp or script):
        loader = stack.loader(torch, session.trusts) if load else None
        overlay = stack.torch_overlay(torch, loader, amp, _clip(session) if script else None)
        if script:
            scaler = _scaler(session, overlay.cuda.amp.GradScaler)
            cuda = stack.Overlay(overlay.cuda, amp=stack.Overlay(overlay.cuda.amp, GradScaler=scaler))
            vars(overlay).update(save=_save(session), cuda=cuda)
        session.wrapping.replace(module, "torch", overlay)
        session.filled.update({stack.TORCH_LOAD} if load else (), {stack.AMP} if amp else ())
    if stack.NAMES in gaps and vars(module).get("np") is numpy and session.asks(stack.NAMES):
        session.wrapping.replace(module, "np", stack.numpy_overlay(numpy))
        session.filled.add(stack.NAMES)
    if stack.FONTS in gaps and "check_pil_font" in vars(module) and session.asks(stack.FONTS):
        session.wrap_once(module, "check_pil_font", _check_pil_font)
        session.filled.add(stack.FONTS)


def criteria(session: Session, module: ModuleType, compute: Wrapper | None) -> None:
    """Wrap every criterion of a module.

    Args:
        session: The session.
        module: The module.
        compute: Wrapper of `__call__` that takes its normalisers to the patches; None where it would not fit.
    """
    for name, cls in list(vars(module).items()):
        if name.startswith("ComputeLoss") and isinstance(cls, type) and cls.__module__ == module.__name__:
            session.wrapping.wrap(cls, "__init__", partial(_constructed, session))
            if compute is not None:
                session.wrapping.wrap(cls, "__call__", partial(_computed, session, compute))


def validate(session: Session, wrapped: Call, _: object, args: Arguments, kwargs: Keywords) -> Any:
    """Follow a validation."""
    return wrapped(*args, **kwargs) if session.training is None else session.training.validate(wrapped, args, kwargs)


def _clip(session: Session) -> Call:
    """Return torch.nn.utils.clip_grad_norm_ that first lets the patches see the gradients."""

    def clip_grad_norm_(*args: Any, **kwargs: Any) -> Any:
        if session.training is None:
            return torch.nn.utils.clip_grad_norm_(*args, **kwargs)
        session.training.clip()
        with followed_clip.followed(session.training.lifecycle):
            return torch.nn.utils.clip_grad_norm_(*args, **kwargs)

    return clip_grad_norm_


def _save(session: Session) -> Call:
    """Return torch.save that the patches may stand around."""

    def save(*args: Any, **kwargs: Any) -> None:
        def write() -> None:
            torch.save(*args, **kwargs)

        if session.training is None:
            write()
        else:
            session.training.save(write)

    return save


def _scaler(session: Session, make: Call) -> Call:
    """Return torch.cuda.amp.GradScaler, around whose steps the patches may stand; scripts make every step by one."""

    def scaler(*args: Any, **kwargs: Any) -> Any:
        made, training = make(*args, **kwargs), session.training
        if training is not None:
            training.lifecycle.attempt(lambda: training.memory.scaled(made), Step)
        return made

    return scaler


def _constructed(session: Session, wrapped: Call, criterion: Any, args: Arguments, kwargs: Keywords) -> None:
    wrapped(*args, **kwargs)
    if session.training is not None:
        session.training.criterion_built(args[0] if args else kwargs.get("model"), criterion)


def _computed(
    session: Session, compute: Wrapper, wrapped: Call, criterion: Any, args: Arguments, kwargs: Keywords
) -> Any:
    def call(*given: Any, **named: Any) -> Any:
        return compute(wrapped, criterion, given, named)

    if session.training is None:
        return call(*args, **kwargs)
    result = session.training.memory.computed(call, bool(getattr(criterion, "overlap", False)), args, kwargs)
    session.training.steps.computed(result[0] if isinstance(result, tuple) and result else None)
    return result


def _check_amp(session: Session, wrapped: Call, _: object, args: Arguments, kwargs: Keywords) -> Any:
    result = wrapped(*args, **kwargs)
    if session.training is not None:
        session.training.model_built(args[0] if args else kwargs.get("model"))
    return result


def _check_train_batch_size(session: Session, wrapped: Call, _: object, args: Arguments, kwargs: Keywords) -> Any:
    batch = wrapped(*args, **kwargs)
    if session.training is not None:
        session.training.batch_measured(batch)
    return batch


def _smart_optimizer(session: Session, wrapped: Call, _: object, args: Arguments, kwargs: Keywords) -> Any:
    optimizer = wrapped(*args, **kwargs)
    return optimizer if session.training is None else session.training.optimizer_built(optimizer)


def _smart_resume(session: Session, wrapped: Call, _: object, args: Arguments, kwargs: Keywords) -> Any:
    result = wrapped(*args, **kwargs)
    if session.training is not None:
        session.training.optimizer_restored(result)
    return result


def _create_dataloader(session: Session, wrapped: Call, _: object, args: Arguments, kwargs: Keywords) -> Any:
    training = session.training
    if training is None:
        return wrapped(*args, **kwargs)

    def is_training() -> bool:
        return bool(Called(wrapped, args, kwargs)["augment"])

    def offer() -> None:
        if is_training():
            sample_parts.offer(training.lifecycle, training.replaced, session.root, wrapped.__module__)

    if training.lifecycle.listens(Samples):
        training.lifecycle.attempt(offer, Samples)
    with fed(training.lifecycle, wrapped.__module__, is_training):
        return training.loader(wrapped, args, kwargs)


def _check_pil_font(wrapped: Call, _: object, args: Arguments, kwargs: Keywords) -> Any:
    return stack.with_getsize(wrapped(*args, **kwargs))
