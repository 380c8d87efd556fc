"""Images that the processes of one machine read from the same memory.

The memory has no name (Linux's memfd): it is nobody's file, /dev/shm and its limit (64 MB in Docker) have nothing to do
with it, and it is gone with the last process that has it, however that ends. Once it is filled the kernel lets nobody
write to it any more. Each process maps it copy-on-write, so that code which changes an image in place changes its own
copy of those pages, as it does with memory of its own that a fork has left it.
"""

from __future__ import annotations

import json
import mmap
import os
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

#: Each image begins at a multiple of so many bytes.
ALIGNED = 64


def why_not() -> str:
    """Return why this machine has no memory that processes can share without a name; empty where it has."""
    if not hasattr(os, "memfd_create"):
        return "this system has no memory without a name that processes could share (memfd_create)"
    if not Path("/proc/self/fd").exists():
        return "there is no /proc, through which a process is shown another's memory"
    return ""


@dataclass(frozen=True)
class Handle:
    """Where another process of this machine finds the memory, and by what it knows that it is the same.

    Attributes:
        pid: A process that has it.
        fd: Its descriptor there.
        device: Of the memory as a file.
        inode: Of the memory as a file.
        size: Bytes of the images; what lies behind them is the index.
    """

    pid: int
    fd: int
    device: int
    inode: int
    size: int

    def text(self) -> str:
        """Return it as one line."""
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, text: str) -> Handle:
        """Return what `text` has made a line of."""
        return cls(**json.loads(text))


class Filling:
    """Images on their way into shared memory; assigned and read like a list's, by any thread.

    Nothing here raises for want of memory: an image that cannot be written stays in this process's own.

    Args:
        images: How many there will be.

    Raises:
        OSError: There is no such memory.
    """

    def __init__(self, images: int) -> None:
        self._fd: int | None = os.memfd_create("yolo-patches-images", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self._lock = threading.Lock()
        self._end = 0
        self._places: list[tuple[int, tuple[int, ...], str] | None] = [None] * images
        self._own: dict[int, Any] = {}
        self.why = ""

    def __len__(self) -> int:
        return len(self._places)

    def __setitem__(self, i: int, image: Any) -> None:
        i = range(len(self))[i]
        if image is None or self._fd is None:
            self._keep(i, image, "upstream has put an image away again")
            return
        with self._lock:
            if self._places[i] is not None:  # some releases assign each image twice
                return
            begin = self._end
            self._end += -(-image.nbytes // ALIGNED) * ALIGNED
            self._places[i] = (begin, image.shape, image.dtype.str)
        try:
            _write(self._fd, np.ascontiguousarray(image).reshape(-1).view(np.uint8), begin)
        except OSError as error:
            self._keep(i, image, f"{type(error).__name__}: {error}")

    def __getitem__(self, i: int) -> Any:
        i = range(len(self))[i]
        place = self._places[i]
        if i in self._own or place is None or self._fd is None:
            return self._own.get(i)
        begin, shape, kind = place
        image: Any = np.empty(shape, kind)
        os.preadv(self._fd, [image.reshape(-1).view(np.uint8)], begin)
        return image

    def finish(self, notes: Any) -> SharedImages:
        """Close the memory to writers and return the images in it; this object holds none of them any more.

        Args:
            notes: What belongs to them; JSON.

        Raises:
            OSError: An image is missing, or could not be written.
        """
        if self._fd is None or self._own or None in self._places:
            raise OSError(self.why or "not every image has been decoded")
        import fcntl

        _write(self._fd, np.frombuffer(json.dumps([self._places, notes]).encode(), np.uint8), self._end)
        seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
        fcntl.fcntl(self._fd, fcntl.F_ADD_SEALS, seals)
        shared = SharedImages(self._fd, self._end)
        self._fd = None  # not before: where there is no room for a mapping, this object still has the images
        return shared

    def close(self) -> None:
        """Let go of the memory, unless it has become that of `SharedImages`."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    def _keep(self, i: int, image: Any, why: str) -> None:
        self._own[i] = image
        self.why = self.why or why


class SharedImages:
    """Images in shared memory, by number. Pickled, they are found again by any process of this machine.

    Args:
        fd: The memory's descriptor, which becomes this object's.
        size: Bytes of the images.

    Attributes:
        notes: What belongs to the images.
    """

    def __init__(self, fd: int, size: int) -> None:
        self._fd: int | None = fd
        self._size = size
        self._memory = mmap.mmap(fd, os.fstat(fd).st_size, access=mmap.ACCESS_COPY)
        places, self.notes = json.loads(self._memory[size:])
        self._begins = np.array([begin for begin, _, _ in places], np.int64)
        self._shapes = np.array([shape for _, shape, _ in places], np.int64)
        self._kinds = np.array([kind for _, _, kind in places])
        found = os.fstat(fd)
        self.handle = Handle(os.getpid(), fd, found.st_dev, found.st_ino, size)

    @classmethod
    def attach(cls, handle: Handle) -> SharedImages:
        """Return the images that another process of this machine has.

        Raises:
            OSError: It is not there, or it is another memory: the process is elsewhere, or has ended.
        """
        fd = os.open(f"/proc/{handle.pid}/fd/{handle.fd}", os.O_RDONLY | os.O_CLOEXEC)
        found = os.fstat(fd)
        if (found.st_dev, found.st_ino) != (handle.device, handle.inode):
            os.close(fd)
            raise FileNotFoundError("another process has that number: ranks are not in one container or on one machine")
        return cls(fd, handle.size)

    def __len__(self) -> int:
        return len(self._begins)

    def __getitem__(self, i: int) -> Any:
        shape, kind = tuple(self._shapes[i].tolist()), np.dtype(str(self._kinds[i]))
        flat: Any = np.frombuffer(self._memory, kind, int(np.prod(shape)), int(self._begins[i]))
        return flat.reshape(shape)

    def __reduce__(self) -> tuple[Any, tuple[Handle]]:
        return SharedImages.attach, (self.handle,)

    @property
    def bytes(self) -> int:
        """Bytes of all images."""
        return self._size

    def has(self, image: Any) -> bool:
        """Return whether an image lies in this memory."""
        return bool(np.shares_memory(np.frombuffer(self._memory, np.uint8, self._size), image))

    def close(self) -> None:
        """Let no further process find the memory; this one keeps it for as long as it reads images."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)


def _write(fd: int, data: Any, begin: int) -> None:
    """Write bytes to where they belong, however many the system takes at once."""
    rest = memoryview(data)
    while rest:
        done = os.pwrite(fd, rest, begin)
        rest, begin = rest[done:], begin + done
