"""augment: the augmentation that a model's own authors trained it with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from typing import Any, ClassVar

from yolo_patches import recipes
from yolo_patches.errors import PatchesError, nearest
from yolo_patches.facts import Facts
from yolo_patches.patch import Patch
from yolo_patches.plan import Change, Decision
from yolo_patches.recipes import AUGMENTATION, CONFIDENCES, Recipe
from yolo_patches.recipes.advice import SMALL, advice
from yolo_patches.seams import Arguments, Live, Seam, TrainSet
from yolo_patches.selection import Option

#: What close_mosaic switches off.
CLOSED = ("mosaic", "mixup", "copy_paste", "cutmix")
#: What decides how long a step is; upstream's `optimizer=auto` sets its own.
STEP = ("optimizer", "lr0", "momentum", "warmup_bias_lr")
TASKS = ("detect", "segment")


class Augment(Patch):
    """Set the published augmentation of the model that is trained, where the user has not set it.

    Upstream has one default for all sizes, while the authors of every family augment large models more: YOLOv10-X needs
    scale 0.9, not 0.5 (https://github.com/THU-MIG/yolov10/issues/35), and YOLO11 n, s and m reach 38.3, 45.0 and 48.3
    AP with the defaults, 39.3, 46.6 and 51.0 with their own values
    (https://github.com/ultralytics/ultralytics/issues/20278, https://github.com/ultralytics/ultralytics/issues/18903).

    The values become upstream's own arguments: they are in args.yaml and in the checkpoint.
    """

    name: ClassVar[str] = "augment"
    summary: ClassVar[str] = "from scratch, augment as the authors of this very model did"
    source: ClassVar[str] = "https://github.com/ultralytics/ultralytics/issues/18903"
    default: ClassVar[bool] = True
    options: ClassVar[Mapping[str, Option]] = {
        "finetune": Option(bool, "also where training starts from weights", default=False),
        "full": Option(bool, "the whole recipe: optimizer, learning rate, epochs, close_mosaic, too", default=False),
        "confidence": Option(str, "the weakest source to follow", default="medium", choices=CONFIDENCES),
        "recipe": Option(str, "a published model whose values to take, e.g. yolov10x", default="auto"),
    }
    needs: ClassVar[tuple[type[Seam], ...]] = (Arguments,)

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self._decision = Decision("inert", "upstream has not shown its arguments")
        self._seen = False

    def decide(self, facts: Facts) -> Decision:
        """Return what has been set when the arguments were seen; workers and resumed trainings have it in theirs."""
        wanted = self.values["recipe"]
        if wanted != "auto" and recipes.find(facts.upstream, wanted) is None:
            known = sorted(recipes.known(facts.upstream))
            raise PatchesError(
                f"augment:recipe={wanted} is no published model{nearest(wanted, known)}; valid are {', '.join(known)}"
            )
        images = facts.images()
        if images is not None:
            self.notes += advice(images, facts.model.scratch)
        if facts.inherited:
            self._take_over(facts.inherited.get(self.name, {}))
        elif facts.is_resumed:
            self._take_over(facts.resumed.get(self.name, {}))
        return self._decision

    def handlers(self) -> Mapping[type[Seam], Callable[[Any], Decision | None]]:
        """Handle the arguments as the user gave them."""
        return {Arguments: self._set}

    def prove(self, live: Live) -> str:
        """Add to the plan what only the training set can tell; nothing stands against the values themselves."""
        images = live.train_set()
        if images is not None:
            self.notes += self._about(images)
        return ""

    def verify(self, live: Live) -> bool | None:
        """Compare what was set with the live transforms, until they have shown it: close_mosaic changes them."""
        if self._seen:
            return True
        images = live.train_set()
        seen = images.augmentation if images is not None else {}
        wanted = {change.what: change.patched for change in self._decision.changes if change.what in seen}
        if not wanted:
            return None
        wrong = [f"{name} is {seen[name]:g}, not {value:g}" for name, value in wanted.items() if seen[name] != value]
        self.trouble = f"in the live transforms {', '.join(wrong)}" if wrong else ""
        self._seen = not wrong
        return self._seen

    def undo(self) -> bool:
        """Return whether no argument was set: upstream has them now."""
        return not self._decision.changes

    def _take_over(self, entry: Mapping[str, Any]) -> None:
        if entry.get("status") != "active":
            reason = str(entry.get("reason") or "a resumed training goes on with the arguments of its checkpoint")
            self._decision = Decision("inert", reason)
            return
        self._decision = Decision("active", entry["reason"], tuple(Change(**change) for change in entry["changes"]))
        self.notes = list(entry.get("notes", ()))

    def _set(self, seam: Arguments) -> None:
        facts = seam.facts
        if facts.inherited or facts.is_resumed:
            return
        recipe, why = self._recipe(facts)
        if recipe is None:
            self._decision = Decision("inert", why)
            return
        changes, kept = [], 0
        for name, value in self._wanted(recipe):
            if name in facts.given:
                if facts.given.values[name] != value:
                    self.notes.append(f"{name}={facts.given.values[name]} is yours; published is {value}")
                kept += 1
            elif name not in seam.defaults:
                self.notes.append(f"{name}={value} is left out: this release does not know it")
            elif seam.defaults[name] != value:
                changes.append(Change(name, seam.defaults[name], value))
        self.notes += self._conflicts(recipe, seam)
        if not changes:
            upstream = "those that you have not set are upstream's" if kept else "they are upstream's, too"
            self._decision = Decision("inert", f"nothing to change in {why}: {upstream}")
            return
        for change in changes:
            seam.set(change.what, change.patched)
        self._decision = Decision("active", why, tuple(changes))

    def _recipe(self, facts: Facts) -> tuple[Recipe | None, str]:
        """Return the recipe, and its name; or None, and why there is none to follow."""
        chosen, upstream = self.values["recipe"], facts.upstream
        if facts.task not in TASKS:
            return None, f"nothing was published for {facts.task}"
        if not facts.model.scratch and not self.values["finetune"]:
            return None, "training starts from weights; augment:finetune=true asks for the values all the same"
        recognised = facts.model.recognise() if chosen == "auto" else None
        model = chosen if recognised is None else recognised.name
        base = model.removesuffix("-seg")
        recipe = recipes.find(upstream, model, facts.model.scratch) or recipes.find(upstream, base, facts.model.scratch)
        if recipe is None:
            why = recognised.why if recognised is not None and not model else ""
            return None, why or f"nothing was published for {model or 'it'} from scratch"
        if recipe.partial and self.values["confidence"] != CONFIDENCES[0]:
            return None, f"{base} cannot be augmented as its authors did: {recipe.partial}"
        names = (name for name in recipe.arguments if name in AUGMENTATION)
        if not any(recipe.arguments[name].trusted(self.values["confidence"]) for name in names):
            least = self.values["confidence"]
            return None, f"no value of {base} has a source of {least} confidence; augment:confidence=low takes them"
        if recognised is not None and recognised.why:
            self.notes.append(recognised.why)
        if recipe.scratch and not facts.model.scratch:
            self.notes.append("the values were published for training from scratch")
        if base != model:
            self.notes.append(f"the values were published for {base}, which detects")
        return recipe, f"the values that {base} was trained with on {recipe.data}"

    def _wanted(self, recipe: Recipe) -> Iterator[tuple[str, Any]]:
        weak = []
        for name, value in recipe.arguments.items():
            if name not in AUGMENTATION and not self.values["full"]:
                continue
            if value.trusted(self.values["confidence"]):
                yield name, value.value
            elif value.value is not None:
                weak.append(f"{name}={value.value}")
        if weak:
            self.notes.append(f"left out, of weak sources: {', '.join(weak)}")

    def _conflicts(self, recipe: Recipe, seam: Arguments) -> Iterator[str]:
        """Yield what of this training differs from the recipe where the values alone do not say it."""
        run = {**seam.defaults, **seam.facts.given.values}
        if self.values["full"]:
            published = {name: recipe.value(name) for name in recipe.arguments if name not in seam.facts.given}
            run.update({name: value for name, value in published.items() if value is not None and name in run})
        meant = {name: recipe.value(name) for name in (*STEP, "epochs")}
        differs = [name for name, value in meant.items() if value is not None and run.get(name, value) != value]
        if differs:
            theirs, here = (" ".join(f"{name}={values[name]}" for name in differs) for values in (meant, run))
            how = "" if self.values["full"] else "; augment:full=true takes theirs where you have set none"
            yield f"published with {theirs}; this run has {here}{how}"
        if run.get("optimizer") == "auto":
            yield "optimizer=auto chooses the optimizer, and sets lr0, momentum and warmup_bias_lr itself"
        closing = run.get("close_mosaic")
        if closing:
            yield f"close_mosaic: the last {closing} epochs are without {', '.join(CLOSED[:3])}"

    def _about(self, images: TrainSet) -> Iterator[str]:
        values = {change.what: change.patched for change in self._decision.changes}
        if values.get("copy_paste") and images.polygons is False:
            yield "copy_paste does nothing here: no label has a polygon, and boxes cannot be cut out"
        if images.images < SMALL:
            yield f"published for a large data set; this one has {images.images} images"
        if find_spec("albumentations") is None:
            yield "albumentations is not installed; where it is, upstream adds blur, grey and CLAHE at 1 % each"
