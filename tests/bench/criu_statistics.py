"""CRIU's own statistics of a move, read with phaul's reader. Used by `by_phaul` and `by_hand`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from phaul.criu.images import read_statistics


def read_all(directories: Iterable[Path]) -> dict[str, int]:
    """Give what stands in `stats-dump` and `stats-restore` of these directories, as {"dump.frozen_time": µs, ...}."""
    found: dict[str, int] = {}
    for directory in directories:
        for kind in ("dump", "restore"):
            record = read_statistics(directory, kind)
            if record is not None and record.HasField("dump" if kind == "dump" else "restore"):
                fields = (record.dump if kind == "dump" else record.restore).ListFields()
                found |= {f"{kind}.{descriptor.name}": int(value) for descriptor, value in fields}
    return found
