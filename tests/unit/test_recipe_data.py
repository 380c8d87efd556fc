"""The recipes' data: every value has a source that exists, upstream's name and a sane size; the published tables."""

from __future__ import annotations

import importlib.util
import math
import os
import re
from importlib.resources import files
from pathlib import Path

import pytest
import yaml

FAMILIES = (
    "rtdetr",
    "yolo11",
    "yolo26",
    "yolo26-objects365",
    "yolov10",
    "yolov12",
    "yolov13",
    "yolov5",
    "yolov5-seg",
    "yolov8",
    "yolov9",
    "yolov9-ultralytics",
)
#: Those whose names are of a checkout -> folder of its training script, its hyp files, the script.
SCRIPTS = {
    "yolov5": ("yolov5/yolov5", "yolov5/yolov5/data/hyps/hyp.scratch-{}.yaml", "train.py"),
    "yolov5-seg": ("yolov5/yolov5", "yolov5/yolov5/data/hyps/hyp.scratch-{}.yaml", "segment/train.py"),
    "yolov9": ("yolov9/yolov9", "yolo9/yolo9/data/hyps/hyp.scratch-{}.yaml", "train_dual.py"),
}
CONFIDENCES = {"high", "medium", "low", "unknown"}
UNKNOWN = "unknown"
PROBABILITY = (float, 0, 1)
#: Every argument in the order of the files -> its type, smallest and largest value; the values there are; any text.
ARGUMENTS = {
    **dict.fromkeys(("mosaic", "scale", "mixup", "copy_paste", "cutmix"), PROBABILITY),
    "translate": PROBABILITY,
    "degrees": (float, 0, 180),
    "shear": (float, 0, 180),
    "perspective": (float, 0, 0.001),
    **dict.fromkeys(("flipud", "fliplr", "hsv_h", "hsv_s", "hsv_v", "bgr"), PROBABILITY),
    "optimizer": {"SGD", "MuSGD", "AdamW"},
    "lr0": (float, 1e-5, 0.1),
    "lrf": PROBABILITY,
    "cos_lr": {True, False},
    "momentum": (float, 0.5, 0.999),
    "weight_decay": (float, 1e-5, 0.01),
    "warmup_epochs": ((int, float), 0, 5),
    "warmup_momentum": PROBABILITY,
    "warmup_bias_lr": (float, 0, 0.1),
    "nbs": (int, 1, 256),
    "epochs": (int, 1, 1000),
    "close_mosaic": (int, 1, 50),
    "imgsz": (int, 320, 1280),
    **dict.fromkeys(("box", "cls", "obj", "dfl"), (float, 0.01, 20)),
}
#: The same for how the authors ran it.
RUN = {
    "batch": (int, 1, 1024),
    "gpus": (int, 1, 64),
    "sync_bn": {True, False},
    "nbs": (int, 1, 256),
    "warmup": str,
    "clip_grad_norm": (float, 0.01, 100),
    "backbone_lr": (float, 1e-7, 0.1),
    "ema_decay": (float, 0.9, 1),
    "aug": str,
    "init": str,
    "reported_ap": (float, 20, 70),
}
#: scale / mixup / copy_paste of every size, as the authors' tables have them.
TABLE = {
    "yolov8": "n .5/0/0  s .5/0/0  m .9/.1/.1  l .9/.15/.3  x .9/.15/.3",
    "yolov10": "n .5/0/0  s .5/0/0  m .9/.1/.1  b .9/.1/.1  l .9/.15/.3  x .9/.15/.3",
    "yolo11": "n .5/0/.1  s .9/.05/.15  m .9/.15/.4  l .9/.15/.5  x .9/.2/.6",
    "yolov12": "n .5/0/.1  s .9/.05/.15  m .9/.15/.4  l .9/.15/.5  x .9/.2/.6",
    "yolov13": "n .5/0/.1  s .9/.05/.15  l .9/.15/.5  x .9/.2/.6",
    "yolo26-objects365": "n .5/0/.1  s .9/.05/.15  m .9/.15/.4  l .9/.15/.5  x .9/.2/.6",
}
#: The learning rate that the authors' logs have at the end of epoch 1, as printed.
LOGGED = {
    "yolov10": {**dict.fromkeys("nsmb", "0.0033261"), "l": "0.0033275", "x": "0.0033288"},
    "yolov12": dict.fromkeys("nsmlx", "0.00332613"),
}

every_family = pytest.mark.parametrize("family", FAMILIES)


def load(family):
    return yaml.safe_load(files("yolo_patches.recipes").joinpath(f"{family}.yaml").read_text(encoding="utf-8"))


def rows(table):
    return [(part, name, row) for part in ("arguments", "run") for name, row in table[part].items()]


def by_variant(table, row, key="value"):
    """Return a row's values, or its confidences, of every variant."""
    if key == "value" and "values" in row:
        return row["values"]
    if key == "confidence" and isinstance(row["confidence"], dict):
        return row["confidence"]
    return dict.fromkeys(table["variants"], row[key])


def upstreams(*parts):
    folder = os.environ.get("YOLO_PATCHES_UPSTREAMS")
    path = Path(folder or "", *parts)
    if folder is None or not path.exists():
        pytest.skip(f"YOLO_PATCHES_UPSTREAMS names no folder with {path.name} ('dev.py test' makes one)")
    return path


def test_these_are_all_files():
    found = {path.name for path in files("yolo_patches.recipes").iterdir() if path.name.endswith(".yaml")}
    assert found == {f"{family}.yaml" for family in FAMILIES}


@every_family
def test_head(family):
    table = load(family)
    needed = {"family", "title", "start", "data", "variants", "sources", "arguments", "run"}
    assert needed <= set(table) <= needed | {"partial", "absent", "costs", "conflicts", "notes"}
    assert table["family"] == family
    assert table["start"] == ("finetune" if family == "yolo26" else "scratch")
    assert all(table[key] and isinstance(table[key], str) for key in ("title", "data"))
    assert all(re.fullmatch(r"[a-z0-9-]+", variant) for variant in table["variants"])
    assert len(set(table["variants"])) == len(table["variants"]) >= 4
    assert ("partial" in table) == (family == "rtdetr")


@every_family
def test_rows_have_a_value_of_each_variant_a_source_and_a_confidence(family):
    table = load(family)
    for part, name, row in rows(table):
        where = (part, name)
        assert set(row) in ({"value", "source", "confidence"}, {"values", "source", "confidence"}), where
        assert row["source"] and len(set(row["source"])) == len(row["source"]), where
        assert set(row["source"]) <= set(table["sources"]), where
        if "values" in row:
            assert list(row["values"]) == table["variants"], where
            assert len(set(map(repr, row["values"].values()))) > 1, (*where, "all the same: `value` says so")
        confidences = by_variant(table, row, "confidence")
        assert list(confidences) == table["variants"], where
        for variant, value in by_variant(table, row).items():
            assert confidences[variant] in CONFIDENCES, where
            assert (confidences[variant] == UNKNOWN) == (value == UNKNOWN), (*where, variant)
    assert set(table["arguments"]).isdisjoint(table["run"])


@every_family
@pytest.mark.parametrize(("part", "known"), [("arguments", ARGUMENTS), ("run", RUN)])
def test_values_are_of_the_type_and_the_size_of_their_name(family, part, known):
    table = load(family)
    assert list(table[part]) == [name for name in known if name in table[part]], "order, or an unknown name"
    for name, row in table[part].items():
        for variant, value in by_variant(table, row).items():
            where = (name, variant, value)
            if value == UNKNOWN:
                continue
            if known[name] is str:
                assert isinstance(value, str) and value, where
            elif isinstance(known[name], set):
                assert type(value) in map(type, known[name]) and value in known[name], where
            else:
                kind, low, high = known[name]
                assert isinstance(value, kind) and not isinstance(value, bool), where
                assert low <= value <= high, where


@every_family
def test_sources_are_described_reachable_and_used(family):
    table = load(family)
    named = " ".join(
        str(value)
        for part in ("costs", "conflicts", "notes")
        for item in table.get(part, ())
        for key, value in item.items()
        if key != "variants"
    )
    used = {source for _, _, row in rows(table) for source in row["source"]} | set(re.findall(r"\w+", named))
    for source, about in table["sources"].items():
        assert re.fullmatch(r"[A-Z][A-Z0-9]*", source)
        assert set(about) == {"what", "url", "checked"}, source
        assert len(about["what"]) > 10, source
        assert re.fullmatch(r"https://[\w.-]+/\S+", about["url"]), source
        assert about["checked"] is False or about["checked"] == "2026-11", source
        assert source in used, source


@every_family
def test_costs_conflicts_notes_and_absences(family):
    table = load(family)
    names = {name for _, name, _ in rows(table)}
    for item in table.get("costs", ()):
        assert set(item) - {"variants"} == {"arguments", "text", "source"}
        assert set(item["arguments"]) <= names and set(item["source"]) <= set(table["sources"])
    for item in table.get("conflicts", ()):
        assert set(item) - {"variants"} == {"argument", "a", "b", "stronger"}
        assert item["argument"] in names
        assert all(isinstance(value, str) and value for key, value in item.items() if key != "variants")
        assert item["stronger"].startswith(("a", "b", "undecided"))
    for item in table.get("notes", ()):
        assert set(item) - {"variants"} == {"text"} and item["text"]
    for item in (*table.get("costs", ()), *table.get("conflicts", ()), *table.get("notes", ())):
        assert set(item.get("variants", table["variants"])) <= set(table["variants"])
    assert names.isdisjoint(table.get("absent", {}))
    assert all(isinstance(reason, str) and reason for reason in table.get("absent", {}).values())
    assert "erasing" in table["absent"]


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in SCRIPTS])
def test_arguments_are_those_of_ultralytics(family):
    spec = importlib.util.find_spec("ultralytics")
    if spec is None:
        pytest.skip("no Ultralytics")
    arguments = yaml.safe_load(Path(spec.origin).with_name("cfg").joinpath("default.yaml").read_text(encoding="utf-8"))
    if "cutmix" not in arguments:
        pytest.skip("Ultralytics before 8.3.119")
    table = load(family)
    assert set(table["arguments"]) <= set(arguments)
    assert set(table["absent"]) <= set(arguments)


@pytest.mark.parametrize("family", SCRIPTS)
def test_arguments_are_those_of_the_checkout(family):
    folder, hyps, script = SCRIPTS[family]
    options = re.findall(r"""add_argument\(['"]--([\w-]+)""", upstreams(folder, script).read_text(encoding="utf-8"))
    hyp = yaml.safe_load(upstreams(hyps.format("high")).read_text(encoding="utf-8"))
    names = set(hyp) | {option.replace("-", "_") for option in options}
    assert len(options) > 20
    assert set(load(family)["arguments"]) <= names
    assert not set(load(family)["absent"]) & names


@pytest.mark.parametrize(
    ("family", "variants", "hyp"),
    [("yolov5", "ns", "low"), ("yolov5", "mlx", "high"), ("yolov5-seg", "nsmlx", "low"), ("yolov9", "tsmce", "high")],
)
def test_values_are_those_of_the_checkouts_hyp_file(family, variants, hyp):
    table = load(family)
    published = yaml.safe_load(upstreams(SCRIPTS[family][1].format(hyp)).read_text(encoding="utf-8"))
    compared = [name for name in table["arguments"] if name in published]
    assert len(compared) > 20
    for name in compared:
        for variant in variants:
            value = by_variant(table, table["arguments"][name])[variant]
            if (family, name) == ("yolov5-seg", "weight_decay"):  # a conflict: the README has another
                assert value == 5e-5
            else:
                assert value == published[name], (name, variant)


@pytest.mark.parametrize("family", TABLE)
def test_augmentation_is_that_of_the_published_tables(family):
    table = load(family)
    names = ("scale", "mixup", "copy_paste")
    columns = [by_variant(table, table["arguments"][name]) for name in names]
    published = dict(cell.split() for cell in TABLE[family].split("  "))
    assert list(published) == table["variants"]
    for variant, values in published.items():
        assert [column[variant] for column in columns] == [float(value) for value in values.split("/")], variant


@pytest.mark.parametrize("family", LOGGED)
def test_batches_follow_from_the_logged_learning_rates(family):
    """At the end of the first of three epochs of warm-up, after all steps but one of 118,287 images."""
    table = load(family)
    assert by_variant(table, table["arguments"]["lr0"]) == dict.fromkeys(table["variants"], 0.01)
    for variant, batch in by_variant(table, table["run"]["batch"]).items():
        printed = LOGGED[family][variant]
        steps = math.ceil(118287 / batch)
        assert f"{0.01 * (1 - 1 / steps) / 3:.{len(printed) - 2}f}" == printed, variant
