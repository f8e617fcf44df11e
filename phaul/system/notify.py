"""What a service manager is told: that the agent serves, that it is alive, that it is about to stop.

Called by `agent.server`. The protocol is sd_notify(3): a datagram to the Unix socket in NOTIFY_SOCKET. Does nothing
where there is none.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog

log = structlog.get_logger(__name__)

SOCKET_VARIABLE = "NOTIFY_SOCKET"
WATCHDOG_VARIABLE = "WATCHDOG_USEC"
BEATS_A_PERIOD = 3  # one may come late, and one be lost


@asynccontextmanager
async def serving() -> AsyncIterator[None]:
    """Say so now; beat for the watchdog, if there is one, as long as the event loop turns; in the end say so too."""
    notify("READY=1")
    beating = asyncio.create_task(_beat(int(os.environ.get(WATCHDOG_VARIABLE) or 0)))
    try:
        yield
    finally:
        beating.cancel()
        notify("STOPPING=1")


def notify(state: str) -> None:
    """Send one assignment, for example ``READY=1``. Never fails: the manager draws its own conclusions from silence."""
    address = os.environ.get(SOCKET_VARIABLE, "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]  # of the abstract namespace (unix(7))
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.setblocking(False)
            manager.connect(address)
            manager.send(state.encode())
    except OSError as error:
        log.warning("manager.not_told", state=state, reason=error.strerror)


async def _beat(period_us: int) -> None:
    while period_us:
        notify("WATCHDOG=1")
        await asyncio.sleep(period_us / BEATS_A_PERIOD / 1e6)
