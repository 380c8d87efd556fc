"""Which images of two sets are the same, or nearly."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Optional

#: Bits of a hash: 16 rows of 16 comparisons of neighbours.
SIDE = 16
BITS = SIDE * SIDE
#: Bits in which the hashes of two images of one scene may differ.
NEAR = 12
#: Images of each set that are hashed; of more, so many that lie evenly among them.
MOST = 5000
#: Grey levels of spread below which an image has nothing to compare.
FLAT = 2.0


@dataclass(frozen=True)
class Near:
    """What was found.

    Attributes:
        pairs: (one of the first set, one of the second that is like it), one for each of the second.
        compared: How many of the second set were looked at.
    """

    pairs: tuple[tuple[str, str], ...]
    compared: int


def same(first: Sequence[str], second: Sequence[str]) -> list[tuple[str, str]]:
    """Return the pairs of files with the same content, one for each of the second set that has one in the first."""
    sizes = {os.path.getsize(path) for path in first} & {os.path.getsize(path) for path in second}
    known = {_digest(path): path for path in first if os.path.getsize(path) in sizes}
    candidates = ((path, _digest(path)) for path in second if os.path.getsize(path) in sizes)
    return [(known[digest], path) for path, digest in candidates if digest in known]


def _digest(path: str) -> bytes:
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).digest()


def near(first: Sequence[str], second: Sequence[str]) -> Near:
    """Return the pairs of images whose difference hashes are close.

    The hash says of a 16 x 16 picture which of two neighbours is brighter (N. Krawetz, "Kind of like that", 2013): it
    survives another size, compression and brightness.
    """
    import numpy as np

    ours, theirs = _hashed(_evenly(first)), _hashed(_evenly(second))
    if not ours or not theirs:
        return Near((), len(_evenly(second)))
    ones = np.array([bin(byte).count("1") for byte in range(256)], dtype=np.uint8)
    hashes = np.stack([code for _, code in ours])
    pairs = []
    for path, code in theirs:
        distances = ones[hashes ^ code].sum(1, dtype=np.int64)
        closest = int(distances.argmin())
        if distances[closest] <= NEAR:
            pairs.append((ours[closest][0], path))
    return Near(tuple(pairs), len(_evenly(second)))


def _evenly(paths: Sequence[str]) -> Sequence[str]:
    return paths if len(paths) <= MOST else [paths[len(paths) * place // MOST] for place in range(MOST)]


def _hashed(paths: Iterable[str]) -> list[tuple[str, Any]]:
    codes = ((path, _hash(path)) for path in paths)
    return [(path, code) for path, code in codes if code is not None]


def _hash(path: str) -> Optional[Any]:
    """Return 32 bytes, or None of an image that cannot be read or has nothing in it."""
    import cv2
    import numpy as np

    image = cv2.imdecode(np.fromfile(path, dtype=np.uint8), cv2.IMREAD_GRAYSCALE)
    if image is None:
        return None
    small = cv2.resize(image, (SIDE + 1, SIDE), interpolation=cv2.INTER_AREA).astype(np.int16)
    return np.packbits(small[:, 1:] > small[:, :-1]) if small.std() >= FLAT else None
