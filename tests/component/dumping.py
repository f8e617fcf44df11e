"""Dumping and restoring through the agents of component tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from phaul.agent.client import AgentClient
from phaul.cli.dump import build_request
from phaul.lab.fake_machine import TreeState
from phaul.rpc.v1 import agent_pb2, facts_pb2
from tests.component.conftest import PID, Side


def request(directory: Path, *, leave_running: bool = False) -> facts_pb2.MigrationRequest:
    return build_request(PID, directory, leave_running=leave_running, freeze_timeout="0")


async def dump(client: AgentClient, directory: Path, *, leave_running: bool = False) -> list[agent_pb2.MigrationEvent]:
    migration_id = await client.start(request(directory, leave_running=leave_running))
    return [event async for event in client.watch(migration_id)]


async def dumped(side: Side, directory: Path, *, leave_running: bool = False) -> list[agent_pb2.MigrationEvent]:
    events = await dump(side.client, directory, leave_running=leave_running)
    assert events[-1].finished.outcome == agent_pb2.OUTCOME_COMPLETED, events[-1].finished.error
    return events


async def restore(side: Side, directory: Path, **identity: object) -> list[agent_pb2.RestoreDumpEvent]:
    asked = agent_pb2.RestoreDumpRequest(directory=str(directory), **identity)  # type: ignore[arg-type]
    return [event async for event in side.client.restore_dump(asked)]


def state(side: Side) -> TreeState:
    return side.machine.state(PID)


def nothing_left(side: Side) -> None:
    assert side.machine.fences == {}
    assert side.machine.link_fences == {}
    assert not side.rooms.exists() or list(side.rooms.iterdir()) == []


def failing(name: str, error: Callable[[str], Exception]) -> Callable[[str], None]:
    def fault(act: str) -> None:
        if act == name:
            raise error(f"{act} failed on purpose")

    return fault
