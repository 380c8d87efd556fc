"""Making again what ranks do together, where one of them has failed in between and the others do not know."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import ExitStack
from copy import deepcopy
from typing import Any

import torch
from torch import distributed

from yolo_patches.wrapping import instead

#: Exchanges whose results are kept: those in place, and objects that everybody tells everybody. What only one rank is
#: told may be all detections.
KEPT = ("all_gather_object", "all_reduce", "barrier", "broadcast", "reduce")
#: All others, whose results are not kept.
OTHERS = (
    "all_gather",
    "all_gather_into_tensor",
    "all_gather_single",
    "all_to_all",
    "all_to_all_single",
    "batch_isend_irecv",
    "broadcast_object_list",
    "gather",
    "gather_into_tensor",
    "gather_object",
    "gather_single",
    "irecv",
    "isend",
    "monitored_barrier",
    "recv",
    "recv_object_list",
    "reduce_scatter",
    "reduce_scatter_single",
    "reduce_scatter_tensor",
    "scatter",
    "scatter_object_list",
    "send",
    "send_object_list",
)


class Retelling:
    """Keeps what ranks tell this one while it stands, so that it can go through the same exchanges once more, alone.

    After `again` an exchange that has been made is not made: its tensor or list becomes what it was after it. The
    others wait for the next one meanwhile, and are told nothing twice. What this rank has told them stays, so whatever
    is made again must come to the same.
    """

    def __init__(self) -> None:
        self._kept: list[tuple[str, Any]] = []
        self._next = 0
        self._lost = False
        self._stack = ExitStack()

    def __enter__(self) -> Retelling:
        for name in (*KEPT, *OTHERS):
            function = vars(distributed).get(name)
            if function is not None:
                made = functools.wraps(function)(functools.partial(self._made, name, function))
                self._stack.enter_context(instead(distributed, name, made))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def again(self) -> bool:
        """Begin anew with the first exchange.

        Returns:
            Whether that is possible: not where one has failed itself, is asynchronous, or was not kept.
        """
        self._next = 0
        return not self._lost

    def _made(self, name: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        first: Any = args[0] if args else kwargs.get("object_list" if name == "all_gather_object" else "tensor")
        if self._next < len(self._kept):
            made, told = self._kept[self._next]
            self._next += 1
            if made != name:
                raise RuntimeError(f"the other ranks have been through {made}, and this one comes to {name}")
            if isinstance(told, torch.Tensor):
                with torch.no_grad():
                    first.copy_(told)
            elif told is not None:
                first[:] = deepcopy(told)
            return None
        keeps, self._lost = not self._lost and name in KEPT, True
        result = function(*args, **kwargs)
        if keeps and result is None:  # else it is asynchronous
            self._kept.append((name, _copy(first)))
            self._next += 1
            self._lost = False
        return result


def _copy(told: Any) -> Any:
    if isinstance(told, torch.Tensor):
        return told.detach().clone()
    return deepcopy(told) if isinstance(told, list) else None
