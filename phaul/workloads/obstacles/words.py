"""How obstacles name what they found. Used by the other modules of this package."""

from __future__ import annotations

from phaul.system import procfs

CAPTION_LIMIT = 3  # how many of a kind a message names before "and N more"


def listed(items: list[str]) -> str:
    """Join the first few and say how many more there are."""
    rest = len(items) - CAPTION_LIMIT
    return ", ".join(items[:CAPTION_LIMIT]) + (f" and {rest} more" if rest > 0 else "")


def using(users: list[str]) -> str:
    """Say who uses something."""
    return f"{listed(users)} {'uses' if len(users) == 1 else 'use'}"


def named(pids: list[int]) -> str:
    """Name processes outside the tree."""
    if not pids:
        return "nobody we can see"
    names: list[str] = []
    for pid in pids:
        try:
            names.append(f"process {pid} ({procfs.read_stat(pid).command})")
        except OSError:  # ended meanwhile
            names.append(f"process {pid}")
    return listed(names)
