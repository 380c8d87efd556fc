"""How many images a data set's `train:` names: counted where they lie, read nothing, download nothing."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

#: The formats that upstreams take for images, most of them.
SUFFIXES = frozenset(
    ["bmp", "dng", "heic", "heif", "jp2", "jpeg", "jpeg2000", "jpg", "mpo", "png", "tif", "tiff", "webp", "pfm", "avif"]
)


def count(data: str | Path, homes: Iterable[Path] = ()) -> int | None:
    """Return the number of training images, or None where they do not lie here or the file is not one.

    Args:
        data: A data set's yaml file.
        homes: Folders where a relative `path:` is looked for; beside the file in any case.
    """
    import yaml

    file = Path(data)
    try:
        loaded = yaml.safe_load(file.read_text(encoding="utf-8", errors="ignore"))
        if not isinstance(loaded, dict) or not loaded.get("train"):
            return None
        for home in (*homes, file.parent):
            root = Path(home, str(loaded.get("path") or "."))
            entries = loaded["train"] if isinstance(loaded["train"], list) else [loaded["train"]]
            found = [root / str(entry) for entry in entries]
            if all(path.exists() for path in found):
                return sum(1 for path in found for _ in _images(path))
    except (OSError, yaml.YAMLError):
        pass
    return None


def _images(path: Path) -> Iterator[Any]:
    if path.is_file():  # a list of images, one a line
        with open(path, encoding="utf-8", errors="ignore") as lines:
            yield from (line for line in lines if line.strip())
        return
    for _, _, names in os.walk(path):
        yield from (name for name in names if name.rpartition(".")[2].lower() in SUFFIXES)
