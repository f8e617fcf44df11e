"""What a migration could leave on a host. Called by `phaul.lab.demo`; changes nothing.

A lab host has no packet filter table and no address of its own but the fixed ones, so that anything found was left.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

from phaul.lab.host import Host

IMAGES = "/run/phaul/images"
PATIENCE_SECONDS = 3.0  # what is tidied up after RESUME has no deadline but this; some hundredths are usual
POLL_SECONDS = 0.05


def left_on_source(host: Host, pid: int, addresses: Sequence[str]) -> tuple[str, ...]:
    """Give what a workload that has gone left behind on this host, in words; nothing when all is well."""
    return _wait_clean(host, pid, addresses)


def left_on_destination(host: Host) -> tuple[str, ...]:
    """Give what its coming left on the host where it runs now: its images, and rules that held its packets back."""
    return _wait_clean(host, None, ())


def _wait_clean(host: Host, pid: int | None, addresses: Sequence[str]) -> tuple[str, ...]:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (found := _look(host, pid, addresses)) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    return found


def _look(host: Host, pid: int | None, addresses: Sequence[str]) -> tuple[str, ...]:
    found = []
    if pid is not None and host.stat(pid) is not None:
        found.append(f"process {pid}")
    links = json.loads(host.exec(["ip", "-json", "address"]).stdout)
    held = {address["local"] for link in links for address in link["addr_info"]}
    found += [f"address {address}" for address in addresses if address in held]
    found += host.exec(["nft", "list", "tables"]).stdout.splitlines()
    mounts = host.path("/proc/1/mounts").read_text().splitlines()
    found += [f"mount {line.split()[1]}" for line in mounts if line.split()[1].startswith(IMAGES)]
    images = host.path(IMAGES)
    if images.is_dir():
        found += [f"images {IMAGES}/{entry.name}" for entry in images.iterdir()]
    return tuple(found)
