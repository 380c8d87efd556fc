"""Which model an Ultralytics training is about, and whether it starts from weights."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from yolo_patches.facts import Model, Recognised
from yolo_patches.upstreams.architecture import recognise
from yolo_patches.upstreams.ultralytics.commands import subject

YAML = (".yaml", ".yml")


def model(owner: type, args: Mapping[str, Any]) -> Model:
    """Return what is known of the model that a training is about.

    Args:
        owner: The trainer's class.
        args: Upstream's resolved training arguments.
    """
    name = str(args.get("model"))
    return Model(
        name=Path(name).stem,
        scratch=_from_scratch(owner, args, name),
        recognise=functools.cache(lambda: _recognised(name)),
        rewritten="torch.compile" if args.get("compile") else "quantisation" if args.get("quantize") == 8 else "",
    )


def _from_scratch(owner: type, args: Mapping[str, Any], name: str) -> bool:
    """Return whether training starts from random weights.

    A YOLO object says whether it holds weights: a model file's `load(weights)` is not in the arguments of 8.4. Releases
    before 8.4.60 take the weights of a .pt file whatever `pretrained=` says.
    """
    if args.get("resume") or isinstance(args.get("pretrained"), (str, Path)):
        return False
    live = subject.get()
    holds = not name.endswith(YAML) if live is None else bool(getattr(live, "ckpt", None))
    return not holds or (args.get("pretrained") is False and _leaves_weights(owner))


def _leaves_weights(owner: type) -> bool:
    setup = getattr(owner, "setup_model", None)
    try:
        return setup is not None and "pretrained is False" in inspect.getsource(setup)
    except (OSError, TypeError):
        return False


def _recognised(name: str) -> Recognised:
    config = getattr(getattr(subject.get(), "model", None), "yaml", None)
    if not isinstance(config, Mapping):
        if not name.endswith(YAML):
            return Recognised("", f"{name} is not read for that; give augment:recipe=, or train a YOLO(...) object")
        from ultralytics.nn import tasks

        config = tasks.yaml_model_load(name)  # type: ignore[no-untyped-call]
    return recognise("ultralytics", Path(name).stem, config, _shipped())


def _shipped() -> Iterable[Path]:
    import ultralytics

    return sorted(Path(str(ultralytics.__file__)).parent.glob("cfg/models/**/*.yaml"))
