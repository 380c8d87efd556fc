"""What a script's arguments and hyperparameters say about a training, before anything is built."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from yolo_patches import facts as known
from yolo_patches.doctor.subject import Settings
from yolo_patches.facts import Facts, Given
from yolo_patches.forecast import forecasting
from yolo_patches.seams import Arguments
from yolo_patches.upstreams import image_lists, stack
from yolo_patches.upstreams.architecture import recognise
from yolo_patches.upstreams.scripts import command_line, source
from yolo_patches.upstreams.scripts.layout import Layout
from yolo_patches.upstreams.scripts.session import Session

#: Attributes of a script's arguments that are no settings of a training.
NO_SETTINGS = frozenset({"hyp", "save_dir", "resume", "local_rank"})

#: The figures of each kind of output, in the order of a validation's result.
FIGURES = ("precision", "recall", "mAP50", "mAP50-95")


def world_size() -> int:
    """Return the number of ranks, as the scripts take it from their launcher."""
    return int(os.getenv("WORLD_SIZE", "1"))


def ranks_on_node() -> int:
    """Return the number of ranks on this node, 0 where the launcher does not say."""
    return int(os.getenv("LOCAL_WORLD_SIZE", "0"))


def rank() -> int:
    """Return this process's rank, -1 without a launcher."""
    return int(os.getenv("RANK", "-1"))


def version(layout: Layout, root: Path) -> str:
    """Return an installed package's version; a checkout has none."""
    try:
        text = (root / "__init__.py").read_text(encoding="utf-8")
    except OSError:
        return "checkout"
    found = re.search(r"""^__version__ = ["'](.+?)["']""", text, re.MULTILINE)
    return found.group(1) if found else "unknown"


def hyperparameters(hyp: Any) -> Mapping[str, Any]:
    """Return hyperparameters, given as such or as a file; none where there are none, which is upstream's to say."""
    if isinstance(hyp, (str, Path)):
        import yaml

        try:
            hyp = yaml.safe_load(Path(hyp).read_text(encoding="utf-8", errors="ignore"))
        except (OSError, yaml.YAMLError):
            return {}
    return hyp if isinstance(hyp, Mapping) else {}


def given(session: Session, hyp: Mapping[str, Any], opt: Any) -> Given:
    """Return what the user gave: what was typed, and the hyperparameters that are not those of upstream's own file."""
    script = session.root / session.script
    attributes = vars(opt)
    names = command_line.typed(source.options(script), attributes)
    values = {name: attributes[name] for name in names if name in attributes}
    origins = dict.fromkeys(values, "command line")
    published, origin = _published(session, script), "checkpoint" if getattr(opt, "resume", False) else "file"
    for name, value in hyp.items():
        if name not in published or published[name] != value:
            values.setdefault(name, value)
            origins.setdefault(name, origin)
    return Given(values, origins)


def _published(session: Session, script: Path) -> Mapping[str, Any]:
    """Return upstream's own hyperparameters: the script's default, or where the checkout lacks it, what it has."""
    default = source.default_file(script, "hyp")
    files = [session.root / default] if default else []
    files += sorted((session.root / "data" / "hyps").glob("hyp.scratch*.yaml"))
    return next((hyperparameters(file) for file in files if file.is_file()), {})


def seam(facts: Facts, hyp: Mapping[str, Any], opt: Any) -> Arguments:
    """Return the seam at which patches may set arguments, or hyperparameters, that the user has not given."""
    settings = {**{name: value for name, value in vars(opt).items() if name not in NO_SETTINGS}, **hyp}
    return Arguments(facts, {name: value for name, value in settings.items() if name not in facts.given})


def facts(
    session: Session,
    hyp: Mapping[str, Any],
    opt: Any,
    device: str,
    floored: bool,
    resumed: Mapping[str, Mapping[str, Any]] | None = None,
) -> Facts:
    """Return the facts of a training.

    Args:
        session: The script's.
        hyp: Hyperparameters.
        opt: The script's parsed arguments.
        device: Type of the device that it trains on, empty where that is not known.
        floored: Whether its criterion keeps its normaliser away from zero.
        resumed: Entries of a resumed training's patches.json.
    """
    layout = session.layout
    task = layout.scripts[session.script]
    script = session.root / session.script
    usual = known.Optimization()
    return Facts(
        upstream=layout.name,
        version=version(layout, session.root),
        task=task,
        batch=known.Batch(size=opt.batch_size),  # 64 images up to which it accumulates, and twice the validation batch
        optimization=known.Optimization(
            optimizer=str(getattr(opt, "optimizer", usual.optimizer)),
            lr0=_number(hyp.get("lr0"), usual.lr0),
            weight_decay=_number(hyp.get("weight_decay"), usual.weight_decay),
            epochs=int(_number(getattr(opt, "epochs", None), usual.epochs)),
            warmup_epochs=_number(hyp.get("warmup_epochs"), usual.warmup_epochs),
            patience=int(_number(getattr(opt, "patience", None), 0)),
        ),
        devices=known.Devices(world_size=world_size(), kind=device, own_ranks=True, own_ranks_on_node=ranks_on_node()),
        loss=known.Loss(
            normaliser=layout.tasks[task].normaliser, floored=floored, validated=_validates_loss(session, script)
        ),
        model=known.Model(
            name=Path(str(getattr(opt, "cfg", ""))).stem,
            scratch=not str(getattr(opt, "weights", "")).endswith(".pt"),
            recognise=functools.cache(lambda: _recognised(session, str(getattr(opt, "cfg", "")))),
            own_sync_bn="--sync-bn" if getattr(opt, "sync_bn", False) else "",
        ),
        given=given(session, hyp, opt),
        resumed=resumed or {},
        validates=not getattr(opt, "noval", False),
        is_resumed=bool(getattr(opt, "resume", False)),
        metrics=metrics(task),
        gaps=stack.gaps(),
        images=functools.partial(image_lists.count, str(opt.data), (Path(), session.root, session.root.parent))
        if forecasting.get()
        else known.uncounted,
    )


def settings(hyp: Mapping[str, Any], opt: Any) -> Settings:
    """Return the arguments and hyperparameters that only `doctor` judges, as far as the scripts have them."""
    cache = getattr(opt, "cache", None)
    options = {"batch": "batch-size", "sync_bn": "sync-bn", "close_mosaic": "close-mosaic"}

    def spell(name: str, value: Any) -> str:
        if name == "patches":
            return f"--patches {value}"
        if name in hyp:
            return f"{name}: {value} in the file of --hyp"
        return f"--{options.get(name, name)} {value}"

    return Settings(
        imgsz=int(_number(getattr(opt, "imgsz", None), 640)),
        stride=32,
        workers=int(_number(getattr(opt, "workers", None), 8)),
        cache=str(cache or ""),
        mosaic=_number(hyp.get("mosaic"), 0),
        close_mosaic=None if not hasattr(opt, "close_mosaic") else int(opt.close_mosaic),
        warmup=lambda batches: max(round(_number(hyp.get("warmup_epochs"), 3) * batches), 100),
        spell=spell,
    )


def metrics(task: str) -> tuple[str, ...]:
    """Return what the first figures of a task's validation are, by the names that Ultralytics has for them."""
    return tuple(f"{name}({kind})" for kind in ("B" if task == "detect" else "BM") for name in FIGURES)


def _validates_loss(session: Session, script: Path) -> bool:
    """Return whether the script's validation calls the criterion that it is given, in code and not in a comment."""
    module = source.validator(script).removeprefix(f"{session.layout.name}.")
    file = session.root.joinpath(*module.split(".")).with_suffix(".py")
    return "compute_loss" not in source.functions(file).get("run", ()) or "compute_loss(" in source.code(file)


def _recognised(session: Session, cfg: str) -> known.Recognised:
    import yaml

    if not cfg:
        return known.Recognised("", "--cfg names no model file; give it, or augment:recipe=")
    config = yaml.safe_load(Path(cfg).read_text(encoding="utf-8", errors="ignore"))
    return recognise(session.layout.name, Path(cfg).stem, config, sorted(session.root.glob("models/**/*.yaml")))


def _number(value: Any, otherwise: float) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return otherwise
