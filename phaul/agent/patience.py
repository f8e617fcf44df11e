"""The destination as the coordinator asks it past COMMIT: silence is noted, and a person may end the waiting.

Made by `agent.outgoing` around the peer of every migration that leaves this host. The coordinator asks RESUME for ever
and must not be cancelled then; what it may hear at any time is that the copy was given up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from phaul.errors import LostError, UnreachableError
from phaul.migration.peer import PeerAgent, Resumed

SILENCE_SECONDS = 5.0  # an answer takes milliseconds, or as long as restoring again; who looks must not wait for more


class PatientPeer:
    """A `PeerAgent` that hands every call on, and listens in on `resume`. Use it as `as_peer`."""

    def __init__(self, peer: PeerAgent, silent: Callable[[], None]) -> None:
        self._peer = peer
        self._silent = silent
        self._given_up = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        """Every other call, whatever the protocol has."""
        return getattr(self._peer, name)

    @property
    def as_peer(self) -> PeerAgent:
        """The same, as what it stands in for: mypy does not look behind `__getattr__`."""
        return cast("PeerAgent", self)

    def give_up(self) -> None:
        """A person has decided not to wait for the destination any longer: `resume` fails from now on."""
        self._given_up.set()

    async def resume(self, migration_id: str) -> Resumed:
        """Have the copy run. Raises `LostError` once it was given up and the destination is silent."""
        asking = asyncio.ensure_future(self._peer.resume(migration_id))
        waiting = asyncio.ensure_future(self._given_up.wait())
        both = {asking, waiting}
        try:
            done, _ = await asyncio.wait(both, timeout=SILENCE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                self._silent()
                await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if asking.done():
                return asking.result()
        except UnreachableError:
            if not waiting.done():
                self._silent()
                raise
        finally:
            for task in (asking, waiting):
                task.cancel()
            await asyncio.gather(asking, waiting, return_exceptions=True)
        raise LostError(
            "it was given up here: the workload's processes on this host are dead, and the destination, which may "
            "have a copy, did not answer",
            hint=f"If {self._peer.name} comes back with the copy, it runs there.",
        )
