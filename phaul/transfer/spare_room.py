"""Memory for the pages of a workload, got from the kernel before they come.

Made by `agent.page_listener` in PREPARE, used by `transfer.page_store`. Most of what receiving costs is the kernel's
finding and clearing of pages for the file, and while a tree is frozen its users wait for that. So a file of the
expected size is filled ahead, while the workload still runs, and mapped: what comes is received straight into it. The
first image that turns out to be large becomes that file. Never more than a convenience: without it, or where it is not
ready, the store writes to files as it would have anyway.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
from pathlib import Path

from phaul.units import MIB

SMALLEST_BYTES = 16 * MIB  # below, there is nothing to gain
STEP_BYTES = 8 * MIB
HUGE_PAGE_BYTES = 2 * MIB
MADV_POPULATE_WRITE = 23  # linux/mman.h, since 5.14; fills a range without a fault for each page of it
NAME = "spare"

_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class SpareRoom:
    """A file in `directory`, being filled with pages by a thread. Owns both until `close`.

    `fd` and `size_bytes` are the file's; whoever gives it another name (`take`) owns the descriptor from then on.
    """

    def __init__(self, directory: Path, expected_bytes: int) -> None:
        self.size_bytes = -(-expected_bytes // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES
        self._path = directory / NAME
        self._fd = -1
        self._filled_bytes = 0
        self._over = False
        self._mapping: mmap.mmap | None = None
        self._view = memoryview(b"")
        self._thread: threading.Thread | None = None
        if expected_bytes < SMALLEST_BYTES:
            return
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
            self._fd = os.open(self._path, flags, 0o600)
            os.ftruncate(self._fd, self.size_bytes)
            self._mapping = mmap.mmap(self._fd, self.size_bytes)
        except (OSError, ValueError):
            self.close()
            return
        self._view = memoryview(self._mapping)
        self._thread = threading.Thread(target=self._fill, name="spare room", daemon=True)
        self._thread.start()

    @property
    def ready(self) -> bool:
        """Whether it can be had, and is of any use."""
        return self._fd >= 0 and self._filled_bytes > 0

    def take(self, path: Path) -> int:
        """Give the file a name in place of the file that has it; gives the descriptor. `window` goes on to be right."""
        self._path.replace(path)
        fd, self._fd = self._fd, -1
        return fd

    def window(self, offset: int, count: int) -> memoryview | None:
        """The memory of a part of the file, where that is filled: writing there cannot fail. None elsewhere."""
        if offset + count > self._filled_bytes:
            return None
        return self._view[offset : offset + count]

    def close(self) -> None:
        """Leave off filling, and remove the file if nobody took it. Idempotent; after it there is no window."""
        self._over = True
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._filled_bytes = 0
        self._view = memoryview(b"")
        self._mapping = None  # unmapped with the last window
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self._path.unlink(missing_ok=True)

    def _fill(self) -> None:
        assert self._mapping is not None
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._view))
        for offset in range(0, self.size_bytes, STEP_BYTES):
            count = min(STEP_BYTES, self.size_bytes - offset)
            if self._over or _libc.madvise(start + offset, count, MADV_POPULATE_WRITE) != 0:
                return  # an older kernel, or no room: what is filled so far can be used
            self._filled_bytes = offset + count
