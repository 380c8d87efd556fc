"""What today's stack has taken from these scripts, as objects that only their modules see.

An `Overlay` replaces a module's global `torch` or `np`: it has a few attributes of its own and is the library for the
rest. The libraries themselves are never touched.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from importlib.util import find_spec
from types import ModuleType
from typing import Any

#: Names that NumPy 2 has removed -> what they were.
NUMPY: Mapping[str, str | type] = {
    "trapz": "trapezoid",
    "in1d": "isin",
    "product": "prod",
    "cumproduct": "cumprod",
    "alltrue": "all",
    "sometrue": "any",
    "row_stack": "vstack",
    "float_": "float64",
    "Inf": "inf",
    "NaN": "nan",
    "float": float,
    "int": int,
    "object": object,
}
PKG_RESOURCES, TORCH_LOAD, AMP, FONTS, NAMES = "pkg_resources", "torch.load", "torch.cuda.amp", "ImageFont", "numpy"


@cache
def gaps() -> Mapping[str, str]:
    """Return what these scripts use and the installed stack lacks or has changed -> what comes of it."""
    import numpy
    import torch
    from PIL import ImageFont

    version = tuple(int(number) for number in re.findall(r"\d+", torch.__version__)[:2])
    found = {
        PKG_RESOURCES: "ModuleNotFoundError" if find_spec("pkg_resources") is None else "",
        TORCH_LOAD: "weights_only=True, UnpicklingError" if version >= (2, 6) else "",
        AMP: "FutureWarning" if version >= (2, 4) else "",
        FONTS: "" if hasattr(ImageFont.FreeTypeFont, "getsize") else "AttributeError: getsize",
        NAMES: "" if hasattr(numpy, "trapz") and "float" in vars(numpy) else "AttributeError: trapz, float, ...",
    }
    return {what: comes for what, comes in found.items() if comes}


class Overlay(ModuleType):
    """A library with some attributes replaced."""

    def __init__(self, library: Any, **replaced: Any) -> None:
        super().__init__(library.__name__)
        vars(self).update(replaced, _library=library)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._library, name)


class KeepingOverlay(Overlay):
    """An overlay that looks everything up once, for what is called many times and changed by nobody meanwhile."""

    def __getattr__(self, name: str) -> Any:
        found = vars(self)[name] = getattr(self._library, name)
        return found


def torch_overlay(torch: Any, load: Callable[..., Any] | None, amp: bool, clip: Callable[..., Any] | None) -> Overlay:
    """Return torch with other functions.

    Args:
        torch: The library.
        load: Stands in for torch.load.
        amp: Whether the deprecated torch.cuda.amp calls become what they are deprecated for.
        clip: Stands in for torch.nn.utils.clip_grad_norm_.
    """
    replaced: dict[str, Any] = {} if load is None else {"load": load}
    if amp:
        current = Overlay(torch.cuda.amp, GradScaler=_scaler(torch), autocast=_autocast(torch))
        replaced["cuda"] = Overlay(torch.cuda, amp=current)
    if clip is not None:
        replaced["nn"] = Overlay(torch.nn, utils=Overlay(torch.nn.utils, clip_grad_norm_=clip))
    return Overlay(torch, **replaced)


def _scaler(torch: Any) -> Callable[..., Any]:
    def scaler(*args: Any, **kwargs: Any) -> Any:
        return torch.amp.GradScaler("cuda", *args, **kwargs)

    return scaler


def _autocast(torch: Any) -> Callable[..., Any]:
    def autocast(enabled: bool = True, dtype: Any = torch.float16, cache_enabled: bool = True) -> Any:
        return torch.amp.autocast("cuda", dtype=dtype, enabled=enabled, cache_enabled=cache_enabled)

    return autocast


def numpy_overlay(numpy: Any) -> Overlay:
    """Return NumPy with the names that it has removed, as far as upstream may use them."""
    lacking = {
        name: getattr(numpy, now) if isinstance(now, str) else now
        for name, now in NUMPY.items()
        if name not in vars(numpy)
    }
    return Overlay(numpy, **lacking)


def with_getsize(font: Any) -> Any:
    """Return a font that has the method which Pillow 10 removed."""

    def getsize(text: str, *args: Any, **kwargs: Any) -> tuple[int, int]:
        _, _, right, bottom = font.getbbox(text, *args, **kwargs)
        return int(right), int(bottom)

    if font is not None and not hasattr(font, "getsize"):
        font.getsize = getsize
    return font


def pkg_resources() -> ModuleType:
    """Return a module with those functions of pkg_resources that the scripts call."""
    from importlib import metadata

    version = importlib.import_module("packaging.version")
    requirements = importlib.import_module("packaging.requirements")
    module = ModuleType("pkg_resources", "A stand-in by yolo-patches, for the modules of one checkout.")

    class DistributionNotFound(Exception):  # noqa: N818 - their names
        """A requirement is not installed."""

    class VersionConflict(Exception):  # noqa: N818
        """A requirement is installed in another version."""

    def parse_requirements(lines: str | Iterable[str]) -> list[Any]:
        texts = (line.partition("#")[0].strip() for line in (lines.split("\n") if isinstance(lines, str) else lines))
        found = [requirements.Requirement(text) for text in texts if text and not text.startswith("-")]
        return [requirement for requirement in found if not requirement.marker or requirement.marker.evaluate()]

    def require(*texts: str) -> None:
        for text in texts:
            for requirement in parse_requirements(text):
                try:
                    installed = metadata.version(requirement.name)
                except metadata.PackageNotFoundError:
                    raise DistributionNotFound(str(requirement)) from None
                if not requirement.specifier.contains(installed, prereleases=True):
                    raise VersionConflict(f"{requirement.name} {installed}", str(requirement))

    vars(module).update(
        parse_version=version.parse,
        parse_requirements=parse_requirements,
        require=require,
        DistributionNotFound=DistributionNotFound,
        VersionConflict=VersionConflict,
    )
    return module


def loader(torch: Any, trusted: Callable[[Any], bool]) -> Callable[..., Any]:
    """Return a torch.load that unpickles without restrictions what `trusted` says, and is torch's own for the rest."""

    def load(f: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("weights_only") is None and trusted(f):
            kwargs["weights_only"] = False
        return torch.load(f, *args, **kwargs)

    load.__signature__ = inspect.signature(torch.load)  # type: ignore[attr-defined]
    return load
