"""The loaders that an upstream builds, on their way to the seam at which patches set how they are fed."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib import import_module
from typing import Any

from yolo_patches.lifecycle import Lifecycle
from yolo_patches.loading_seams import Feed
from yolo_patches.wrapping import instead

#: Names under which upstreams' modules know the classes of their loaders.
CLASSES = ("InfiniteDataLoader", "DataLoader")
#: What torch takes where nobody says how many batches a worker makes ahead.
PREFETCH = 2


@contextmanager
def fed(lifecycle: Lifecycle, module: str, is_training: Callable[[], bool]) -> Iterator[None]:
    """Fire `Feed` for the loaders that functions of a module make while this is open.

    Upstream computes the number of workers on the way, so it is replaced where it arrives: at the loader's class.

    Args:
        lifecycle: Of the training.
        module: Whose functions make loaders, and name their classes.
        is_training: Tells whether they are for training.
    """
    with ExitStack() as stack:
        if lifecycle.takes(Feed):
            lifecycle.attempt(lambda: _stand_in(stack, lifecycle, module, is_training()), Feed)
        yield


def _stand_in(stack: ExitStack, lifecycle: Lifecycle, module: str, training: bool) -> None:
    found = import_module(module)
    for name in CLASSES:
        if name in vars(found):
            made = partial(_made, lifecycle, training, vars(found)[name])
            stack.enter_context(instead(found, name, _instead_of(vars(found)[name], made)))


def _instead_of(loader: Any, made: Callable[..., Any]) -> Any:
    """Return what makes loaders of a class by a function, and is that class for whoever asks or looks into it."""
    if not isinstance(loader, type):
        return made

    def call(_: Any, *args: Any, **kwargs: Any) -> Any:
        return made(*args, **kwargs)

    asked = {"__call__": call, "__instancecheck__": lambda _, one: isinstance(one, loader)}
    return type("Fed", (type(loader),), asked)(loader.__name__, (loader,), {})


def _made(lifecycle: Lifecycle, training: bool, loader: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    changes = lifecycle.attempt(lambda: _changes(lifecycle, training, *args, **kwargs), Feed)
    return loader(*args, **{**kwargs, **(changes or {})})


def _changes(lifecycle: Lifecycle, training: bool, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Return the arguments that patches have changed."""
    workers = int(kwargs["num_workers"])
    dataset = args[0] if args else kwargs["dataset"]
    size = getattr(dataset, "imgsz", None) or getattr(dataset, "img_size", None) or 0
    bytes_ = 3 * int(size) ** 2 * int(kwargs["batch_size"]) if isinstance(size, int) else 0
    collate = kwargs.get("collate_fn") if _forks(kwargs.get("multiprocessing_context")) else None
    prefetch = int(kwargs.get("prefetch_factor") or PREFETCH)
    seam = lifecycle.fire(Feed(workers, training, prefetch, bytes_, collate))
    changes: dict[str, Any] = {}
    if workers and seam.workers != workers:
        changes["num_workers"] = max(int(seam.workers), 1)
    if seam.collate is not collate:
        changes["collate_fn"] = seam.collate
    return changes


def _forks(context: Any) -> bool:
    """Return whether a loader's workers have the memory of the process that starts them."""
    method = context if isinstance(context, str) else getattr(context, "_name", None)
    return (
        method or multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]
    ) == "fork"
