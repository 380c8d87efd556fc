"""The functions that the scripts call on their way, as wrappers that hand what they see to the training under way."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import numpy
import torch

from yolo_patches.upstreams import stack
from yolo_patches.upstreams.scripts.session import Session

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


def stand_in(session: Session, module: ModuleType, clip: Call | None) -> None:
    """Put what today's stack lacks into one module's globals.

    Args:
        session: The session.
        module: The module.
        clip: What the module shall have for clip_grad_norm_, if anything.
    """
    gaps = stack.gaps()
    load = stack.TORCH_LOAD in gaps and session.asks(stack.TORCH_LOAD, trusted=True)
    amp = stack.AMP in gaps and session.asks(stack.AMP)
    if vars(module).get("torch") is torch and (load or amp or clip):
        loader = stack.loader(torch, session.trusts) if load else None
        session.wrapping.replace(module, "torch", stack.torch_overlay(torch, loader, amp, clip))
        session.filled.update({stack.TORCH_LOAD} if load else (), {stack.AMP} if amp else ())
    if stack.NAMES in gaps and vars(module).get("np") is numpy and session.asks(stack.NAMES):
        session.wrapping.replace(module, "np", stack.numpy_overlay(numpy))
        session.filled.add(stack.NAMES)
    if stack.FONTS in gaps and "check_pil_font" in vars(module) and session.asks(stack.FONTS):
        session.wrapping.wrap(module, "check_pil_font", _check_pil_font)
        session.filled.add(stack.FONTS)


def clip(session: Session) -> Call:
    """Return torch.nn.utils.clip_grad_norm_ that first lets the patches see the gradients."""

    def clip_grad_norm_(*args: Any, **kwargs: Any) -> Any:
        if session.training is not None:
            session.training.step()
        return torch.nn.utils.clip_grad_norm_(*args, **kwargs)

    return clip_grad_norm_


def validate(session: Session, wrapped: Call, _: object, args: Arguments, kwargs: Keywords) -> Any:
    """Hand the validation the batch of its loader."""
    training = session.training
    if training is not None and training.val_batch is not None and "batch_size" in kwargs:
        kwargs = {**kwargs, "batch_size": training.val_batch}
    return wrapped(*args, **kwargs)


def started(session: Session, wrapped: Call, criterion: Any, args: Arguments, kwargs: Keywords) -> None:
    """Follow the construction of the criterion, the last thing that is built before the first step."""
    wrapped(*args, **kwargs)
    if session.training is not None:
        session.training.start(args[0] if args else kwargs["model"], criterion)


def _check_amp(session: Session, wrapped: Call, _: object, args: Arguments, kwargs: Keywords) -> Any:
    result = wrapped(*args, **kwargs)
    if session.training is not None:
        session.training.model_built(args[0] if args else kwargs["model"])
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
        session.training.optimizer_restored()
    return result


def _create_dataloader(session: Session, wrapped: Call, _: object, args: Arguments, kwargs: Keywords) -> Any:
    if session.training is None:
        return wrapped(*args, **kwargs)
    call = inspect.signature(wrapped).bind(*args, **kwargs)
    call.apply_defaults()
    return session.training.loader(call, lambda: wrapped(*call.args, **call.kwargs))


def _check_pil_font(wrapped: Call, _: object, args: Arguments, kwargs: Keywords) -> Any:
    return stack.with_getsize(wrapped(*args, **kwargs))
