"""A process that works beside the training: it is told what to do, one task at a time, and gives back what came of it.

The training's main script is not imported there (multiprocessing's "spawn" would run it anew where it has no guard).
The process ends when the training does, whatever ends it: its standard input is closed then.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, BinaryIO

HEADER = struct.Struct("!Q")
#: Seconds that the process is given to end by itself.
GRACE = 5.0


class HelperError(Exception):
    """The process has ended, or says that it could not do its task; the text says why."""


class Helper:
    """The training's end of it.

    Args:
        module: Has a function `prepare(setup)` that returns the function to do a task with: bytes to anything that
            can be pickled.
        setup: What the module needs, once.
        environment: The process's.
    """

    def __init__(self, module: str, setup: bytes, environment: Mapping[str, str]) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"from {__name__} import main; main()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**environment, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            start_new_session=True,  # Ctrl-C is the training's, which then closes this
        )
        self._answer: Any = None
        self._thread: threading.Thread | None = None
        self._send(pickle.dumps((module, setup)))

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid

    def ask(self, task: bytes) -> None:
        """Have a task done; the answer is collected later."""
        self._send(task)

    def answer(self, limit: float) -> Any:
        """Wait for the result of the task.

        Args:
            limit: Seconds to wait.

        Raises:
            HelperError: There is none.
        """
        assert self._thread is not None, "asked before"
        self._thread.join(limit)
        if self._thread.is_alive():
            raise HelperError(f"the process has not answered in {limit:.0f} s more")
        if self._answer is None:
            raise HelperError(self._last_words())
        done, result = self._answer
        if not done:
            raise HelperError(result)
        return result

    def close(self) -> None:
        """End the process; harmless when done twice."""
        if self._thread is not None and self._thread.is_alive():
            self._process.kill()  # it is in the middle of something, or stopped: a pipe to it would not close
            self._thread.join()
        with contextlib.suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        try:
            self._process.wait(GRACE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._log.close()

    def _send(self, frame: bytes) -> None:
        """Send in the background: the process may still be importing, and a pipe holds little."""
        before = self._thread

        def exchange() -> None:
            if before is not None:
                before.join()
                if self._answer is None or not self._answer[0]:  # it has ended, or is not prepared
                    return
            self._answer = None
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            try:
                _write(self._process.stdin, frame)
                answer = _read(self._process.stdout)
            except (OSError, ValueError):  # it has ended, or is being closed
                return
            self._answer = None if answer is None else pickle.loads(answer)

        self._thread = threading.Thread(target=exchange, name="yolo-patches helper", daemon=True)
        self._thread.start()

    def _last_words(self) -> str:
        status = self._process.poll()
        try:
            self._log.seek(0)
            lines = self._log.read().decode(errors="replace").strip().splitlines()
        except (OSError, ValueError):
            lines = []
        ended = "has ended" if status is None else f"has ended with status {status}"
        return f"the process {ended}{': ' + lines[-1] if lines else ''}"


def _write(stream: Any, frame: bytes) -> None:
    stream.write(HEADER.pack(len(frame)))
    stream.write(frame)
    stream.flush()


def _read(stream: Any) -> bytes | None:
    """Return the next frame, or None at the end."""
    header = stream.read(HEADER.size)
    if len(header) < HEADER.size:
        return None
    (size,) = HEADER.unpack(header)
    frame = stream.read(size)
    return frame if len(frame) == size else None


def main() -> None:
    """Do tasks until there are no more."""
    # What upstream prints must not get between the answers.
    answers: BinaryIO = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    frames = _Frames(sys.stdin.buffer)
    work: Callable[[bytes], Any] | None = None
    while True:
        frame = frames.next()
        if frame is None:
            return
        try:
            if work is None:
                module, setup = pickle.loads(frame)
                work, result = import_module(module).prepare(setup), None
            else:
                result = work(frame)
            answer = pickle.dumps((True, result))
        except BaseException as error:
            answer = pickle.dumps((False, f"{type(error).__name__}: {error}"))
        _write(answers, answer)


class _Frames:
    """Reads ahead in a thread, so that the end of the training ends a task under way as well."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._frames: list[bytes | None] = []
        self._there = threading.Semaphore(0)
        threading.Thread(target=self._run, daemon=True).start()

    def next(self) -> bytes | None:
        """Return the next frame, or None where the training has ended."""
        self._there.acquire()
        return self._frames.pop(0)

    def _run(self) -> None:
        while True:
            frame = _read(self._stream)
            if frame is None:
                os._exit(0)
            self._frames.append(frame)
            self._there.release()
