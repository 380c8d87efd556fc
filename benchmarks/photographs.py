"""Synthetic photographs: as many edges, textures and bytes as a camera's JPEG, with objects of every size."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from PIL import Image

#: Width and height.
SMALL = ((640, 480),)
MIXED = ((640, 480), (1280, 720), (1920, 1080), (500, 375), (1024, 1024))
#: Of images of which only the contents matter.
SMALLER = ((320, 240), (480, 270), (250, 188), (200, 200))
CLASSES = 8


def photograph(random: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Return an image of noise at several scales, [height, width, 3]."""
    image = np.zeros((height, width, 3), np.float32)
    for cells, strength in ((4, 90), (16, 45), (64, 25), (256, 12)):
        noise = random.normal(0, strength, (cells, cells, 3)).astype(np.float32)
        image += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    image += random.normal(0, 3, image.shape).astype(np.float32)
    return np.clip(image + 120, 0, 255).astype(np.uint8)


def outline(random: np.random.Generator, corners: int) -> np.ndarray:
    """Return the corners of a star-shaped polygon, normalised, [corners, 2]."""
    angles = np.sort(random.uniform(0, 2 * np.pi, corners))
    size = random.uniform(0.02, 0.3) * random.uniform(0.5, 1, corners)
    centre = random.uniform(0.1, 0.9, 2)
    points = centre + np.column_stack([np.cos(angles), np.sin(angles)]) * size[:, None]
    return np.clip(points, 0, 1)


def make(folder: Path, images: int, sizes: tuple[tuple[int, int], ...], labels: str, objects: int = 14) -> Path:
    """Make a data set whose training images are also its validation's.

    Args:
        folder: Where; it must not exist.
        images: How many.
        sizes: Widths and heights, in turns.
        labels: boxes, polygons, corners (of rotated boxes) or keypoints.
        objects: Objects of an image, at most.

    Returns:
        The data set's yaml file.
    """
    random = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    (folder / "labels").mkdir()
    for index in range(images):
        image = photograph(random, *sizes[index % len(sizes)])
        lines = []
        for _ in range(int(random.integers(0, objects + 1))):
            points = outline(random, int(random.integers(8, 60)))
            low, high = points.min(0), points.max(0)
            cv2.fillPoly(image, [(points * image.shape[1::-1]).astype(np.int32)], random.integers(0, 255, 3).tolist())
            box = [*((low + high) / 2), *(high - low)]
            rectangle = [low[0], low[1], high[0], low[1], high[0], high[1], low[0], high[1]]
            keypoints = [value for x, y in points[:4] for value in (x, y, 2)]
            values = {
                "boxes": box,
                "polygons": points.ravel().tolist(),
                "corners": rectangle,
                "keypoints": [*box, *keypoints],
            }[labels]
            lines.append(" ".join([str(random.integers(CLASSES)), *(f"{value:.6f}" for value in values)]))
        cv2.imwrite(str(folder / "images" / f"{index:05}.jpg"), image, [cv2.IMWRITE_JPEG_QUALITY, 92])
        (folder / "labels" / f"{index:05}.txt").write_text("\n".join(lines))
    extra = "kpt_shape: [4, 3]\nflip_idx: [1, 0, 3, 2]\n" if labels == "keypoints" else ""
    names = ", ".join(f"class{index}" for index in range(CLASSES))
    file = folder / "data.yaml"
    file.write_text(f"path: {folder}\ntrain: images\nval: images\nnames: [{names}]\n{extra}")
    return file


def classes(folder: Path, images: int, sizes: tuple[tuple[int, int], ...]) -> Path:
    """Make a classification data set of two classes, whose training images are also its validation's; return it."""
    random = np.random.default_rng(0)
    for index in range(images):
        image = photograph(random, *sizes[index % len(sizes)])
        for part in ("train", "val"):
            place = folder / part / "ab"[index % 2]
            place.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(place / f"{index:05}.jpg"), image, [cv2.IMWRITE_JPEG_QUALITY, 92])
    return folder


def odd(folder: Path, labels: str) -> Path:
    """Make a data set of what users' folders hold, too: see `make`.

    Grey, transparent, 16 bit and turned images, one of a single pixel, one that is no image, one that is cut off; no
    label, an empty one, 2,000 objects, and objects without area, outside or along the image's border.
    """
    file = make(folder, 16, SMALLER, labels)
    images, texts = (sorted((folder / name).iterdir()) for name in ("images", "labels"))
    for index, flags in ((0, cv2.IMREAD_GRAYSCALE), (1, cv2.IMREAD_COLOR)):
        image = cv2.imread(str(images[index]), flags)
        kinds = {0: (image, image.astype(np.uint16) * 257), 1: (cv2.cvtColor(image, cv2.COLOR_BGR2BGRA), image)}[index]
        for number, one in enumerate(kinds):
            name = f"odd{index}{number}"
            cv2.imwrite(str(folder / "images" / f"{name}.png"), one)
            (folder / "labels" / f"{name}.txt").write_text(texts[5].read_text())
    turned = Image.open(images[2])
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(images[2], exif=exif)
    cv2.imwrite(str(images[3].with_suffix(".png")), np.full((1, 1, 3), 200, np.uint8))
    images[3].unlink()
    images[4].write_bytes(b"no image")
    images[6].write_bytes(images[6].read_bytes()[:-2000])
    texts[7].unlink()
    texts[8].write_text("")
    lines = [line for text in texts[10:] for line in text.read_text().splitlines()]
    texts[9].write_text(
        "\n".join(f"{index % CLASSES} {lines[index % len(lines)].split(' ', 1)[1]}" for index in range(2000))
    )
    flat = {"boxes": ("0.5 0.5 0 0", "0 0 0.2 0.2", "1 1 0.5 0.5", "0.5 0.5 1 1", "0.3 0.3 0.1 0.000001")}
    points = (
        "0.5 0.5 " * 3,
        "0 0 1 0 1 1 0 1",
        "0.2 0.2 0.4 0.2 0.3 0.2",
        "0 0 0 1 0 0.5",
        "0.1 0.1 0.9 0.9 0.1 0.9 0.9 0.1",
    )
    kept = flat["boxes"] if labels == "boxes" else points
    texts[11].write_text("\n".join(f"0 {one.strip()}" for one in kept))
    return file
