"""A program: an agent of its own process around a fake machine, with the deadlines of the tests. Prints its ports.

`python -m tests.component.hostile_agent DIRECTORY`; the directory has the files of trust. It runs until its standard
input ends.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from phaul.agent import page_listener
from phaul.agent.server import AgentServer
from phaul.config import AgentConfig
from phaul.lab.fake_machine import FakeMachine
from phaul.lab.fakes import fake_host
from phaul.system.memory import limit_arenas
from phaul.trust import connections

SOON_SECONDS = 2.0


async def main(base: Path) -> None:
    """Serve."""
    page_listener.TOKEN_TIMEOUT_SECONDS = SOON_SECONDS
    connections.HELLO_SECONDS = SOON_SECONDS
    limit_arenas(2)
    config = AgentConfig(
        socket=base / "agent.sock", listen="127.0.0.1:0", page_port=0, runtime_dir=base, state_dir=base / "state"
    )
    async with AgentServer(config, fake_host(FakeMachine("b"), base / "rooms")) as server:
        print(json.dumps([server.peer_port, server._listener.port]), flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
