"""`phaul dump` and `phaul restore` through real agents: what is left, and what runs, whatever fails."""

from __future__ import annotations

import asyncio
import io
import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from rich.console import Console

from phaul.cli.console import glyphs_for
from phaul.cli.status import one_migration
from phaul.errors import (
    DumpError,
    NotRestoredError,
    RestoreError,
    TransferError,
    UsageError,
)
from phaul.lab.fake_machine import TreeState
from phaul.migration.engine_requests import DumpRequest, RestoreRequest
from phaul.migration.facts import ConnectionFacts, HookFacts, LinkFacts, NetworkFacts
from phaul.migration.hooks import HookEnd, Stage
from phaul.migration.interfaces import HeldDump, HeldRestore
from phaul.rpc.v1 import agent_pb2, facts_pb2
from phaul.store import directory as store
from tests.component.conftest import PID, Pair
from tests.component.dumping import dump, dumped, failing, nothing_left, request, restore, state
from tests.component.in_doubt import SOON_SECONDS

OLD_MAC, NEW_MAC = "02:00:00:00:00:50", "02:00:00:00:00:51"
MACVLAN = LinkFacts("eth0", "macvlan", OLD_MAC, "eth0", addresses=("10.9.9.50/24",), outer_index=2, index=3)
TALKS = ConnectionFacts("tcp", "established", "10.9.9.9", 80, "10.9.9.1", 40000)
LISTENS = ConnectionFacts("tcp", "listen", "0.0.0.0", 80, "0.0.0.0", 0, unaccepted=2)


async def test_a_workload_ends_and_runs_again_elsewhere(pair: Pair, tmp_path: Path) -> None:
    workload, path = pair.source.machine.trees[PID], tmp_path / "dump"
    workload.connections = (TALKS, LISTENS)
    events = await dumped(pair.source, path)
    assert state(pair.source) is TreeState.DEAD
    assert "tree.silence" not in pair.source.machine.acts  # clients are to hear of the end
    assert "network.fence" not in pair.source.machine.acts
    assert [each.warning.message for each in events if each.HasField("warning")] == [
        "1 TCP connection will end with the workload, as no dump has any: tcp 10.9.9.9:80 to 10.9.9.1:40000."
    ]
    assert path.stat().st_mode & 0o777 == 0o700
    assert store.MANIFEST in {each.name for each in path.iterdir()}
    nothing_left(pair.source)
    told = await restore(pair.destination, path)
    assert told[-1].restored.pid == PID
    assert told[0].begun.host_name == "a"
    copy = pair.destination.machine.trees[PID]
    assert (copy.state, copy.memory) == (TreeState.RUNNING, workload.memory)
    await asyncio.sleep(0.1)
    nothing_left(pair.destination)
    assert path.exists()


async def test_a_workload_that_is_left_running_is_cloned(pair: Pair, tmp_path: Path) -> None:
    workload, path = pair.source.machine.trees[PID], tmp_path / "dump"
    workload.network, workload.host_name, workload.macs = NetworkFacts((MACVLAN,)), "web", {"eth0": OLD_MAC}
    before = workload.memory
    await dumped(pair.source, path, leave_running=True)
    assert workload.state is TreeState.RUNNING
    assert "own_networks.fence" not in pair.source.machine.acts
    nothing_left(pair.source)
    workload.memory = b""  # it goes on
    with pytest.raises(NotRestoredError, match="in use"):
        await restore(pair.source, path)
    new = facts_pb2.NewMac(mac=NEW_MAC)
    await restore(pair.destination, path, new_macs=[new], host_name="web2")
    copy = pair.destination.machine.trees[PID]
    assert (copy.state, copy.memory, copy.host_name, copy.macs) == (
        TreeState.RUNNING,
        before,
        "web2",
        {"eth0": NEW_MAC},
    )
    assert (workload.host_name, workload.macs) == ("web", {"eth0": OLD_MAC})
    copy.state = TreeState.DEAD
    await restore(pair.destination, path)  # the directory is as it was
    assert pair.destination.machine.trees[PID].host_name == "web"


async def test_it_runs_again_before_the_dump_is_made_durable(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states: list[TreeState] = []
    seal = store.seal

    def sealing(directory: Path, facts: Mapping[str, object]) -> store.Manifest:
        states.append(state(pair.source))
        return seal(directory, facts)

    monkeypatch.setattr(store, "seal", sealing)
    await dumped(pair.source, tmp_path / "left", leave_running=True)
    await dumped(pair.source, tmp_path / "ended")
    assert states == [TreeState.RUNNING, TreeState.FROZEN]


@pytest.mark.parametrize("leave_running", [False, True])
@pytest.mark.parametrize("there", [False, True], ids=["made", "empty before"])
@pytest.mark.parametrize("act", ["engine.dump", "workload.differing", "workload.hold", "seal"])
async def test_whatever_fails_leaves_the_workload_and_no_dump(
    pair: Pair, tmp_path: Path, act: str, there: bool, leave_running: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "dump"
    if there:
        path.mkdir()
    if act == "seal":

        def no_room(*_: object) -> None:
            raise TransferError("the dump could not be made durable")

        monkeypatch.setattr(store, "seal", no_room)
    pair.source.machine.fault = failing(act, DumpError)
    finished = (await dump(pair.source.client, path, leave_running=leave_running))[-1].finished
    assert finished.outcome == agent_pb2.OUTCOME_ROLLED_BACK, finished
    assert state(pair.source) is TreeState.RUNNING
    assert path.exists() is there
    assert not there or list(path.iterdir()) == []
    nothing_left(pair.source)


async def test_hooks_of_a_dump_and_of_a_restore(pair: Pair, tmp_path: Path) -> None:
    seen: list[tuple[str, str]] = []

    def note(told: Mapping[str, str]) -> HookEnd:
        seen.append((told["PHAUL_ROLE"], told["PHAUL_STAGE"]))
        return HookEnd(0, 1000)

    for side in (pair.source, pair.destination):
        side.machine.hooks += [HookFacts(stage, f"/hooks/{stage}/1", "", 5.0) for stage in Stage]
        side.machine.hook_end = note
    await dumped(pair.source, tmp_path / "dump", leave_running=True)
    assert seen == [("source", stage) for stage in (Stage.PREFLIGHT, Stage.PRE_DUMP, Stage.POST_DUMP)]
    seen.clear()
    await restore(pair.destination, tmp_path / "dump")
    async with asyncio.timeout(SOON_SECONDS):
        while ("destination", Stage.POST_RESUME) not in seen:
            await asyncio.sleep(0.01)
    assert seen == [("destination", Stage.SETUP_NAMESPACES), ("destination", Stage.POST_RESUME)]
    seen.clear()
    pair.source.machine.fault = failing("engine.dump", DumpError)
    await dump(pair.source.client, tmp_path / "other")
    assert seen[-1] == ("source", Stage.ROLLBACK)


async def test_status_shows_both_and_a_dump_is_not_said_to_run(pair: Pair, tmp_path: Path) -> None:
    await dumped(pair.source, tmp_path / "dump")
    await restore(pair.destination, tmp_path / "dump")
    (gone,) = await pair.source.client.list_migrations()
    (here,) = await pair.destination.client.list_migrations()
    assert (gone.outcome, gone.peer) == (agent_pb2.OUTCOME_COMPLETED, f"directory:{tmp_path}/dump")
    assert (here.outcome, here.role) == (agent_pb2.OUTCOME_COMPLETED, agent_pb2.ROLE_DESTINATION)
    console = Console(width=200, file=io.StringIO())
    console.print(one_migration(gone, glyphs_for(console)))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert f"was dumped into {tmp_path}/dump" in shown
    assert "runs on" not in shown


async def test_a_cancelled_dump_is_removed(pair: Pair, tmp_path: Path) -> None:
    path = tmp_path / "dump"
    reached = asyncio.Event()
    real = pair.source.engine.dump

    @asynccontextmanager
    async def slow(asked: DumpRequest, freezing: object) -> AsyncIterator[HeldDump]:
        async with real(asked, freezing) as held:  # type: ignore[arg-type]
            reached.set()
            await asyncio.sleep(30)
            yield held

    pair.source.engine.dump = slow  # type: ignore[method-assign, assignment]
    migration_id = await pair.source.client.start(request(path))
    await reached.wait()
    assert (await pair.source.client.cancel(migration_id)).accepted
    events = [event async for event in pair.source.client.watch(migration_id)]
    assert events[-1].finished.error.code == "CancelledByUserError"
    assert state(pair.source) is TreeState.RUNNING
    assert not path.exists()


@pytest.mark.parametrize("content", ["file", "other dump"])
async def test_a_directory_in_use_is_refused(pair: Pair, tmp_path: Path, content: str) -> None:
    path = tmp_path / "dump"
    if content == "file":
        path.mkdir()
        (path / "mine").touch()
    else:
        await dumped(pair.source, path, leave_running=True)
    before = {each.name for each in path.iterdir()}
    finished = (await dump(pair.source.client, path))[-1].finished
    assert finished.outcome == agent_pb2.OUTCOME_REFUSED
    assert "is not empty" in finished.error.message
    assert {each.name for each in path.iterdir()} == before
    assert "engine.dump" not in pair.source.machine.acts[pair.source.machine.acts.index("workload.inspect") + 1 :] or (
        content == "other dump"
    )


async def test_no_room_is_refused(pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1 << 20))
    finished = (await dump(pair.source.client, tmp_path / "dump"))[-1].finished
    assert finished.outcome == agent_pb2.OUTCOME_REFUSED
    assert "not enough room" in finished.error.message
    assert not (tmp_path / "dump").exists()


async def test_a_dump_gives_no_other_identity(pair: Pair, tmp_path: Path) -> None:
    asked = request(tmp_path / "dump")
    asked.host_name = "web2"
    with pytest.raises(UsageError, match="phaul restore"):
        await pair.source.client.start(asked)
    asked = request(tmp_path / "dump")
    asked.destination = "directory:/somewhere/../else"
    with pytest.raises(UsageError, match="absolute"):
        await pair.source.client.start(asked)


@pytest.mark.parametrize("act", ["engine.restore", "copy.run", "rooms.make"])
async def test_a_restore_that_fails_leaves_nothing(pair: Pair, tmp_path: Path, act: str) -> None:
    path = tmp_path / "dump"
    await dumped(pair.source, path)
    pair.destination.machine.fault = failing(act, RestoreError)
    with pytest.raises(NotRestoredError, match="on purpose"):
        await restore(pair.destination, path)
    assert state(pair.destination) is TreeState.DEAD
    nothing_left(pair.destination)
    pair.destination.machine.fault = lambda _: None
    await restore(pair.destination, path)
    assert state(pair.destination) is TreeState.RUNNING


async def test_a_flipped_bit_is_named(pair: Pair, tmp_path: Path) -> None:
    path = tmp_path / "dump"
    await dumped(pair.source, path)
    image = path / "pages-1.img"
    content = bytearray(image.read_bytes())
    content[5000] ^= 1
    image.write_bytes(content)
    with pytest.raises(NotRestoredError, match=r"pages-1\.img is damaged"):
        await restore(pair.destination, path)
    assert "engine.restore" not in pair.destination.machine.acts
    nothing_left(pair.destination)


async def test_a_restore_that_nobody_waits_for_is_undone(pair: Pair, tmp_path: Path) -> None:
    path = tmp_path / "dump"
    await dumped(pair.source, path)
    reached, left = asyncio.Event(), asyncio.Event()

    @asynccontextmanager
    async def slow(_: RestoreRequest) -> AsyncIterator[HeldRestore]:
        reached.set()
        try:
            await asyncio.sleep(30)
        finally:
            left.set()
        raise AssertionError
        yield

    pair.destination.engine.restore = slow  # type: ignore[method-assign, assignment]
    restoring = asyncio.create_task(restore(pair.destination, path))
    await reached.wait()
    restoring.cancel()
    async with asyncio.timeout(SOON_SECONDS):
        await left.wait()
        while list(pair.destination.rooms.iterdir()):
            await asyncio.sleep(0.01)
    assert state(pair.destination) is TreeState.DEAD
    assert path.exists()
