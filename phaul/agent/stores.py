"""Directories in the place of other hosts: the destinations of dumps, and the sources of restores.

Made by `agent.server`; stands before the function that reaches other agents, as whoever settles what an agent before
this one has left, or watches a lease, asks by what the journal has for the other side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from phaul.agent.peer_client import GrpcPeer
from phaul.agent.store_peer import StorePeer
from phaul.migration.at_rest import directory_of
from phaul.migration.facts import HookFacts
from phaul.migration.hooks import HookEnd, Hooks, Stage
from phaul.migration.host import Host

Connect = Callable[[str], GrpcPeer | StorePeer]


def or_directory(connect: Callable[[str], GrpcPeer], host: Host, is_restoring: Callable[[str], bool]) -> Connect:
    """Give the function that reaches both."""

    def reach(destination: str) -> GrpcPeer | StorePeer:
        path = directory_of(destination)
        return connect(destination) if path is None else StorePeer(Path(path), host, is_restoring)

    return reach


class HooksOfDump:
    """`Hooks` of the stages that a dump has: nothing is restored or switched over in one."""

    STAGES = (Stage.PREFLIGHT, Stage.PRE_DUMP, Stage.POST_DUMP, Stage.ROLLBACK)

    def __init__(self, hooks: Hooks) -> None:
        self._hooks = hooks

    def find(self, files: Sequence[str]) -> tuple[HookFacts, ...]:
        """Those of these stages."""
        return tuple(hook for hook in self._hooks.find(()) if hook.stage in self.STAGES)

    async def run(self, hook: HookFacts, environment: Mapping[str, str]) -> HookEnd:
        """Run one."""
        return await self._hooks.run(hook, environment)
