"""A workload that writes so many MiB a second, page after page, over and over a buffer of so many MiB."""

from __future__ import annotations

import argparse
import mmap
import os
import time

PAGE = mmap.PAGESIZE
MIB = 1024 * 1024


def main() -> None:
    """Write until killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("mib", type=int)
    parser.add_argument("mib_a_second", type=float)
    parser.add_argument("--shared", action="store_true", help="in memory shared between processes")
    parser.add_argument("--file", default="", help="in a file")
    parser.add_argument("--child", action="store_true", help="and the same in a child")
    parser.add_argument("--grow", type=float, default=0.0, help="MiB a second of new memory")
    options = parser.parse_args()
    if options.file:
        with open(options.file, "wb+") as file:  # noqa: PTH123 -- runs with nothing but the standard library
            file.truncate(options.mib * MIB)
            memory = mmap.mmap(file.fileno(), options.mib * MIB)
    elif options.shared:
        memory = mmap.mmap(-1, options.mib * MIB)
    else:
        memory = mmap.mmap(-1, options.mib * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    pages = options.mib * MIB // PAGE
    for page in range(pages):
        memory[page * PAGE] = 1
    if options.child and os.fork() == 0:
        write(memory, pages, options.mib_a_second, 0.0)
    print("ready", flush=True)
    write(memory, pages, options.mib_a_second, options.grow)


def write(memory: mmap.mmap, pages: int, mib_a_second: float, grow: float) -> None:
    """Keep the pace against the clock."""
    began, written = time.monotonic(), 0
    kept: list[bytes] = []
    while True:
        elapsed = time.monotonic() - began
        while written < elapsed * mib_a_second * MIB / PAGE:
            place = written % pages * PAGE
            memory[place] = (memory[place] + 1) % 256
            written += 1
        while len(kept) < elapsed * grow:
            kept.append(os.urandom(MIB))
        time.sleep(0.002)


if __name__ == "__main__":
    main()
