"""Set up an environment from nothing and use it: `python3 dev.py demo` trains, `python3 dev.py test` runs the tests.

Needs Python 3.10 or newer with pip (torch asks for it; yolo-patches itself runs on 3.9). Everything that is installed
or made stays in .venv and .cache beside this file.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
CACHE = ROOT / ".cache"
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
#: Releases that the tests train with beside the installed one; each wheel is 1 MB and shares the one torch.
RELEASES = ("8.0.200", "8.1.34", "8.2.103", "8.3.0", "8.3.100", "8.3.253", "8.4.0", "8.4.60", "8.4.190")
#: Wheels that hold the source of upstreams that are checkouts: pyyolov9 byte for byte YOLOv9's, yolo9 its models and
#: hyperparameters, yolov5 the package, and the YOLOv10 authors' fork of Ultralytics.
SOURCES = {
    "yolov9": "pyyolov9==0.0.2",
    "yolo9": "yolo9==1.0.18",
    "yolov5": "yolov5==7.0.14",
    "yolov10": "ultralytics-yolov10-rknn==8.1.34",
}
#: A logger that one test has: old releases log to it wherever it can be imported, and today's ends them.
LOGGER = "mlflow-skinny==3.17.2"
TORCH = ("torch==2.15.0", "torchvision==0.29.2", "ultralytics-opencv-headless==8.4.190")


def run(*command: str | Path, **environment: str) -> None:
    """Run a command, shown, and stop with its exit status if it fails."""
    print("+", *command, flush=True)
    status = subprocess.run([str(word) for word in command], cwd=ROOT, env={**os.environ, **environment}).returncode
    if status:
        sys.exit(status)


def install(*requirements: str) -> None:
    """Create .venv where it is missing and install into it.

    uv shares files between environments, so that a second one takes seconds; `--target` because it works with every
    pip, and on systems whose Python refuses to install into itself.
    """
    tools = CACHE / "uv"
    uv = tools / ("Scripts" if os.name == "nt" else "bin") / "uv"
    if not tools.is_dir():
        run(sys.executable, "-m", "pip", "install", "--quiet", "--target", tools, "uv")
    if not (BIN / "python").exists():
        run(uv, "venv", "--quiet", "--python", sys.executable, VENV)
    run(uv, "pip", "install", "--quiet", "--python", BIN / "python", *TORCH, *requirements)


def configuration() -> dict[str, str]:
    """Return the environment that keeps upstream from looking for fonts and updates on the network."""
    folder = CACHE / "config"
    folder.mkdir(parents=True, exist_ok=True)
    fonts = next(BIN.parent.glob("lib*/**/matplotlib/mpl-data/fonts/ttf"), None)
    if fonts:
        shutil.copy(fonts / "DejaVuSans.ttf", folder / "Arial.ttf")
    return {"YOLO_CONFIG_DIR": str(folder), "YOLO_OFFLINE": "true"}


def releases() -> Path:
    """Unpack the upstreams' wheels, each into a folder named by its version, and return the folder of them all."""
    folder = CACHE / "upstreams"
    wanted = {**{version: f"ultralytics=={version}" for version in RELEASES}, **SOURCES}
    for name, requirement in wanted.items():
        if (folder / name).is_dir():
            continue
        wheels = CACHE / "wheels"
        # All are pure Python, whatever they say: yolov5's wheel 3.7 to 3.10, yolo9's 3.11 and newer.
        python = "3.10" if name == "yolov5" else "3.11"
        pure = ("--no-deps", "--only-binary=:all:", f"--python-version={python}")
        run(sys.executable, "-m", "pip", "download", "--quiet", *pure, "--dest", wheels, requirement)
        file = requirement.replace("-", "_").replace("==", "-")
        with zipfile.ZipFile(next(wheels.glob(f"{file}-*.whl"))) as wheel:
            wheel.extractall(folder / name)
    if not (folder / "mlflow").is_dir():
        uv = CACHE / "uv" / ("Scripts" if os.name == "nt" else "bin") / "uv"
        run(uv, "pip", "install", "--quiet", "--python", BIN / "python", "--target", folder / "mlflow", LOGGER)
    return folder


def demo() -> None:
    """Train YOLO11n on handwritten digits with every patch, and print what was changed."""
    install(".", "scikit-learn")
    data = CACHE / "digits"
    run(BIN / "python", "examples/make_digits.py", data, "--train", "64", "--val", "16", "--imgsz", "96")
    arguments = ("model=yolo11n.yaml", f"data={data / 'data.yaml'}", "epochs=1", "imgsz=96", "batch=8", "device=cpu")
    runs = CACHE / "runs"
    run(
        BIN / "yolo", "train", *arguments, "patches=all", f"project={runs}", "name=demo", "exist_ok=True",
        **configuration(),
    )  # fmt: skip
    print((runs / "demo" / "patches.json").read_text())


def test(arguments: list[str]) -> None:
    """Check format, types and behaviour."""
    install("--editable", ".[test]")
    environment = {**configuration(), "YOLO_PATCHES_UPSTREAMS": str(releases())}
    run(BIN / "ruff", "format", "--check", ".")
    run(BIN / "ruff", "check", ".")
    run(BIN / "mypy")
    # A file's tests stay together: several start ranks once for all of them.
    parallel = ("-n", "2", "--dist", "loadfile", "--no-loadscope-reorder")
    run(BIN / "python", "-m", "pytest", *parallel, *arguments, **environment)


def main() -> None:
    """Run the command that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("demo", "test"))
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="for pytest")
    options = parser.parse_args()
    if sys.version_info < (3, 10):
        parser.error(f"torch needs Python 3.10 or newer, this is {sys.version.split()[0]}")
    demo() if options.command == "demo" else test(options.arguments)


if __name__ == "__main__":
    main()
