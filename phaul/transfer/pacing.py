"""How much of the link a migration takes: what was asked for, and by default what leaves it usable for others.

Used by `transfer.page_channel`. The kernel does the pacing: SO_MAX_PACING_RATE (socket(7)) holds a TCP connection to a
rate by itself since Linux 4.13, whatever its queueing discipline and congestion control. The rule is pure; the speed of
a link is read from sysfs.
"""

from __future__ import annotations

import socket
from pathlib import Path

SHARE_WHILE_RUNNING = 0.8  # of a physical link, for memory that is sent while the workload runs
PACING_RATE_OPTION = 47  # SO_MAX_PACING_RATE (asm-generic/socket.h); Python has no name for it
UNPACED = 2**64 - 1  # the kernel's own default

DEVICES = Path("/sys/class/net")
BITS_A_MEGABIT = 1_000_000


def pace_for(asked: int, link: int | None, *, frozen: bool) -> int | None:
    """Give the rate to send at, in bytes a second; None for as fast as it goes.

    Args:
        asked: the person's cap; 0 where none was asked for. It always counts.
        link: the speed of the physical link, where it is known.
        frozen: whether the workload stands still meanwhile. All wait then: only what was asked for slows it down.
    """
    if asked:
        return asked
    if frozen or link is None:
        return None
    return int(link * SHARE_WHILE_RUNNING)


def set_pace(connection: socket.socket, bytes_per_second: int | None) -> None:
    """Hold a TCP connection to a rate; None lifts it. Also counts for who else writes into the same socket."""
    rate = UNPACED if bytes_per_second is None else bytes_per_second
    connection.setsockopt(socket.SOL_SOCKET, PACING_RATE_OPTION, rate.to_bytes(8, "little"))


def link_speed(device: str, devices: Path = DEVICES) -> int | None:
    """Give the speed of the slowest physical link below a network device, in bytes a second.

    None where it is not known: a virtual device, also one that claims a speed, and a link that is down.
    """
    path = devices / device
    if (path / "device").exists():
        return _speed(path)
    below = [link_speed(entry.name.removeprefix("lower_"), devices) for entry in path.glob("lower_*")]
    return min((speed for speed in below if speed is not None), default=None)


def _speed(path: Path) -> int | None:
    try:
        megabits = int((path / "speed").read_text())
    except (OSError, ValueError):
        return None  # EINVAL while it is down
    return megabits * BITS_A_MEGABIT // 8 if megabits > 0 else None  # -1: the driver does not know
