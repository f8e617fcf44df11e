"""What is in use on this host that a workload which comes may want as well: ports, names, terminals.

Called by `workloads.process` on the destination. Only reads.
"""

from __future__ import annotations

import os
from pathlib import Path

from phaul.migration.facts import Occupancy
from phaul.system import sockets
from phaul.workloads.holdings import as_connection

TERMINALS = Path("/dev/pts")


def look() -> Occupancy:
    """Look. Blocks."""
    own = os.getpid()
    return Occupancy(
        sockets=tuple(as_connection(each) for each in sockets.internet_sockets(own).values() if _serves(each)),
        unix_names=tuple(sorted({each.name for each in sockets.unix_sockets().values()} - {""})),
        terminals=tuple(sorted(int(entry.name) for entry in TERMINALS.glob("[0-9]*"))),
    )


def _serves(each: sockets.InternetSocket) -> bool:
    """Whether nobody else can bind there: of TCP what listens, of UDP what has a port."""
    return each.state == "listen" if each.protocol == "tcp" else bool(each.local_port)
