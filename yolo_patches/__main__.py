"""`python -m yolo_patches train ...`: the `yolo-patches` command, and `yolo` itself, without the start-up hook."""

from __future__ import annotations

import sys

from yolo_patches.cli import main

if __name__ == "__main__":
    sys.exit(main())
