"""Tell clients that a connection of theirs is over, where no kernel that they can reach knows of it.

Called by `network.identity` once a copy runs. What waits in a listen queue is in no image, and the reset that the
source's kernel sends as the queue goes is held back by the fence: it also comes from a host that may not speak for the
address any more. A client that sends would be answered with a reset; one that only waits would wait for ever.

So each is sent a bare acknowledgement that fits nothing. A client that is connected says what it expects instead (RFC
9293, section 3.10.7.4: "an unacceptable segment ... must elicit only an empty acknowledgment"), which this kernel, that
has no such connection, answers with a reset of the very number; no number has to be known for that. Where there is such
a connection after all it sees one acknowledgement twice.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Sequence

import structlog

from phaul.migration.facts import ConnectionFacts
from phaul.network.neighbours import internet_checksum
from phaul.system.namespaces import inside, network_of

log = structlog.get_logger(__name__)

ACKNOWLEDGEMENT = 0x10  # of the flags of a TCP header
HEADER_WORDS = 5


def acknowledgement(connection: ConnectionFacts) -> bytes:
    """Build the TCP segment, 20 bytes, from the local to the remote end; its numbers are zeros."""
    family = socket.AF_INET6 if ":" in connection.local_address else socket.AF_INET
    ends = [socket.inet_pton(family, each) for each in (connection.local_address, connection.remote_address)]

    def segment(checksum: int) -> bytes:
        ports = connection.local_port, connection.remote_port
        return struct.pack("!HHIIBBHHH", *ports, 0, 0, HEADER_WORDS << 4, ACKNOWLEDGEMENT, 0, checksum, 0)

    unsummed = segment(0)
    if family == socket.AF_INET6:
        pseudo_header = b"".join(ends) + struct.pack("!II", len(unsummed), socket.IPPROTO_TCP)
    else:
        pseudo_header = b"".join(ends) + struct.pack("!HH", socket.IPPROTO_TCP, len(unsummed))
    return segment(internet_checksum(pseudo_header + unsummed))


async def dismiss(root_pid: int, connections: Sequence[ConnectionFacts]) -> None:
    """Send one for each connection, from inside the network namespace of a process. Never raises."""
    try:
        failures = await asyncio.to_thread(inside, network_of(root_pid), lambda: _send(connections))
    except OSError as error:
        failures = [f"the workload's network namespace could not be entered: {error.strerror or error}"]
    for failure in failures:
        log.warning("dismiss.failed", reason=failure)


def _send(connections: Sequence[ConnectionFacts]) -> list[str]:
    failures: list[str] = []
    for connection in connections:
        family = socket.AF_INET6 if ":" in connection.local_address else socket.AF_INET
        try:
            with socket.socket(family, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.IPPROTO_TCP) as raw:
                raw.bind((connection.local_address, 0))
                raw.sendto(acknowledgement(connection), (connection.remote_address, 0))
        except OSError as error:
            failures.append(f"{connection.remote_address} port {connection.remote_port}: {error.strerror or error}")
    return failures
