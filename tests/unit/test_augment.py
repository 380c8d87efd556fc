"""What `augment` decides from facts and arguments, and what it takes for proof of its effect."""

from __future__ import annotations

from importlib import resources

import pytest
import yaml

from yolo_patches import facts, recipes
from yolo_patches.errors import PatchesError
from yolo_patches.patches.augment import Augment
from yolo_patches.patches.linear_lr import LinearLr
from yolo_patches.seams import Arguments, Live, TrainSet
from yolo_patches.upstreams import image_lists

DEFAULTS = {
    "scale": 0.5, "mixup": 0.0, "copy_paste": 0.0, "mosaic": 1.0, "translate": 0.1, "degrees": 0.0, "fliplr": 0.5,
    "optimizer": "auto", "lr0": 0.01, "epochs": 100, "close_mosaic": 10, "warmup_bias_lr": 0.1, "momentum": 0.937,
}  # fmt: skip
X = {"scale": 0.9, "mixup": 0.15, "copy_paste": 0.3}


def training(name="yolov10x", scratch=True, given=None, task="detect", why="", **more):
    model = facts.Model("file", scratch, lambda: facts.Recognised(name, why))
    return facts.Facts(
        "ultralytics", "0", task, facts.Batch(16), model=model, given=facts.Given(given or {}), **more
    )  # fmt: skip


def decided(known, defaults=DEFAULTS, **options):
    patch = Augment(**options)
    seam = Arguments(known, {name: value for name, value in defaults.items() if name not in known.given})
    if not known.is_resumed:
        patch.handlers()[Arguments](seam)
    return patch, seam.values, patch.decide(known)


def test_sets_what_the_user_has_not():
    patch, values, decision = decided(training(given={"scale": 0.5}))
    assert values == {"mixup": 0.15, "copy_paste": 0.3}
    assert {change.what: change.patched for change in decision.changes} == values
    assert decision.status == "active"
    assert "scale=0.5 is yours; published is 0.9" in patch.notes


def test_what_a_release_does_not_know_is_left_out_and_listed():
    patch, values, _ = decided(training(), {key: value for key, value in DEFAULTS.items() if key != "copy_paste"})
    assert values == {"scale": 0.9, "mixup": 0.15}
    assert "copy_paste=0.3 is left out: this release does not know it" in patch.notes


@pytest.mark.parametrize(("known", "options", "reason"), [
    (training(scratch=False), {}, "training starts from weights; augment:finetune=true asks for the values"),
    (training(""), {}, "nothing was published for it from scratch"),
    (training("", why="mine is no published model that we know"), {}, "mine is no published model that we know"),
    (training(task="pose"), {}, "nothing was published for pose"),
    (training("yolov9c"), {}, "no value of yolov9c has a source of medium confidence; augment:confidence=low"),
    (training("rtdetr-l"), {}, "rtdetr-l cannot be augmented as its authors did: "),
    (training("yolov8n"), {}, "nothing to change in the values that yolov8n was trained with"),
    (training("yolo11x"), {"confidence": "high"}, None),
])  # fmt: skip
def test_when_it_has_nothing_to_do(known, options, reason):
    patch, values, decision = decided(known, **options)
    if reason is None:  # scale is of medium confidence
        assert values == {"mixup": 0.2, "copy_paste": 0.6}
        assert any("left out, of weak sources: " in note and "scale=0.9" in note for note in patch.notes)
        return
    assert decision.status == "inert"
    assert decision.reason.startswith(reason)
    assert values == {}
    assert patch.undo() is True


def test_from_weights_when_asked():
    patch, values, _ = decided(training(scratch=False), finetune=True)
    assert values == X
    assert "the values were published for training from scratch" in patch.notes
    _, values, decision = decided(training("yolo26x", scratch=False), finetune=True)
    assert "COCO" in decision.reason  # the second of YOLO26's two stages starts from weights
    assert values["mosaic"] == pytest.approx(0.99, abs=0.01)
    _, values, decision = decided(training("yolo26x"))
    assert "Objects365" in decision.reason
    assert values["scale"] == 0.9


def test_full():
    patch, values, _ = decided(training(given={"epochs": 100}), full=True)
    assert values.items() >= {**X, "optimizer": "SGD", "warmup_bias_lr": 0.0}.items()
    assert "epochs" not in values
    assert "published with epochs=500; this run has epochs=100" in patch.notes


def test_another_models_values():
    _, values, decision = decided(training("", why="mine is no published model"), recipe="yolov10x")
    assert values == X
    assert "yolov10x" in decision.reason
    with pytest.raises(PatchesError, match=r"yolov10z is no published model \(did you mean"):
        decided(training(), recipe="yolov10z")


def test_workers_and_resumed_trainings_do_not_decide_again():
    changes = [{"what": "scale", "upstream": 0.5, "patched": 0.9}]
    entry = {"status": "active", "reason": "why", "changes": changes, "notes": ["a note"]}
    given = dict.fromkeys(DEFAULTS, 0)  # upstream hands a worker every argument
    for known in (
        training(given=given, inherited={"augment": entry}),
        training("", resumed={"augment": entry}, is_resumed=True),
    ):
        patch, values, decision = decided(known)
        assert values == {}
        assert (decision.status, decision.reason, decision.changes[0].patched) == ("active", "why", 0.9)
        assert patch.notes == ["a note"]
        assert patch.verify(live(scale=0.5)) is False
    _, values, decision = decided(training(is_resumed=True))
    assert (values, decision.status) == ({}, "inert")


def live(images=100_000, polygons=True, **values):
    return Live(train_set=lambda: TrainSet(images, values, polygons))


def test_verified_by_the_live_transforms_alone():
    patch, *_ = decided(training())
    assert patch.verify(Live()) is None
    assert patch.verify(live(translate=0.1)) is None
    assert patch.verify(live(scale=0.9, mixup=0.0)) is False  # upstream takes mixup away where rect=True
    assert patch.trouble == "in the live transforms mixup is 0, not 0.15"
    assert patch.verify(live(**X)) is True
    assert patch.verify(live(scale=0.9, mixup=0.0)) is True  # close_mosaic
    assert patch.undo() is False  # upstream has the arguments


def test_what_only_the_training_set_can_tell():
    patch, *_ = decided(training())
    assert patch.prove(live(16, polygons=False)) == ""
    notes = " ".join(patch.notes)
    assert "copy_paste does nothing here: no label has a polygon" in notes
    assert "published for a large data set; this one has 16 images" in notes
    patch, *_ = decided(training())
    patch.prove(live())
    assert not any("copy_paste does" in note or "large data set" in note for note in patch.notes)


def test_every_published_model_is_found():
    names = list(recipes.names())
    files = [file.name for file in resources.files("yolo_patches.recipes").iterdir() if file.name.endswith(".yaml")]
    assert sorted({f"{family}.yaml" for _, family, _ in names}) == sorted(files)
    for name, family, variant in names:
        recipe = recipes.of(family, variant)
        assert recipes.find("", name, recipe.scratch).title == recipe.title
        assert recipe.value("scale", "low") is not None or family == "rtdetr"
    assert recipes.find("ultralytics", "yolov5s") is None  # another head than its authors'
    assert recipes.find("ultralytics", "yolov10z") is None


@pytest.mark.parametrize(("upstream", "model", "base"), [
    ("ultralytics", "yolov10x", 160), ("ultralytics", "yolo11n", 128), ("ultralytics", "yolo11m", 64),
    ("yolov5", "yolov5n", 128),
    ("yolov5", "yolov5m", 80), ("yolov5", "yolov5x", 64), ("yolov9", "gelan-c", 128), ("ultralytics", "rtdetr-l", 64),
])  # fmt: skip
def test_linear_lr_starts_from_the_authors_effective_batch(upstream, model, base):
    """A batch below nbs is accumulated: 16 images of YOLOv5x in 4 steps, 40 of YOLOv5m in 2."""
    known = facts.Facts(
        upstream, "0", "detect", facts.Batch(320), facts.Optimization("SGD"),
        model=facts.Model("file", True, lambda: facts.Recognised(model)),
    )  # fmt: skip
    patch = LinearLr()
    assert patch.decide(known).reason.endswith(f"= effective batch 320 / base {base}")
    assert patch.pinned.get("base_batch", 64) == base


@pytest.mark.parametrize(("images", "scratch", "words"), [
    (16, True, "16 training images: Ultralytics recommends to start from weights"), (118_287, True, None),
    (999, False, "mosaic=0.5 mixup=0 copy_paste=0"), (3000, False, "with its defaults first"),
    (60_000, False, "mosaic=1 mixup=0.3"), (None, False, None),
])  # fmt: skip
def test_doctor_gives_advice_with_its_source(images, scratch, words):
    """Where the images have been counted, which a training does not do; nothing of it is set."""
    patch, values, _ = decided(training(scratch=scratch, images=lambda: images))
    found = [note for note in patch.notes if "training images" in note]
    assert len(found) == (words is not None)
    assert not found or (words in found[0] and "https://docs.ultralytics.com/" in found[0])
    assert set(values) == (set(X) if scratch else set())


def test_training_images_are_counted_where_they_lie(tmp_path):
    for name in ("a.jpg", "b.PNG", "c.txt"):
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "images" / name).touch()
    (tmp_path / "list.txt").write_text("images/a.jpg\n\n")
    file = tmp_path / "data.yaml"
    for train, expected in (("images", 2), ("list.txt", 1), (["images", "list.txt"], 3), ("gone", None), ([], None)):
        file.write_text(yaml.safe_dump({"train": train}))
        assert image_lists.count(file) == expected
    file.write_text(yaml.safe_dump({"path": tmp_path.name, "train": "images"}))
    assert image_lists.count(file) is None
    assert image_lists.count(file, [tmp_path.parent]) == 2
    for text in ("[", "3", "train: {}"):
        file.write_text(text)
        assert image_lists.count(file) is None
    assert image_lists.count(tmp_path / "no.yaml") is None
