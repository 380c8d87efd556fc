"""Train YOLO11n on handwritten digits from Python, and show what yolo-patches changed.

    python examples/train.py [FOLDER]      (Ultralytics, scikit-learn and yolo-patches installed)

With the start-up hook, which `pip install yolo-patches` puts in place, no import of yolo_patches is needed to train.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from make_digits import make_digits
from ultralytics import YOLO


def main(folder: Path) -> None:
    """Train one epoch in `folder` and print the plan."""
    data = make_digits(folder / "digits", train=64, val=16, imgsz=96)
    model = YOLO("yolo11n.yaml")
    model.train(
        data=str(data), epochs=1, imgsz=96, batch=8, device="cpu", project=str(folder / "runs"), patches="default"
    )
    for patch in json.loads(Path(model.trainer.save_dir, "patches.json").read_text())["patches"]:
        print(f"{patch['name']}: {patch['status']} ({patch['reason']})")
        for change in patch["changes"]:
            print(f"  {change['what']}: {change['upstream']} -> {change['patched']}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/example").resolve())
