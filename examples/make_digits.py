"""Make a small real-image data set for any Ultralytics task from scikit-learn's handwritten digits.

The 1,797 scans (8x8 pixels, shipped inside scikit-learn, nothing is downloaded) are enlarged to random sizes and placed
on noise canvases, one to eight an image. A small YOLO learns them in minutes on a CPU, which makes the sets fit for
tutorials, tests and training comparisons. The data.yaml also loads in YOLOv5 and YOLOv9 source checkouts.

    python examples/make_digits.py digits --task detect --train 800 --val 200 --imgsz 128
    yolo detect train model=yolo11n.yaml data=digits/data.yaml imgsz=128

Tasks: detect, segment, pose (top, bottom, left and right end of the ink), obb (digits tilted by up to 45 degrees),
classify (one digit an image; `data=` takes the folder), semantic (PNG masks; class 10 is the background) and depth (a
digit twice as large is half as far away, before a canvas that recedes towards the top; float32 .npy maps in metres).
All but obb and classify share their images.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

TASKS = ("detect", "segment", "pose", "obb", "classify", "semantic", "depth")
CLASSES = 10
BACKGROUND = CLASSES  # the index that Ultralytics gives the background of polygon-labelled semantic sets, too
MANIFEST = "digits.json"
VERSION = 1  # raise it when the same arguments no longer give the same files

VAL_SHARE = 0.2  # of the scans
MAX_DIGITS = 8
MAX_OVERLAP = 0.15  # of the smaller box
PLACEMENTS_TRIED = 40
MAX_TILT = 45.0  # degrees; from 90 on a 6 could be taken for a 9
INK = 0.35  # opacity from which a pixel counts as ink
CANVAS_METRES = (20.0, 8.0)  # at the top and at the bottom; behind every digit, as the smallest are less than 7 m away

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Digit:
    """One enlarged digit in its own square patch; `place` moves it into an image (pixels, edges at whole numbers)."""

    source: int  # index into the 1,797 scans
    label: int
    size: int  # side of the enlarged scan before it is tilted
    opacity: Array  # (t, t) in [0, 1]
    outline: Array  # (n, 2) polygon around the ink, holes filled
    corners: Array  # (4, 2) tightest rectangle that is tilted like the digit
    x: int = 0  # left and top edge of the patch
    y: int = 0

    @property
    def box(self) -> Array:
        """Axis-aligned x1, y1, x2, y2."""
        return np.concatenate([self.outline.min(0), self.outline.max(0)])

    @property
    def extremes(self) -> Array:
        """Top, bottom, left and right end of the outline, (4, 2)."""
        x, y = self.outline.T
        return self.outline[[y.argmin(), y.argmax(), x.argmin(), x.argmax()]]

    def place(self, x: int, y: int) -> Digit:
        """Return the digit with its patch at column x and row y."""
        shift = np.array([x - self.x, y - self.y], np.float32)
        return replace(self, outline=self.outline + shift, corners=self.corners + shift, x=x, y=y)


@functools.lru_cache(maxsize=1)
def load_scans() -> tuple[Array, NDArray[np.int64]]:
    """Return the (1797, 8, 8) scans and their classes."""
    package = importlib.util.find_spec("sklearn")
    if package is None or not package.submodule_search_locations:
        raise ImportError("make_digits takes its digits from scikit-learn: pip install scikit-learn")
    table = Path(package.submodule_search_locations[0], "datasets", "data", "digits.csv.gz")
    if table.is_file():  # the file that load_digits reads: importing scikit-learn takes seconds, reading this 20 ms
        data = np.loadtxt(table, delimiter=",")
    else:
        from sklearn.datasets import load_digits  # type: ignore[import-untyped]

        data = np.column_stack(load_digits(return_X_y=True))
    return data[:, :-1].reshape(-1, 8, 8).astype(np.float32), data[:, -1].astype(np.int64)


def split_scans(count: int, seed: int) -> dict[str, NDArray[np.int64]]:
    """Return the indices of the scans that train and val draw from; they have none in common."""
    order = np.random.default_rng([seed, 0]).permutation(count)
    held_out = int(count * VAL_SHARE)
    return {"train": order[held_out:], "val": order[:held_out]}


def draw_digit(source: int, size: int, tilt: float) -> Digit:
    """Enlarge and tilt one scan and trace its ink; every kind of label comes from this one outline."""
    scans, labels = load_scans()
    # An empty frame around the scan, because the ink of most digits touches its edge and would be cut off there.
    scan = np.pad(scans[source] / scans[source].max(), 1)
    side = scan.shape[0]
    cos, sin = np.cos(np.deg2rad(tilt)), np.sin(np.deg2rad(tilt))
    turn = np.array([[cos, -sin], [sin, cos]])
    t = int(np.ceil(size * (abs(cos) + abs(sin)))) + 2
    # OpenCV counts from pixel centres: the middle of n pixels is (n - 1) / 2.
    shift = (t - 1) / 2 - turn @ np.full(2, (side - 1) / 2) * size / side
    forward = np.column_stack([turn * size / side, shift])
    opacity = np.clip(cv2.warpAffine(scan, forward, (t, t), flags=cv2.INTER_CUBIC), 0, 1).astype(np.float32)

    # Traced four times finer than the pixels: on the pixel grid the outline of a thin stroke would enclose no area.
    fine = (cv2.resize(opacity, (4 * t, 4 * t), interpolation=cv2.INTER_LINEAR) >= INK).astype(np.uint8)
    parts, _ = cv2.findContours(fine, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    # Ink in several parts gets their common hull, because a YOLO label line holds a single polygon.
    traced = cv2.approxPolyDP(parts[0], 1.0, True) if len(parts) == 1 else cv2.convexHull(np.concatenate(parts))
    outline = (traced.reshape(-1, 2) + 0.5) / 4
    upright = (outline - t / 2) @ turn
    (x1, y1), (x2, y2) = upright.min(0), upright.max(0)
    corners = np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]]) @ turn.T + t / 2
    return Digit(source, int(labels[source]), size, opacity, outline.astype(np.float32), corners.astype(np.float32))


def overlap(a: Array, b: Array) -> float:
    """Return the area that two boxes share as a fraction of the smaller box."""
    shared = (np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])).clip(0).prod()
    return float(shared / min((a[2:] - a[:2]).prod(), (b[2:] - b[:2]).prod()))


def arrange(digits: Iterable[Digit], imgsz: int, rng: np.random.Generator) -> list[Digit]:
    """Place the digits, without those that find no room, and return them from the smallest to the largest."""
    placed: list[Digit] = []
    for digit in sorted(digits, key=lambda d: -d.size):
        room = imgsz - digit.opacity.shape[0]
        for x, y in rng.integers(0, room + 1, (PLACEMENTS_TRIED, 2)):
            candidate = digit.place(int(x), int(y))
            if all(overlap(candidate.box, other.box) <= MAX_OVERLAP for other in placed):
                placed.append(candidate)
                break
    return placed[::-1]


def compose(task: str, index: int, pool: NDArray[np.int64], imgsz: int, rng: np.random.Generator) -> list[Digit]:
    """Choose, draw and place the digits of one image."""
    if task == "classify":  # the classes in turn: val then never has a class that train lacks
        sources = rng.choice(pool[load_scans()[1][pool] == index % CLASSES], 1)
        sizes = rng.integers(imgsz // 2, imgsz * 5 // 6, 1)
    else:
        sources = rng.choice(pool, rng.integers(1, MAX_DIGITS + 1), replace=False)
        sizes = rng.integers(max(10, imgsz // 6), imgsz * 2 // 5 + 1, len(sources))
    tilts = rng.uniform(-MAX_TILT, MAX_TILT, len(sources)) if task == "obb" else np.zeros(len(sources))
    choices = np.column_stack([sources, sizes, tilts])
    return arrange((draw_digit(int(source), int(size), tilt) for source, size, tilt in choices), imgsz, rng)


def paint(digits: Sequence[Digit], imgsz: int, rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Paint the digits in turn and return the BGR image and, per pixel, the index of the digit seen there or -1."""
    image = rng.uniform(0, 90, 3) + rng.uniform(-15, 15, (imgsz, imgsz, 3))
    owner = np.full((imgsz, imgsz), -1)
    for i, digit in enumerate(digits):
        t = digit.opacity.shape[0]
        window = np.s_[digit.y : digit.y + t, digit.x : digit.x + t]
        opacity = digit.opacity[..., None]
        image[window] = image[window] * (1 - opacity) + rng.uniform(150, 255, 3) * opacity
        owner[window][digit.opacity >= INK] = i
    return image.clip(0, 255).astype(np.uint8), owner


def label_lines(task: str, digits: Sequence[Digit], owner: NDArray[np.int64]) -> str:
    """Return the text of a YOLO label file: one line a digit, coordinates as fractions of the image."""
    imgsz = owner.shape[0]
    lines = []
    for i, digit in enumerate(digits):
        box = digit.box
        values = np.concatenate([(box[:2] + box[2:]) / 2, box[2:] - box[:2]]) / imgsz
        if task == "segment":
            values = digit.outline.ravel() / imgsz
        elif task == "obb":
            values = digit.corners.ravel() / imgsz
        elif task == "pose":
            column, row = digit.extremes.astype(int).T
            visibility = np.where(owner[row, column] > i, 1, 2)  # as in COCO: 1 is hidden (by a later digit), 2 is seen
            values = np.concatenate([values, np.column_stack([digit.extremes / imgsz, visibility]).ravel()])
        lines.append(" ".join([str(digit.label), *(f"{value:.6f}" for value in values)]))
    return "\n".join(lines) + "\n"


def save(path: Path, content: Any) -> None:
    """Write an array as .png or .npy or a text as anything else, and the folders that the path needs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":  # at the fastest level: noise hardly compresses
        path.write_bytes(cv2.imencode(".png", content, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes())
    elif path.suffix == ".npy":
        np.save(path, content)
    else:
        path.write_text(content, encoding="utf-8")


def write_split(root: Path, split: str, task: str, count: int, imgsz: int, seed: int) -> list[int]:
    """Write the images and labels of one split and return the indices of the scans that it shows."""
    pool = split_scans(len(load_scans()[0]), seed)[split]
    shown: set[int] = set()
    for index in range(count):
        rng = np.random.default_rng([seed, 1 if split == "train" else 2, index])
        digits = compose(task, index, pool, imgsz, rng)
        image, owner = paint(digits, imgsz, rng)
        shown.update(digit.source for digit in digits)
        name = f"{index:06d}"
        folder = root / split / str(digits[0].label) if task == "classify" else root / "images" / split
        save(folder / f"{name}.png", image)
        if task == "semantic":  # owner is -1 on the canvas, which picks the last entry
            classes = np.array([*(digit.label for digit in digits), BACKGROUND], np.uint8)
            save(root / "masks" / split / f"{name}.png", classes[owner])
        elif task == "depth":  # .npy: the first Ultralytics releases with this task do not read depth from PNG
            canvas = np.linspace(*CANVAS_METRES, imgsz, dtype=np.float32)[:, None]
            metres = np.array([imgsz / digit.size for digit in digits], np.float32)
            save(root / "depth" / split / f"{name}.npy", np.where(owner < 0, canvas, metres[owner]))
        elif task != "classify":
            save(root / "labels" / split / f"{name}.txt", label_lines(task, digits, owner))
    return sorted(shown)


def data_yaml(root: Path, task: str) -> str:
    """Return the text of data.yaml; its path is absolute because YOLOv5 and YOLOv9 start from the working folder."""
    names = ["depth"] if task == "depth" else [str(label) for label in range(CLASSES)]
    if task == "semantic":
        names.append("background")
    entries: dict[str, Any] = {"path": root.as_posix(), "train": "images/train", "val": "images/val"}
    entries.update(nc=len(names), names=names)
    if task == "pose":
        entries.update(kpt_shape=[4, 3], flip_idx=[0, 1, 3, 2])  # the mirror swaps the left end and the right end
    elif task == "semantic":
        entries.update(masks_dir="masks")
    # JSON is YAML, and its quotes keep the names "0" to "9" from being read as numbers.
    return "".join(f"{key}: {json.dumps(value, ensure_ascii=False)}\n" for key, value in entries.items())


def is_finished(root: Path, recipe: dict[str, Any]) -> bool:
    """Return whether the folder holds the finished set of this recipe; raise if it holds anything else."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    try:
        manifest = json.loads((root / MANIFEST).read_text(encoding="utf-8"))
        found = manifest["recipe"]
    except (OSError, ValueError, KeyError, TypeError):
        raise FileExistsError(f"{root} exists and holds no digit data set; choose another folder") from None
    if found != recipe:
        raise FileExistsError(f"{root} holds the digit data set {found}, not {recipe}; choose another folder")
    return "scans" in manifest


def make_digits(
    root: str | Path, task: str = "detect", train: int = 64, val: int = 16, imgsz: int = 96, seed: int = 0
) -> Path:
    """Write a digit data set and return what Ultralytics takes as `data=`.

    The same arguments give the same bytes, and image i of a split does not depend on how many follow. The scans are
    divided once per seed, so that no handwriting is in both train and val. A second call with the same arguments
    returns at once, or completes a set whose making was interrupted.

    Args:
        root: Folder to write to: missing, empty, or holding the set of the same arguments.
        task: One of `TASKS`.
        train: Number of training images; at least 10 for classify, one a class.
        val: Number of validation images; below 10 Ultralytics notes that classify validates on fewer classes.
        imgsz: Side of the square images in pixels, at least 32.
        seed: Seed of everything random, at least 0.

    Returns:
        The path of data.yaml; for classify the folder that holds train/ and val/.

    Raises:
        ValueError: If an argument is out of range.
        FileExistsError: If `root` is a file or holds anything else.
        ImportError: If scikit-learn is not installed.
    """
    if task not in TASKS:
        raise ValueError(f"task={task!r} is unknown; choose from {', '.join(TASKS)}")
    least_train = CLASSES if task == "classify" else 1
    for name, value, least in (("train", train, least_train), ("val", val, 1), ("imgsz", imgsz, 32), ("seed", seed, 0)):
        if value < least:
            raise ValueError(f"{name}={value} is too small: {task} needs at least {least}")

    root = Path(root).resolve()
    recipe = {"version": VERSION, "task": task, "train": train, "val": val, "imgsz": imgsz, "seed": seed}
    if not is_finished(root, recipe):
        load_scans()  # first, so that nothing is left behind where scikit-learn is missing
        # The manifest comes first and again last: without "scans" it marks a set that the next call may complete.
        save(root / MANIFEST, json.dumps({"recipe": recipe}))
        counts = {"train": train, "val": val}
        scans = {split: write_split(root, split, task, count, imgsz, seed) for split, count in counts.items()}
        save(root / MANIFEST, json.dumps({"recipe": recipe, "scans": scans}))
    if task == "classify":
        return root
    # Written on every call, because the path in it is out of date once the folder has been moved.
    save(root / "data.yaml", data_yaml(root, task))
    return root / "data.yaml"


def main(argv: Sequence[str] | None = None) -> None:
    """Make the data set that the command line asks for and print what to give to `data=`."""
    parser = argparse.ArgumentParser(description="Make a YOLO data set from scikit-learn's handwritten digits.")
    parser.add_argument("root", type=Path, metavar="OUT", help="folder to write: missing, empty, or made by this call")
    parser.add_argument("--task", choices=TASKS, default="detect")
    parser.add_argument("--train", type=int, default=64, help="training images (default: %(default)s)")
    parser.add_argument("--val", type=int, default=16, help="validation images (default: %(default)s)")
    parser.add_argument("--imgsz", type=int, default=96, help="side of the images in pixels (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    try:
        print(make_digits(**vars(parser.parse_args(argv))))
    except (ValueError, FileExistsError, ImportError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
