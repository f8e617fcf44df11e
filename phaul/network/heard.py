"""Which MACs this host has heard others with: what its bridges and its neighbour tables have learned.

Called by `network.identity` in PREFLIGHT, where a workload shall get another MAC. Sends nothing: a MAC that was silent
for longer than the kernel remembers (300 s on a bridge) is not found.
"""

from __future__ import annotations

from collections.abc import Sequence

import structlog
from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

log = structlog.get_logger(__name__)


async def heard(macs: Sequence[str]) -> tuple[str, ...]:
    """Give those of `macs` that stand in a table. Never raises: a table that cannot be read is logged, and empty."""
    known: set[str] = set()
    try:
        async with AsyncIPRoute() as kernel:
            for table in (await kernel.neigh("dump"), await kernel.fdb("dump")):
                known |= {entry.get_attr("NDA_LLADDR") async for entry in table}
    except (NetlinkError, OSError) as error:
        log.warning("heard.not_looked_at", reason=str(error))
    return tuple(mac for mac in macs if mac in known)
