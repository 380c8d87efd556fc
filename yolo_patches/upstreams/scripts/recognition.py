"""Which project a folder holds, by what lies in it: `utils` and `models` are names that many projects use.

Standard library only: this is asked whenever a package of one of these names is about to be imported.
"""

from __future__ import annotations

import os
from importlib.machinery import ModuleSpec
from importlib.util import find_spec

#: Upstream -> files that its checkout has, and files that it has not. The folder's own name says nothing.
MARKS = {
    "yolov9": (("train_dual.py", "utils/loss_tal_dual.py", "utils/tal/assigner.py"), ()),
    "yolov5": (("train.py", "utils/loss.py", "utils/autobatch.py", "utils/segment/loss.py"), ("utils/tal",)),
}
#: In every one of them, with these words in it.
COMMON = ("utils/torch_utils.py", b"\ndef smart_optimizer(")


def find(folder: str | os.PathLike[str]) -> str | None:
    """Return the upstream whose checkout, or installed package, a folder is; None where it is another project's."""
    for name, (present, absent) in MARKS.items():
        if all(os.path.isfile(os.path.join(folder, *mark.split("/"))) for mark in present) and not any(
            os.path.exists(os.path.join(folder, *mark.split("/"))) for mark in absent
        ):
            try:
                with open(os.path.join(folder, *COMMON[0].split("/")), "rb") as file:
                    return name if COMMON[1] in file.read().replace(b"\r\n", b"\n") else None
            except OSError:
                return None
    return None


def of_package(spec: ModuleSpec) -> str | None:
    """Return the upstream that a package belongs to: `utils` or `models` of a checkout, or the package itself."""
    for folder in spec.submodule_search_locations or ():
        home = os.path.dirname(folder) if spec.name in ("utils", "models") else folder
        found = find(home)
        if found and spec.name in ("utils", "models", found):
            return found
    return None


def of_script(script: str | os.PathLike[str]) -> tuple[str, str] | None:
    """Return the upstream and the root of the checkout in which a script lies, or None."""
    folder = os.path.dirname(os.path.abspath(script))
    for root in (folder, os.path.dirname(folder)):
        found = find(root)
        if found:
            return found, root
    return None


def home(name: str) -> str | None:
    """Return where an upstream is: this folder, if it is its checkout, or its installed package; None where neither."""
    if find(os.getcwd()) == name:
        return os.getcwd()
    spec = find_spec(name)
    if spec is None or of_package(spec) != name:
        return None
    return next(iter(spec.submodule_search_locations or ()), None)
