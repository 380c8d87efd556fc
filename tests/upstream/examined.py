"""Ask doctor many times in one process; print its answers as JSON.

examined.py QUESTIONS       (QUESTIONS: JSON, name -> [words, machine]; machine: {} or what Machine takes)
"""

from __future__ import annotations

import contextlib
import io
import json
import sys

from yolo_patches import cli
from yolo_patches.doctor.subject import Accelerator, Machine

#: A machine that has enough of everything, so that one figure at a time is the defect.
ENOUGH = {"cores": 64, "memory": 1 << 40, "accelerators": []}


def ask(words, there):
    machine = {**ENOUGH, **there}
    accelerators = tuple(Accelerator(*one) for one in machine.pop("accelerators"))
    cli.machine.here = lambda devices: Machine(**machine, accelerators=accelerators)
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.redirect_stderr(io.StringIO()) as complained:
        status = cli.main(["doctor", "--json", *words])
    return {
        "status": status,
        "findings": json.loads(said.getvalue())["findings"] if said.getvalue() else [],
        "complained": complained.getvalue()[-2000:],
    }


def main():
    answers = {name: ask(words, machine) for name, (words, machine) in json.loads(sys.argv[1]).items()}
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
