"""Close a socket without waiting for it.

The kernel lets the close of an nftables or packet socket wait for one or two RCU grace periods, 5 to 20 ms (seen on
6.18; nf_tables flushes its destroy work when a socket goes, packet_release synchronises the network). That is longer
than all that the socket was opened for, and RESUME would wait for it. Called by `network.fence` and
`network.neighbours`.
"""

from __future__ import annotations

import asyncio
import socket


def close_later(channel: socket.socket) -> None:
    """Have a thread of the running loop's executor close the socket; it may not be used any more."""
    asyncio.get_running_loop().run_in_executor(None, channel.close)
