"""A loader whose passes begin by a function of ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import wrapt


class FollowedLoader(wrapt.ObjectProxy):  # type: ignore[misc,type-arg,unused-ignore]
    """A loader, each pass over which begins by a function.

    Args:
        loader: The loader.
        begin: Returns the iterator of a pass.
    """

    def __init__(self, loader: Any, begin: Callable[[Any], Iterator[Any]]) -> None:
        super().__init__(loader)
        self._self_begin = begin

    def __iter__(self) -> Iterator[Any]:
        return self._self_begin(self.__wrapped__)


def read_by(loader: Any, begin: Callable[[Any], Iterator[Any]]) -> FollowedLoader:
    """Return a loader whose passes begin by a function, inside of whoever follows them already."""
    if not isinstance(loader, FollowedLoader):
        return FollowedLoader(loader, begin)
    follower = loader._self_begin
    return FollowedLoader(loader.__wrapped__, lambda inner: follower(FollowedLoader(inner, begin)))
