"""Which project a folder holds, by what lies in it: `utils` and `models` are names that many projects use.

`os` only, which every interpreter has: this is asked whenever a package of one of these names is about to be executed.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec

#: Upstream -> files that its checkout has, and files that it has not. The folder's own name says nothing.
MARKS = {
    "yolov9": (("train_dual.py", "utils/loss_tal_dual.py", "utils/tal/assigner.py"), ()),
    "yolov5": (("train.py", "utils/loss.py", "utils/autobatch.py", "utils/segment/loss.py"), ("utils/tal",)),
}
#: In every one of them, with one of these functions in it: so one that has been renamed is not a project of its own.
COMMON = ("utils", "torch_utils.py")
FUNCTIONS = (b"\ndef smart_optimizer(", b"\ndef smart_resume(", b"\ndef smart_DDP(")
#: Packages of a checkout, whose names say nothing.
OF_A_CHECKOUT = ("utils", "models")


def find(folder: str | os.PathLike[str]) -> str | None:
    """Return the upstream whose checkout, or installed package, a folder is; None where it is another project's."""
    for name, (present, absent) in MARKS.items():
        if all(os.path.isfile(os.path.join(folder, *mark.split("/"))) for mark in present) and not any(
            os.path.exists(os.path.join(folder, *mark.split("/"))) for mark in absent
        ):
            return name if _has_functions(os.path.join(folder, *COMMON)) else None
    return None


def _has_functions(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            text = file.read().replace(b"\r\n", b"\n")
    except OSError:
        return False
    return any(function in text for function in FUNCTIONS)


def of_package(spec: ModuleSpec) -> str | None:
    """Return the upstream that a package belongs to: `utils` or `models` of a checkout, or the package itself."""
    for folder in spec.submodule_search_locations or ():
        home = os.path.dirname(folder) if spec.name in OF_A_CHECKOUT else folder
        found = find(home)
        if found and spec.name in (*OF_A_CHECKOUT, found):
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
    from importlib.util import find_spec

    if find(os.getcwd()) == name:
        return os.getcwd()
    spec = find_spec(name)
    if spec is None or of_package(spec) != name:
        return None
    return next(iter(spec.submodule_search_locations or ()), None)
