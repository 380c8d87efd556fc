"""The seams that a checkout offers to one of its training scripts, read from its source."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from yolo_patches.activation import activation
from yolo_patches.caching_seams import CacheRoom, ImageCache
from yolo_patches.loading_seams import Feed, Samples
from yolo_patches.memory_seams import MicroStep, PrecisionCheck, Prediction, Preparation
from yolo_patches.observation_seams import Clip, EpochEnd
from yolo_patches.seams import (
    NO_PLACE,
    Arguments,
    EpochLosses,
    Loading,
    ModelBuilt,
    Normaliser,
    OptimizerBuilt,
    OptimizerRestored,
    OptimizerStep,
    Save,
    Seam,
    Step,
    Validation,
    ValLoader,
    WarmUp,
)
from yolo_patches.step_seams import Accumulation, TargetScores, WarmUpStep
from yolo_patches.upstreams.scripts import accumulation, source
from yolo_patches.upstreams.scripts.layout import FUNCTIONS, Layout
from yolo_patches.validation_seams import Deferral, Evaluation, Judged

#: The event that a script fires on every rank, right before it makes a step.
STEP_EVENT = "on_train_batch_start"


def missing(layout: Layout, root: Path, script: str) -> Mapping[type[Seam], str]:
    """Return the seams that a checkout lacks -> why.

    Args:
        layout: Of the upstream.
        root: Where its modules lie.
        script: One of the layout's scripts.
    """
    there = _Checkout(layout, root, script)
    task = layout.tasks[layout.scripts[script]]
    # main() calls the one right before the other; that is where a training is taken hold of.
    every = there.lacks("utils.torch_utils", "select_device") + there.script_lacks("train", ("hyp", "opt"))
    found: dict[type[Seam], list[str]] = {
        Arguments: [],
        ModelBuilt: there.lacks("utils.general", "check_amp") + there.steps(),
        ValLoader: there.loaders(),
        Accumulation: there.does_not_say(accumulation.ROUNDED) + there.does_not_say(accumulation.RAMP),
        OptimizerBuilt: there.lacks("utils.torch_utils", "smart_optimizer"),
        OptimizerRestored: there.lacks("utils.torch_utils", "smart_resume"),
        OptimizerStep: there.does_not_say("torch.nn.utils.clip_grad_norm_("),
        WarmUp: there.loaders("hyp") + there.does_not_say("hyp['warmup_epochs'] * nb"),
        Normaliser: there.criteria(task.criteria, task.assigner) + there.steps(),
        Validation: there.does_not_say("validate.run("),
        Evaluation: there.does_not_say("validate.run("),
        Judged: there.does_not_say("fitness(") + there.does_not_say("EarlyStopping("),
        Loading: there.loaders(),
        Feed: there.loaders(),
        Save: there.does_not_say("torch.save("),
        TargetScores: there.lacks(task.assigner, "TaskAlignedAssigner.forward") + there.steps()
        if task.assigner
        else ["the loss has no assigner; --label-smoothing is the script's own"],
        WarmUpStep: there.loaders("hyp")
        + there.steps()
        + there.does_not_say("hyp['warmup_bias_lr']")
        + there.does_not_say("torch.nn.utils.clip_grad_norm_("),
        Step: there.does_not_say("torch.cuda.amp.GradScaler(") + there.does_not_say("scaler.step(optimizer)"),
        Clip: there.does_not_say("torch.nn.utils.clip_grad_norm_("),
        EpochEnd: there.loaders(),
        EpochLosses: [NO_PLACE],
        Deferral: [NO_PLACE],
        Preparation: [NO_PLACE],
        PrecisionCheck: [NO_PLACE],  # a check that fails, for whatever reason, is answered by training without
        MicroStep: there.micro_steps(),
        CacheRoom: [NO_PLACE],
        ImageCache: [NO_PLACE],
        Samples: there.loaders(),
        Prediction: there.does_not_say("validate.run("),
    }
    return {seam: "; ".join(dict.fromkeys(every + why)) for seam, why in found.items() if every + why}


def fires_step_event(layout: Layout, root: Path, script: str) -> bool:
    """Return whether a script says by a callback where its steps begin."""
    return not _Checkout(layout, root, script).callbacks()


class _Checkout:
    """What one checkout lacks for one of its scripts, a line each; empty where nothing."""

    def __init__(self, layout: Layout, root: Path, script: str) -> None:
        self._layout = layout
        self._name = script
        self._root = root
        self._script = root / script
        self._loaders = layout.tasks[layout.scripts[script]].loaders

    def lacks(self, module: str, *names: str, parameters: Iterable[str] = ()) -> list[str]:
        """Look for functions of a module, and for their parameters."""
        file = self._root.joinpath(*module.split(".")).with_suffix(".py")
        if not file.is_file():
            file = self._root.joinpath(*module.split("."), "__init__.py")
        left_alone = (activation.left_alone.get(prefix + module) for prefix in ("", f"{self._layout.name}."))
        why = [f"{module}: {reason}" for reason in left_alone if reason]
        for name in names:
            wanted = FUNCTIONS.get(module, {}).get(name, tuple(parameters))
            why += _differs(module, source.functions(file), name, wanted)
        return why

    def script_lacks(self, name: str, parameters: tuple[str, ...]) -> list[str]:
        """Look for a function of the script."""
        return _differs(self._script.stem, source.functions(self._script), name, parameters)

    def does_not_say(self, words: str) -> list[str]:
        """Look for words in the script's code."""
        if words in source.code(self._script):
            return []
        return [f"{self._script.name} does not call {words.rstrip('(')}"]

    def loaders(self, *more: str) -> list[str]:
        """Look for the function that makes loaders."""
        return self.lacks(self._loaders, "create_dataloader", parameters=("batch_size", "augment", *more))

    def callbacks(self) -> list[str]:
        """Look for the event that comes right before each step."""
        return self.does_not_say(f"callbacks.run('{STEP_EVENT}')") + self.script_lacks("train", ("callbacks",))

    def steps(self) -> list[str]:
        """Look for where a step begins that every rank makes: at an event, or else where the loader hands a batch out.

        YOLOv9's and YOLOv5's scripts for masks have the event commented out.
        """
        why, loaders = self.callbacks(), self.loaders()
        return why + loaders if why and loaders else []

    def micro_steps(self) -> list[str]:
        """Look for a step that can be made in parts: predictions go to the criterion alone, and a loss is a sum."""
        if self._layout.scripts[self._name] == "panoptic":
            return [NO_PLACE]  # the dice loss of stuff is a ratio of sums
        return self.does_not_say("pred = model(imgs)") + self.does_not_say("compute_loss(pred, targets.to(device)")

    def criteria(self, modules: tuple[str, ...], assigner: str) -> list[str]:
        """Look for the criterion that the script imports, and for the assigner."""
        prefixes = ("", f"{self._layout.name}.")
        code = source.code(self._script)
        used = [module for module in modules if any(f"from {prefix}{module} import " in code for prefix in prefixes)]
        methods = [f"ComputeLoss.{method}" for method in self._layout.methods]
        why = [line for module in used or modules for line in self.lacks(module, *methods)]
        return why + (self.lacks(assigner, "TaskAlignedAssigner.forward") if assigner else [])


def _differs(module: str, defined: Mapping[str, tuple[str, ...]], name: str, parameters: tuple[str, ...]) -> list[str]:
    if name not in defined:
        return [f"{module}.{name} does not exist"]
    lacking = [parameter for parameter in parameters if parameter not in defined[name]]
    return [f"{module}.{name} has no parameter {', '.join(lacking)}"] if lacking else []
