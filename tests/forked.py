"""Processes that begin where everybody's imports have ended: `python tests/forked.py SOCKET`.

A training process spends four seconds on torch, torchvision and what they import, and a small training takes one. This
process imports them once, nothing of an upstream's and nothing of ours but the start-up hook, and becomes two for each
request: the child takes the request's arguments, environment, folder and files, and runs to the end of an interpreter.

    request   {"words": [...], "environment": {...}, "folder": ..., "out": ..., "err": ...}, a line of JSON
    answer    the child's number, and once it has ended its status, a line each
"""

from __future__ import annotations

import importlib
import json
import os
import random
import runpy
import socket
import sys

#: What trainings import, theirs and their libraries', as far as it is installed.
LIBRARIES = (
    "torch",
    "torch._dynamo",
    "torch.distributed.run",
    "torchvision",
    "cv2",
    "matplotlib.pyplot",
    "numpy",
    "pandas",
    "PIL.Image",
    "polars",
    "psutil",
    "requests",
    "scipy",
    "sympy",
    "tqdm",
    "yaml",
)


def serve(address: str) -> dict:
    """Return, in a process of its own each time, the requests that come; end where nobody is left to ask."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(address)
        stream = client.makefile("rw")
        for line in stream:
            child = os.fork()
            if not child:
                return json.loads(line)
            print(child, file=stream, flush=True)
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=stream, flush=True)
    os._exit(0)


def become(request: dict) -> list[str]:
    """Be the process that the request describes; return its words."""
    for name, number in (("out", 1), ("err", 2)):
        file = os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    random.seed()  # else all children would draw the same numbers, and two of them agree on what is left to chance
    importlib.import_module("numpy").random.seed()
    words = request["words"]
    sys.path[0] = "" if words[0].startswith("-") else os.path.dirname(os.path.abspath(words[0]))
    sys.path[1:1] = [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
    importlib.invalidate_caches()
    return words


def run(words: list[str]) -> None:
    """Do what `python *words` does: a script, `-c CODE` or `-m MODULE`."""
    sys.orig_argv = [sys.executable, *words]
    if words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
    elif words[0] == "-m":
        sys.argv = ["-m", *words[2:]]  # as it is while the module is looked for
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    for library in LIBRARIES:
        try:
            importlib.import_module(library)
        except ImportError:
            continue
    run(become(serve(sys.argv[1])))
