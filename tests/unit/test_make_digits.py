"""examples/make_digits.py: every task's files are right, repeatable and never written over somebody else's."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

np = pytest.importorskip("numpy")
cv2 = pytest.importorskip("cv2")
if importlib.util.find_spec("sklearn") is None:  # importing it would take seconds, and only one test needs to
    pytest.skip("scikit-learn is not installed", allow_module_level=True)

SCRIPT = Path(__file__).parents[2] / "examples" / "make_digits.py"
IMGSZ = 96
LABELLED = ("detect", "segment", "pose", "obb")
TASKS = (*LABELLED, "classify", "semantic", "depth")


def load_script() -> ModuleType:
    """Import the example, which is not part of the package."""
    spec = importlib.util.spec_from_file_location("make_digits_example", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up by name
    spec.loader.exec_module(module)
    return module


digits = load_script()


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Make one small set of every task, which tests must only read."""
    base = tmp_path_factory.mktemp("digits")
    for task in TASKS:
        digits.make_digits(base / task, task, train=24, val=8, imgsz=IMGSZ)
    return {task: base / task for task in TASKS}


def contents(root: Path) -> dict[str, bytes]:
    """Return every file of a set except data.yaml, which names the folder."""
    files = (path for path in sorted(root.rglob("*")) if path.is_file() and path.name != "data.yaml")
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


def rows(root: Path) -> list[list[np.ndarray]]:
    """Return the label rows of every image of a set."""
    files = sorted(root.glob("labels/*/*.txt"))
    return [[np.array(line.split(), float) for line in file.read_text().splitlines()] for file in files]


def every_row(root: Path) -> list[np.ndarray]:
    """Return the label rows of a whole set."""
    return [row for image in rows(root) for row in image]


def to_corners(xywh: np.ndarray) -> np.ndarray:
    """Return x1, y1, x2, y2 of a box given by its centre and size."""
    return np.concatenate([xywh[:2] - xywh[2:] / 2, xywh[:2] + xywh[2:] / 2])


# --- the whole set ---


@pytest.mark.parametrize("task", TASKS)
def test_same_arguments_give_the_same_bytes_and_another_seed_does_not(task: str, tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        digits.make_digits(tmp_path / name, task, train=10, val=3, imgsz=64, seed=seed)
    a, b, c = (contents(tmp_path / name) for name in "abc")
    assert a == b
    assert a.keys() == c.keys()
    images = [name for name in a if name.endswith(".png")]
    assert all(a[name] != c[name] for name in images)
    assert len({a[name] for name in images}) == len(images)


def test_a_larger_set_contains_the_smaller_one(tmp_path: Path) -> None:
    for name, train in (("small", 4), ("large", 9)):
        digits.make_digits(tmp_path / name, train=train, val=2, imgsz=64)
    small, large = contents(tmp_path / "small"), contents(tmp_path / "large")
    assert all(large[name] == content for name, content in small.items() if name != digits.MANIFEST)


@pytest.mark.parametrize("task", TASKS)
def test_train_and_val_share_no_scan(task: str, sets: dict[str, Path]) -> None:
    scans = json.loads((sets[task] / digits.MANIFEST).read_text())["scans"]
    assert set(scans["train"]).isdisjoint(scans["val"])
    assert len(scans["train"]) >= 24 and len(scans["val"]) >= 8
    for seed in (0, 1):
        pools = digits.split_scans(1797, seed)
        assert sorted([*pools["train"], *pools["val"]]) == list(range(1797))
    assert set(scans["train"]) <= set(digits.split_scans(1797, 0)["train"])


@pytest.mark.parametrize("through_the_package", [False, True])
def test_scans_are_those_of_scikit_learn(through_the_package: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    bunch = pytest.importorskip("sklearn.datasets").load_digits()
    digits.load_scans.cache_clear()
    if through_the_package:
        monkeypatch.setattr(digits.Path, "is_file", lambda path: False)
    scans, labels = digits.load_scans()
    assert np.array_equal(scans, bunch.images) and np.array_equal(labels, bunch.target)


@pytest.mark.parametrize("task", [task for task in TASKS if task != "classify"])
def test_images_and_labels_are_paired(task: str, sets: dict[str, Path]) -> None:
    folder = {"semantic": "masks", "depth": "depth"}.get(task, "labels")
    for split, count in (("train", 24), ("val", 8)):
        images = sorted((sets[task] / "images" / split).iterdir())
        assert len(images) == count
        assert [p.stem for p in images] == [p.stem for p in sorted((sets[task] / folder / split).iterdir())]
        assert all(cv2.imread(str(path)).shape == (IMGSZ, IMGSZ, 3) for path in images)


@pytest.mark.parametrize("task", [task for task in TASKS if task != "classify"])
def test_data_yaml_loads_from_anywhere(task: str, sets: dict[str, Path]) -> None:
    data = pytest.importorskip("yaml").safe_load((sets[task] / "data.yaml").read_text(encoding="utf-8"))
    root = Path(data["path"])
    assert root.is_absolute() and (root / data["train"]).is_dir() and (root / data["val"]).is_dir()
    assert data["nc"] == len(data["names"]) == {"semantic": 11, "depth": 1}.get(task, 10)
    assert all(isinstance(name, str) for name in data["names"])
    assert data.get("kpt_shape") == ([4, 3] if task == "pose" else None)


# --- each task's labels ---


@pytest.mark.parametrize("task", LABELLED)
def test_label_values_are_in_range(task: str, sets: dict[str, Path]) -> None:
    images = rows(sets[task])
    assert len(images) == 32
    assert all(1 <= len(image) <= 8 for image in images)
    assert len({len(image) for image in images}) > 4  # the number of digits does vary
    for row in every_row(sets[task]):
        assert row[0] in range(10)
        values = np.delete(row, 0)
        if task == "pose":
            assert set(values[4:].reshape(4, 3)[:, 2]) <= {1, 2}
            values = np.concatenate([values[:4], values[4:].reshape(4, 3)[:, :2].ravel()])
        assert values.min() > 0 and values.max() < 1
    assert {int(row[0]) for row in every_row(sets[task])} == set(range(10))


def test_boxes_are_inside_the_image_and_hardly_overlap(sets: dict[str, Path]) -> None:
    for image in rows(sets["detect"]):
        assert all(row.shape == (5,) for row in image)
        boxes = np.array([to_corners(row[1:]) for row in image])
        assert boxes.min() >= 0 and boxes.max() <= 1
        for i, a in enumerate(boxes):
            for b in boxes[:i]:
                shared = np.prod((np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])).clip(0))
                assert shared <= 0.151 * min(np.prod(a[2:] - a[:2]), np.prod(b[2:] - b[:2]))


def test_polygons_follow_the_ink(sets: dict[str, Path]) -> None:
    seen = 0
    for file, boxes in zip(sorted(sets["segment"].glob("labels/*/*.txt")), rows(sets["detect"])):
        mask = cv2.imread(str(sets["semantic"] / "masks" / file.parent.name / f"{file.stem}.png"), cv2.IMREAD_GRAYSCALE)
        polygons = [np.array(line.split(), float) for line in file.read_text().splitlines()]
        assert [p[0] for p in polygons] == [b[0] for b in boxes]
        for polygon, box in zip(polygons, boxes):
            points = polygon[1:].reshape(-1, 2)
            assert len(points) >= 3
            assert np.allclose([*points.min(0), *points.max(0)], to_corners(box[1:]), atol=2e-6)
        if len(polygons) == 1:  # the semantic mask of the same image, cut by pixels, is the independent witness
            seen += 1
            filled = cv2.fillPoly(np.zeros_like(mask), [np.floor(points * IMGSZ).astype(np.int32)], 1) > 0
            ink = mask == polygons[0][0]
            assert (filled & ink).sum() >= 0.95 * ink.sum()
            assert ink.sum() >= 0.4 * filled.sum()  # outlines fill the holes of 0, 6, 8 and 9
            y, x = np.nonzero(ink)
            assert np.allclose([x.min(), y.min(), x.max() + 1, y.max() + 1], to_corners(boxes[0][1:]) * IMGSZ, atol=1)
    assert seen >= 2


def test_keypoints_lie_on_the_sides_of_the_box(sets: dict[str, Path]) -> None:
    for row in every_row(sets["pose"]):
        assert row.shape == (5 + 4 * 3,)
        x1, y1, x2, y2 = to_corners(row[1:5])
        points = row[5:].reshape(4, 3)[:, :2]
        assert ((points >= np.array([x1, y1]) - 2e-6) & (points <= np.array([x2, y2]) + 2e-6)).all()
        (_, top), (_, bottom), (left, _), (right, _) = points
        assert np.allclose([left, top, right, bottom], [x1, y1, x2, y2], atol=2e-6)


def test_a_point_under_a_later_digit_is_hidden() -> None:
    far, near = (digits.draw_digit(0, size, 0.0).place(0, 0) for size in (20, 40))
    _, owner = digits.paint([far, near], IMGSZ, np.random.default_rng(0))
    column, row = far.extremes.astype(int).T
    far_line, near_line = digits.label_lines("pose", [far, near], owner).splitlines()
    visibility = np.array(far_line.split()[7::3], float)
    assert list(visibility) == [1 if owner[r, c] == 1 else 2 for r, c in zip(row, column)]
    assert set(visibility) == {1, 2}
    assert set(map(float, near_line.split()[7::3])) == {2}


def test_obb_corners_are_tilted_rectangles(sets: dict[str, Path]) -> None:
    angles = []
    for row in every_row(sets["obb"]):
        assert row.shape == (9,)
        corners = row[1:].reshape(4, 2) * IMGSZ
        sides = np.roll(corners, -1, axis=0) - corners
        lengths = np.linalg.norm(sides, axis=1)
        assert np.allclose(corners[0] + corners[2], corners[1] + corners[3], atol=1e-3)
        assert abs(sides[0] @ sides[1]) <= 1e-3 * lengths[0] * lengths[1]
        assert lengths.min() > 1
        angles.append(np.degrees(np.arctan2(sides[0, 1], sides[0, 0])))
    assert -45.1 < min(angles) < -20 and 20 < max(angles) < 45.1


@pytest.mark.parametrize("tilt", [-45.0, -20.0, 0.0, 33.0])
def test_tilted_rectangle_encloses_its_digit_and_not_much_else(tilt: float) -> None:
    for source in range(0, 1797, 60):
        digit = digits.draw_digit(source, 40, tilt)
        _, owner = digits.paint([digit], digit.opacity.shape[0], np.random.default_rng(0))
        y, x = np.nonzero(owner == 0)
        origin, along, _, up = digit.corners.astype(float)
        basis = np.column_stack([along - origin, up - origin])
        inside = np.linalg.solve(basis, np.array([x + 0.5, y + 0.5]) - origin[:, None])
        pixel = 1 / np.linalg.norm(basis, axis=0).min()
        assert -pixel < inside.min() and inside.max() < 1 + pixel
        assert (inside.min(1) < 1.5 * pixel).all() and (inside.max(1) > 1 - 1.5 * pixel).all()


@pytest.mark.parametrize(("imgsz", "task"), [(32, "obb"), (33, "segment"), (256, "obb")])
def test_labels_are_sound_at_every_image_size(imgsz: int, task: str, tmp_path: Path) -> None:
    digits.make_digits(tmp_path, task, train=30, val=1, imgsz=imgsz, seed=1)
    for row in every_row(tmp_path):
        points = row[1:].reshape(-1, 2)
        assert len(points) >= 3 and points.min() > 0 and points.max() < 1
        assert cv2.contourArea((points * imgsz).astype(np.float32)) > 4


def test_every_scan_can_be_drawn_at_the_smallest_size() -> None:
    for source in range(len(digits.load_scans()[0])):
        digit = digits.draw_digit(source, 10, 45.0)
        assert len(digit.outline) >= 3 and (digit.opacity >= digits.INK).any()
        assert cv2.contourArea(digit.outline) > 4


def test_classify_folders_are_the_classes(sets: dict[str, Path]) -> None:
    assert digits.make_digits(sets["classify"], "classify", train=24, val=8, imgsz=IMGSZ) == sets["classify"]
    labels = digits.load_scans()[1]
    scans = json.loads((sets["classify"] / digits.MANIFEST).read_text())["scans"]
    for split, count in (("train", 24), ("val", 8)):
        folders = sorted(path.name for path in (sets["classify"] / split).iterdir())
        assert folders == [str(i) for i in range(min(count, 10))]
        images = sorted((sets["classify"] / split).glob("*/*.png"))
        assert len(images) == count
        assert set(labels[scans[split]]) == {int(path.parent.name) for path in images}


def test_semantic_masks_hold_the_classes_of_the_boxes(sets: dict[str, Path]) -> None:
    for file, boxes in zip(sorted(sets["semantic"].glob("masks/*/*.png")), rows(sets["detect"])):
        mask = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
        assert mask.shape == (IMGSZ, IMGSZ) and mask.dtype == np.uint8
        assert set(np.unique(mask)) == {int(row[0]) for row in boxes} | {10}


def test_depth_is_inverse_to_the_size(sets: dict[str, Path]) -> None:
    ratios = []
    for file, boxes in zip(sorted(sets["depth"].glob("depth/*/*.npy")), rows(sets["detect"])):
        depth = np.load(file)
        assert depth.shape == (IMGSZ, IMGSZ) and depth.dtype == np.float32
        assert depth.min() >= 2.5 and depth.max() == 20
        ink = depth < 7
        assert 1 <= len(np.unique(depth[ink])) <= len(boxes)
        mask = cv2.imread(str(sets["semantic"] / "masks" / file.parent.name / f"{file.stem}.png"), cv2.IMREAD_GRAYSCALE)
        assert np.array_equal(ink, mask != 10)
        assert (np.diff(np.where(ink, np.nan, depth), axis=0) > 0).sum() == 0  # the canvas recedes towards the top
        if len(boxes) == 1:
            ratios.append(depth.min() * boxes[0][4])  # height as a share of the image
    assert len(ratios) >= 2 and all(0.5 < ratio < 1 for ratio in ratios)  # the ink's share of its padded scan


# --- calling it twice, calling it wrongly ---


@pytest.mark.parametrize("task", ["detect", "classify"])
def test_second_call_leaves_the_files_alone(task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = digits.make_digits(tmp_path / "set", task, train=10, val=2, imgsz=64)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
    (tmp_path / "set" / "labels.cache").write_text("left there by a trainer")
    monkeypatch.setattr(digits, "write_split", None)
    assert digits.make_digits(tmp_path / "set", task, train=10, val=2, imgsz=64) == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")} == before


@pytest.mark.parametrize("other", [{"task": "pose"}, {"train": 5}, {"val": 3}, {"imgsz": 72}, {"seed": 1}])
def test_another_set_is_not_overwritten(other: dict[str, int | str], tmp_path: Path) -> None:
    arguments = {"task": "detect", "train": 4, "val": 2, "imgsz": 64, "seed": 0}
    digits.make_digits(tmp_path, **arguments)
    before = contents(tmp_path)
    with pytest.raises(FileExistsError, match="holds the digit data set"):
        digits.make_digits(tmp_path, **{**arguments, **other})
    assert contents(tmp_path) == before


@pytest.mark.parametrize("manifest", [None, "", "[]", "{}", "not json"])
def test_somebody_elses_folder_is_not_touched(manifest: str | None, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    if manifest is not None:
        (tmp_path / digits.MANIFEST).write_text(manifest)
    before = contents(tmp_path)
    with pytest.raises(FileExistsError, match="holds no digit data set"):
        digits.make_digits(tmp_path)
    assert contents(tmp_path) == before
    with pytest.raises(FileExistsError):
        digits.make_digits(tmp_path / "thesis.txt")


def test_interrupted_set_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = {"train": 6, "val": 2, "imgsz": 64}
    digits.make_digits(tmp_path / "whole", **arguments)
    with monkeypatch.context() as patch:
        original, calls = digits.paint, iter(range(4))

        def failing_paint(*args: object) -> object:
            if next(calls, None) is None:
                raise KeyboardInterrupt
            return original(*args)

        patch.setattr(digits, "paint", failing_paint)
        with pytest.raises(KeyboardInterrupt):
            digits.make_digits(tmp_path / "part", **arguments)
    assert len(list(tmp_path.glob("part/images/*/*.png"))) == 4
    digits.make_digits(tmp_path / "part", **arguments)
    assert contents(tmp_path / "part") == contents(tmp_path / "whole")


def test_moved_set_gets_its_new_path(tmp_path: Path) -> None:
    arguments = {"train": 2, "val": 1, "imgsz": 64}
    digits.make_digits(tmp_path / "old", **arguments)
    (tmp_path / "old").rename(tmp_path / "new")
    data = digits.make_digits(tmp_path / "new", **arguments)
    assert f'path: "{(tmp_path / "new").resolve().as_posix()}"' in data.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"task": "detection"}, "task='detection' is unknown; choose from detect, segment"),
        ({"train": 0}, "train=0 is too small"),
        ({"val": 0}, "val=0 is too small"),
        ({"imgsz": 31}, "imgsz=31 is too small: detect needs at least 32"),
        ({"seed": -1}, "seed=-1 is too small"),
        ({"task": "classify", "train": 9}, "train=9 is too small: classify needs at least 10"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_written(
    wrong: dict[str, int | str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match=message):
        digits.make_digits(tmp_path / "set", **wrong)
    with pytest.raises(SystemExit) as exit_:
        digits.main([str(tmp_path / "set"), *(f"--{name}={value}" for name, value in wrong.items())])
    assert exit_.value.code == 2
    assert str(next(iter(wrong.values()))) in capsys.readouterr().err
    assert not (tmp_path / "set").exists()


def test_missing_scikit_learn_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    digits.load_scans.cache_clear()
    with pytest.raises(ImportError, match="pip install scikit-learn"):
        digits.make_digits(tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_command_line_prints_what_data_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "mit Umlaut ä"
    digits.main([str(root), "--task", "pose", "--train", "2", "--val", "1", "--imgsz", "64", "--seed", "7"])
    assert capsys.readouterr().out.strip() == str((root / "data.yaml").resolve())
    recipe = json.loads((root / digits.MANIFEST).read_text())["recipe"]
    assert recipe == {"version": 1, "task": "pose", "train": 2, "val": 1, "imgsz": 64, "seed": 7}
    assert root.as_posix() in (root / "data.yaml").read_text(encoding="utf-8")
