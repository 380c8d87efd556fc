"""How the ranks of a training tell each other something once: by the store through which they found each other.

That is no collective: no device, no stream and no backend is involved, and a rank that does not answer can be named.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from yolo_patches.errors import PatchesError

#: How long a rank may be behind at the first step: data sets are read, and cached in memory, right before it.
WAIT = timedelta(minutes=30)
#: Counts the exchanges of this process, on every rank alike.
_exchanges = itertools.count()


class RanksDisagreeError(PatchesError):
    """A patch has failed on one rank in the middle of a training that the other ranks go on with."""


def told(text: str) -> str:
    """Return the first rank's text, on every rank. Called on every rank, in the same order.

    Raises:
        RanksDisagreeError: The first rank says nothing.
    """
    if not _are_ranks():
        return text
    from torch import distributed

    store = _store(f"told/{next(_exchanges)}")
    if distributed.get_rank() == 0:
        store.set("0", text)
        return text
    try:
        store.wait(["0"], WAIT)
        return str(store.get("0").decode())
    except RuntimeError as error:  # torch's DistStoreError
        raise RanksDisagreeError("rank 0 has not come to its validation, or has ended") from error


def once(agreed: Callable[[bool], bool]) -> Callable[[str, bool], bool]:
    """Return a function that agrees on each thing, by its name, the first time that it is asked for it."""
    known: dict[str, bool] = {}

    def ask(name: str, word: bool) -> bool:
        if name not in known:
            known[name] = agreed(word)
        return known[name]

    return ask


def exchange(text: str, tell: Callable[[str], None]) -> list[str]:
    """Return every rank's text. Called on every rank, in the same order.

    Args:
        text: This rank's.
        tell: Logs a warning.

    Raises:
        RanksDisagreeError: A rank says nothing; it trains without yolo-patches.
    """
    if not _are_ranks():
        return [text]
    from torch import distributed

    ranks, rank = distributed.get_world_size(), distributed.get_rank()
    try:
        store = _store(f"agree/{next(_exchanges)}")
    except (AttributeError, ValueError) as error:  # a torch without it; on every rank alike
        tell(f"ranks could not agree on what they have dropped: {type(error).__name__}: {error}")
        return [text]
    store.set(str(rank), text)
    texts = []
    for other in range(ranks):
        try:
            store.wait([str(other)], WAIT)
            texts.append(store.get(str(other)).decode())
        except RuntimeError as error:  # torch's DistStoreError
            raise RanksDisagreeError(
                f"rank {other} has not come to the first step: it trains without yolo-patches, or not at all; install "
                "the same version on every node"
            ) from error
    return texts


def leave(name: str, text: str) -> None:
    """Leave a text for the first rank; nobody waits.

    Args:
        name: What it is, the same on every rank, and another one each time.
        text: This rank's.
    """
    if _are_ranks():
        from torch import distributed

        _store(name).set(str(distributed.get_rank()), text)


def left(name: str, patience: timedelta) -> dict[int, str]:
    """Return what other ranks have left under a name, by rank.

    Args:
        name: As they have called it.
        patience: How long to wait for them, altogether; a rank that has not come by then is left out.
    """
    if not _are_ranks():
        return {}
    from torch import distributed

    store, texts = _store(name), {}
    ends = time.monotonic() + patience.total_seconds()
    for rank in set(range(distributed.get_world_size())) - {distributed.get_rank()}:
        key = str(rank)
        while not store.check([key]) and time.monotonic() < ends:
            time.sleep(0.02)
        if store.check([key]):
            texts[rank] = store.get(key).decode()
            store.delete_key(key)
    return texts


def heard(name: str, rank: int, patience: timedelta) -> str | None:
    """Return what one rank has left under a name; None where it has left nothing in time, or nobody can be asked.

    Args:
        name: As that rank has called it.
        rank: Which.
        patience: How long to wait for it.
    """
    if not _are_ranks():
        return None
    store, key = _store(name), str(rank)
    ends = time.monotonic() + patience.total_seconds()
    try:
        while not store.check([key]):
            if time.monotonic() > ends:
                return None
            time.sleep(0.05)
        return str(store.get(key).decode())
    except RuntimeError:  # whoever kept the store has ended
        return None


def this_rank() -> int:
    """Return this rank's number; 0 where there are no ranks."""
    if not _are_ranks():
        return 0
    from torch import distributed

    return int(distributed.get_rank())


def _are_ranks() -> bool:
    from torch import distributed

    return bool(distributed.is_available() and distributed.is_initialized())


def _store(name: str) -> Any:
    """Return the part of the ranks' store that has this name."""
    from torch.distributed import distributed_c10d

    return distributed_c10d.PrefixStore(f"yolo-patches/{name}", distributed_c10d._get_default_store())
