"""Errors that say that there is no memory, and what can be done at once."""

from __future__ import annotations

import gc
import re
import traceback

import torch

#: In the words of CUDA, MPS and the host's allocator; then of libraries that fail to allocate what they work in.
_WORDS = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR",
    "unable to find an engine",
)
#: What the allocators say they were asked for: "Tried to allocate 20.00 MiB", "you tried to allocate 640 bytes".
_ASKED = re.compile(r"[Tt]ried to allocate ([\d.]+ ?[KMGT]?i?(?:B|bytes))")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that a device, or torch on the host, had no memory left."""
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)


def lacked_memory(error: BaseException) -> bool:
    """Return whether an error says so, or was raised while one was dealt with that does, or is the host's.

    A checkpoint that cannot be written to its end is closed, and closing it fails with words of its own.
    """
    cause: BaseException | None = error
    while cause is not None:
        if is_out_of_memory(cause) or isinstance(cause, MemoryError):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def asked(error: BaseException) -> str:
    """Return how much memory was asked for, as text; "memory" where the error does not say."""
    found = _ASKED.search(str(error))
    return found.group(1) if found else "memory"


def release(error: BaseException) -> None:
    """Let go of what a failed attempt still holds, and of the allocators' caches.

    The frames that the error has come through hold the activations that there was no more room for.
    """
    traceback.clear_frames(error.__traceback__)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif hasattr(torch, "mps") and torch.backends.mps.is_available():
        torch.mps.empty_cache()
