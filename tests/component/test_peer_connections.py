"""A connection to another agent ends with its migration, also where calls have failed and their errors are kept."""

from __future__ import annotations

import asyncio
import gc
from functools import partial
from pathlib import Path

import pytest

from phaul.agent.destination import parse_destination
from phaul.agent.peer_client import GrpcPeer
from phaul.errors import PhaulError
from phaul.migration.recovery import Word
from tests.component.conftest import Pair

ESTABLISHED = "01"
WAIT_SECONDS = 5.0


def connections_to(port: int) -> int:
    """Count this process's connections to a port."""
    own = {str(entry.readlink()) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()}
    found = 0
    lines = [line for table in ("tcp", "tcp6") for line in Path("/proc/self/net", table).read_text().splitlines()[1:]]
    for fields in map(str.split, lines):
        remote_port = int(fields[2].partition(":")[2], 16)
        found += remote_port == port and fields[3] == ESTABLISHED and f"socket:[{fields[9]}]" in own
    return found


async def test_kept_errors_keep_no_connection(pair: Pair) -> None:
    port = pair.destination.server.peer_port
    kept = []
    gc.disable()  # what only the collector gives back is given back some time
    try:
        peer = GrpcPeer(parse_destination(pair.destination.target))
        for call in (peer.resume, peer.restore, partial(peer.hashed_pages, pending=())):
            with pytest.raises(PhaulError) as caught:
                await call("0dd0dd00")
            kept.append(caught.value)
        assert await peer.word("0dd0dd00") is Word.UNKNOWN
        assert connections_to(port) == 1
        await peer.close()
        async with asyncio.timeout(WAIT_SECONDS):
            while connections_to(port):
                await asyncio.sleep(0.01)
    finally:
        gc.enable()
    assert all(error.__traceback__ is not None for error in kept)
