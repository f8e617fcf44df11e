"""How much memory this host can give, and how big its pages are. Called by `agent` for the host facts; only reads."""

from __future__ import annotations

import resource
from pathlib import Path

from phaul.system.procfs import parse_keys

_KIB = 1024


def page_size_bytes() -> int:
    """Ask the kernel for its page size: 4096 on x86-64, up to 65536 on arm64."""
    return resource.getpagesize()


def parse_available_bytes(meminfo: str) -> int:
    """Read MemAvailable of ``/proc/meminfo``: what can be had without swapping, page cache that can go included."""
    return int(parse_keys(meminfo)["MemAvailable"].removesuffix("kB")) * _KIB


def available_bytes() -> int:
    """Say how much memory can be had on this host without swapping."""
    return parse_available_bytes(Path("/proc/meminfo").read_text())
