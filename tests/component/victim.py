"""An agent in a process of its own, for tests that do it harm; used by `test_hostile_peers`."""

from __future__ import annotations

import asyncio
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from phaul.agent.client import AgentClient
from phaul.trust.connections import dial
from phaul.trust.store import TrustStore
from tests.component.trusting import LOOPBACK


@dataclass
class Victim:
    """An agent in a process of its own, and what its kernel says that it uses."""

    process: subprocess.Popen[str]
    store: TrustStore  # of the peer that is trusted
    socket: Path
    port: int
    page_port: int

    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def memory_bytes(self) -> int:
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")

    async def serves(self) -> None:
        """People on its host and other hosts."""
        assert self.process.poll() is None
        async with asyncio.timeout(30):
            async with AgentClient(self.socket) as client:
                await client.describe_host()
            connection = await dial(self.store, LOOPBACK, self.port)
            await connection.stream.close()
