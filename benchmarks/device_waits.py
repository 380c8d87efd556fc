"""How often a validation makes its host wait for a CUDA device, counted without one.

    python benchmarks/device_waits.py [--images 32] [--batch 16] [--json]

A device is played: tensors that would be there are marked, compute on the CPU, and say `cuda:0` of themselves, so that
upstream and the patches go the way that they go on a device. What waits there is counted:

- values that Python reads: `.item()`, `.tolist()`, `bool()`, `int()`, `float()`, `torch.equal`
- copies to the host (https://docs.pytorch.org/docs/stable/notes/cuda.html#asynchronous-execution), and copies from
  memory that is not page-locked (https://docs.pytorch.org/docs/stable/notes/cuda.html#use-pinned-memory-buffers)
- results whose size depends on values: `nonzero` and all that is made of it, such as indexing by a mask
  (https://docs.pytorch.org/docs/stable/generated/torch.nonzero.html), `masked_select`, `unique`; `bincount`
  reads the smallest and the largest value
- torchvision's suppression: once a call, where it selects what it keeps
- `torch.cuda.synchronize`, which upstream calls before and after each stage that it times

On a device the same is shown by `torch.cuda.set_sync_debug_mode("warn")`, which sees most of it. What functions that
are written in Python do inside is not seen here, and neither is what the model waits for.

Bar: at most one wait an image with fast-val, beside the model and its loss.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

sys.path.insert(0, str(Path(__file__).resolve().parent))
CUDA = torch.device("cuda", 0)
CPU = torch.device("cpu")
#: Methods and functions that wait, and how often.
WAITS = {
    **dict.fromkeys(("item", "tolist", "__bool__", "__int__", "__float__", "__index__", "__contains__"), 1),
    **dict.fromkeys(("equal", "allclose", "is_nonzero", "nonzero", "argwhere", "masked_select", "nms"), 1),
    **dict.fromkeys(("unique", "unique_consecutive", "_unique2"), 1),
    "bincount": 2,
}


class There(torch.Tensor):
    """A tensor that the played device has. What is computed from it is there, too."""


class Pinned(torch.Tensor):
    """A tensor in page-locked memory of the host. What is computed from it is not."""

    __torch_function__ = torch._C._disabled_torch_function_impl


class PlayedDevice(TorchFunctionMode):
    """Plays a CUDA device, and counts what the host waits for.

    Attributes:
        waits: Number of waits by what has caused them, and where.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()

    @contextlib.contextmanager
    def playing(self) -> Iterator[PlayedDevice]:
        """Play it for a while."""
        count = lambda *_: self._wait("torch.cuda.synchronize")  # noqa: E731
        with mock.patch("torch.cuda.synchronize", count), self:
            yield self

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do what the device would do."""
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", str(func))
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        there = any(isinstance(tensor, There) for tensor in tensors)
        if name == "__get__":
            return self._attribute(func, args, there)
        if name in ("to", "cpu", "cuda", "pin_memory"):
            return self._moved(func, name, args, kwargs, there)
        if _is_cuda(kwargs.get("device")):
            if name in ("tensor", "as_tensor") and not there:
                self._wait(name)
            return _there(func(*args, **{**kwargs, "device": CPU}))
        if there:
            if name == "numpy":
                raise TypeError("can't convert cuda:0 device type tensor to numpy")
            self._check(name, tensors)
            self._count(name, args, kwargs)
        return func(*args, **kwargs)

    @staticmethod
    def _attribute(func: Any, args: Any, there: bool) -> Any:
        which = func.__self__.__name__
        if there and which in ("device", "is_cuda", "is_cpu"):
            return {"device": CUDA, "is_cuda": True, "is_cpu": False}[which]
        return func(*args)

    def _moved(self, func: Any, name: str, args: Any, kwargs: dict[str, Any], there: bool) -> Any:
        """Copy between the host and the device, or do nothing."""
        self_, *words = args
        if name == "pin_memory":
            return self_.clone().as_subclass(Pinned)
        device = {"cpu": CPU, "cuda": CUDA}.get(name) or kwargs.pop("device", None)
        for word in list(words):
            if isinstance(word, (str, torch.device)):
                device = torch.device(word)
                words.remove(word)
            elif isinstance(word, torch.Tensor):
                device = word.device
        goes = device is not None and _is_cuda(device) != there
        if goes and (there or not (isinstance(self_, Pinned) and kwargs.get("non_blocking"))):
            self._wait(f"copy to the {'host' if there else 'device'}")
        plain = self_.as_subclass(torch.Tensor)
        made = plain.to(*words, **kwargs) if name == "to" and (words or kwargs) else plain
        made = made.clone() if goes and made is plain else made
        return _there(made) if (_is_cuda(device) if device is not None else there) else made

    @staticmethod
    def _check(name: str, tensors: list[torch.Tensor]) -> None:
        """Refuse what a device refuses: to compute with what the host has, but for single numbers and indices."""
        if name in ("copy_", "__setitem__", "__getitem__", "__set__"):
            return
        if any(not isinstance(tensor, There) and tensor.as_subclass(torch.Tensor).dim() for tensor in tensors):
            raise RuntimeError(f"{name}: expected all tensors to be on the same device, but found cuda:0 and cpu")

    def _count(self, name: str, args: Any, kwargs: dict[str, Any]) -> None:
        if name in ("__getitem__", "__setitem__"):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            scalar = name == "__setitem__" and not isinstance(args[2], torch.Tensor)
            for one in index:
                if isinstance(one, torch.Tensor) and one.dtype in (torch.bool, torch.uint8) and not scalar:
                    self._wait("a mask as index")
                elif isinstance(one, list) or (
                    isinstance(one, torch.Tensor) and not isinstance(one, There) and one.dim()
                ):
                    self._wait("an index of the host's")
            if name == "__setitem__" and isinstance(args[2], torch.Tensor) and not isinstance(args[2], There):
                self._wait("copy to the device")
        elif name == "copy_" and not all(isinstance(one, There) for one in args[:2]):
            self._wait(name)
        elif name == "where" and len(args) + len(kwargs) == 1:
            self._wait("where")
        elif name == "repeat_interleave" and any(isinstance(one, There) for one in args[1:]):
            if kwargs.get("output_size") is None:
                self._wait(name)
        else:
            for _ in range(WAITS.get(name, 0)):
                self._wait(name)

    def _wait(self, what: str) -> None:
        frames = [frame for frame in traceback.extract_stack() if not _ours_or_torchs(frame.filename)]
        place = f"{Path(frames[-1].filename).stem}.{frames[-1].name}" if frames else "?"
        self.waits[f"{what} in {place}"] += 1


def _ours_or_torchs(file: str) -> bool:
    return file == __file__ or f"{Path(torch.__file__).parent}/" in file or "unittest" in file


def _is_cuda(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def _there(value: Any) -> Any:
    return value.as_subclass(There) if isinstance(value, torch.Tensor) else value


def _pinned(batch: dict[str, Any]) -> dict[str, Any]:
    """Return a batch as a loader for a device gives it."""
    return {
        key: value.clone().as_subclass(Pinned) if isinstance(value, torch.Tensor) else value
        for key, value in batch.items()
    }


class _PinningLoader:
    """A loader that page-locks what it gives; everything else of it is upstream's."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        return map(_pinned, self._loader)


def put_on_device(arm: Any, crowd: Callable[..., Any]) -> None:
    """Let a trainer, whose model is a stand-in, validate on the played device."""

    def predict(images: Any, *args: Any, **kwargs: Any) -> Any:
        assert isinstance(images, There), "the model is on the device"
        made = crowd(images, *args, **kwargs)
        return made[0].as_subclass(There), made[1]

    losses = dict.fromkeys(("box_loss", "cls_loss", "dfl_loss"), torch.zeros(()).as_subclass(There))
    arm.device = CUDA
    arm.loss_items, arm.loss = losses, torch.zeros(()).as_subclass(There)
    arm.ema.ema.forward, arm.ema.ema.loss = predict, lambda *_: (None, losses)
    arm.test_loader = arm.validator.dataloader = _PinningLoader(arm.test_loader)


def measure(images: int, batch: int, candidates: int, size: int = 640) -> dict[str, Any]:
    """Count the waits of a validation, upstream's and with fast-val, after those in which its parts are compared.

    Args:
        images: Of the data set.
        batch: Images of a validation batch.
        candidates: Of an image.
        size: Of an image, in pixels.
    """
    from validation import COMPARED, Crowd, photographs, trainer

    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        data = photographs(Path(folder), images)
        for name, spec in (("upstream", "none"), ("fast-val", "fast-val")):
            arm = trainer(data, folder, spec, batch=batch // 2, size=size)  # upstream validates with twice as many
            put_on_device(arm, Crowd(candidates, list(arm.test_loader)))
            for _ in range(math.ceil(COMPARED / len(arm.test_loader)) if spec != "none" else 0):
                with PlayedDevice().playing():
                    arm.validate()
            with PlayedDevice().playing() as device:
                metrics, _ = arm.validate()
            waits = {what: count / images for what, count in device.waits.most_common()}
            found[name] = {"waits an image": sum(waits.values()), "where": waits, "metrics": metrics}
    found["equal"] = found["upstream"]["metrics"] == found["fast-val"]["metrics"]
    return found


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--batch", type=int, default=16, help="images of a validation batch")
    parser.add_argument("--candidates", type=int, default=976, help="of an image")
    parser.add_argument("--size", type=int, default=640, help="of an image, in pixels")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    found = measure(options.images, options.batch, options.candidates, options.size)
    if options.json:
        print(json.dumps(found))
        return
    for name in ("upstream", "fast-val"):
        print(f"{name}: {found[name]['waits an image']:.2f} waits an image")
        for what, count in found[name]["where"].items():
            print(f"    {count:6.2f}  {what}")
    print(f"metrics equal: {found['equal']}")


if __name__ == "__main__":
    main()
