"""Processes that begin where everybody's imports have ended.

A training process spends four seconds on torch, torchvision and what they import, and a small training takes one. A
server imports them once, nothing of an upstream's and nothing of ours but the start-up hook, and becomes another
process for each request: it takes the request's arguments, environment, folder and files, and runs to the end of an
interpreter. Whoever asked and goes away, takes it along.

    python tests/forked.py serve DESCRIPTOR         serve whoever connects, until standard input ends
    python tests/forked.py ask ADDRESS *WORDS       be `python *WORDS`, by the server that listens there

    request   {"words": [...], "environment": {...}, "folder": ...}, a line of JSON, and three descriptors
    answer    the process's number, and once it has ended its status, a line each
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
import threading

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


def ask(address: str, words: list[str], environment: dict, folder: str, files: tuple):
    """Return the stream of the answer to a request.

    Args:
        address: Where the server listens.
        words: What follows `python`.
        environment: Of the process.
        folder: Where it is run.
        files: Its standard input, output and error.
    """
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(address)
        request = json.dumps({"words": words, "environment": environment, "folder": folder}) + "\n"
        sent = socket.send_fds(client, [request.encode()], files)
        client.sendall(request.encode()[sent:])
        return client.makefile("r")


def serve(listener: socket.socket) -> dict:
    """Return, in a process of its own each time, the requests that come; end where nobody is left to ask."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the processes that watch others
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        if sys.stdin in ready:
            os._exit(0)
        connection, _ = listener.accept()
        if not os.fork():
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            listener.close()
            return accepted(connection)
        connection.close()


def accepted(connection: socket.socket) -> dict:
    """Return a request in a process of its own, which this one watches to its end."""
    text, files, _, _ = socket.recv_fds(connection, 1 << 16, 3)
    while not text.endswith(b"\n"):
        more = connection.recv(1 << 16)
        if not more:  # whoever asked has gone away
            os._exit(1)
        text += more
    child = os.fork()
    if not child:
        connection.close()
        return {**json.loads(text), "files": files}
    for file in (*files, 0, 1, 2):
        os.close(file)

    def end_with_whoever_asked() -> None:
        while connection.recv(1):
            pass
        os.kill(child, signal.SIGKILL)

    connection.sendall(f"{child}\n".encode())
    threading.Thread(target=end_with_whoever_asked, daemon=True).start()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    connection.sendall(f"{status}\n".encode())
    os._exit(0)


def become(request: dict) -> list[str]:
    """Be the process that the request describes; return its words."""
    for number, file in enumerate(request["files"]):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    # Else all children would draw the same numbers, and two of them agree on what is left to chance.
    for module in ("random", "numpy.random"):
        importlib.import_module(module).seed()
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
        sys.modules.pop(words[1], None)  # what has been imported is run anew, which runpy would warn of
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")


def client(address: str, words: list[str]) -> int:
    """Be `python *words`: return its status, or end by the signal that has ended it."""
    words = words[1:] if words[0] == "-u" else words
    stream = ask(address, words, dict(os.environ), os.getcwd(), (0, 1, 2))
    stream.readline()
    status = int(stream.readline())
    if status < 0:
        os.kill(os.getpid(), -status)
    return status


if __name__ == "__main__":
    if sys.argv[1] == "ask":
        sys.exit(client(sys.argv[2], sys.argv[3:]))
    for library in LIBRARIES:
        try:
            importlib.import_module(library)
        except ImportError:
            continue
    run(become(serve(socket.socket(fileno=int(sys.argv[2])))))
