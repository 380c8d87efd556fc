"""`yolo-patches verify` for many models and numbers of ranks, as one table.

A row takes a minute or two.

    python benchmarks/verify.py [--ranks 2,3,4,5] [--optimizers SGD,AdamW,MuSGD] [--rounds] [MODEL ...]
"""

from __future__ import annotations

import argparse

from yolo_patches.errors import PatchesError
from yolo_patches.verify import verify

MODELS = [f"yolo{name}.yaml" for name in (
    "v8n", "v9t", "v10n", "11n", "12n", "26n", "v8n-seg", "11n-seg", "26n-seg", "v8n-pose", "11n-pose", "26n-pose",
    "v8n-obb", "11n-obb", "26n-obb",
)]  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", default=MODELS)
    parser.add_argument("--ranks", default="2,3,4,5", help="numbers of ranks (default: %(default)s)")
    parser.add_argument("--optimizers", default="SGD", help="upstream's names of them (default: %(default)s)")
    parser.add_argument("--rounds", action="store_true", help="let upstream round on the way, as it does")
    options = parser.parse_args()
    print("| model | ranks | optimizer | gradient, upstream | gradient | BatchNorm statistics | trajectory | |")
    print("|---|---|---|---|---|---|---|---|")
    for model in options.models:
        for ranks in map(int, options.ranks.split(",")):
            for optimizer in options.optimizers.split(","):
                try:
                    result = verify(model, ranks, optimizer, rounds=options.rounds)
                except PatchesError as error:
                    print(f"| {model} | {ranks} | {optimizer} | {str(error).splitlines()[0]} |", flush=True)
                    continue
                patched = result["errors"]["patched"]
                figures = [result["errors"]["upstream"]["gradient"], *patched.values()]
                cells = [model, str(ranks), optimizer, *(f"{figure:.1e}" for figure in figures)]
                print("|", " | ".join(cells), "|", "holds" if result["holds"] else "FAILS", "|", flush=True)


if __name__ == "__main__":
    main()
