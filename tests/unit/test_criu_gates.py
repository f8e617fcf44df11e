"""Both gates against a CRIU that follows a script: what it was told, and that nothing of it stays, whatever happens."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from phaul.criu import gates
from phaul.criu import session as session_module
from phaul.criu.gates import CriuDump, CriuRestore
from phaul.criu.session import CriuMissingError
from phaul.errors import DefectError, DumpError, RestoreError, SwitchoverError
from phaul.rpc.criu import rpc_pb2
from tests.unit.fake_criu import FakeCriu, Step

UP_TO_DUMPED: tuple[Step, ...] = (("notify", "pre-dump"), ("notify", "network-lock"), ("notify", "post-dump", 42))
DUMP: tuple[Step, ...] = (*UP_TO_DUMPED, ("reply", True))
UP_TO_RESTORED: tuple[Step, ...] = (("notify", "pre-restore"), ("notify", "post-restore", 42))
RESTORE: tuple[Step, ...] = (*UP_TO_RESTORED, ("notify", "pre-resume"), ("notify", "post-resume"), ("reply", True))

IN_FLIGHT = (
    "Error (criu/sk-inet.c:185): inet: In-flight connection (l) for 55646\n"
    "Error (criu/cr-dump.c:1975): Dumping FAILED.\n"
)


@pytest.fixture(autouse=True)
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "EXIT_GRACE_SECONDS", 0.3)
    monkeypatch.setattr(gates, "DRAIN_SECONDS", 0.3)


@pytest.fixture
def channel() -> Iterator[socket.socket]:
    """The source's end of a TCP connection to a destination that reads nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    with ours, theirs:
        yield ours


class Freeze:
    """What is awaited before the freeze, and when."""

    def __init__(self, fake: FakeCriu, failure: BaseException | None = None) -> None:
        self._fake = fake
        self._failure = failure
        self.notes: list[list[str]] = []

    async def __call__(self, engine_pid: int) -> None:
        self.notes.append(self._fake.notes)
        if self._failure:
            raise self._failure


def dump(fake: FakeCriu, channel: socket.socket, freeze: Callable[[int], Awaitable[None]] | None = None) -> CriuDump:
    options = rpc_pb2.Options(images_dir_fd=3, ps=rpc_pb2.PageServer(fd=channel.fileno()))
    request = rpc_pb2.Request(type=rpc_pb2.DUMP, opts=options)
    logs = Path(fake.path).parent
    return CriuDump(fake.path, request, (channel.fileno(),), logs, channel.fileno(), freeze or Freeze(fake))


def restore(fake: FakeCriu) -> CriuRestore:
    request = rpc_pb2.Request(type=rpc_pb2.RESTORE, opts=rpc_pb2.Options(images_dir_fd=3))
    return CriuRestore(fake.path, request, (), Path(fake.path).parent, 41)


async def nothing() -> None:
    """What has to be done before a copy runs."""


async def wait_for_note(fake: FakeCriu, note: str) -> None:
    async with asyncio.timeout(10):
        while note not in fake.notes:
            await asyncio.sleep(0.005)


def passed(*steps: Step) -> list[str]:
    return [f"{step[1]} passed" for step in steps]


async def test_a_dump_is_held_and_passed(tmp_path: Path, channel: socket.socket) -> None:
    fake = FakeCriu(tmp_path, *DUMP)
    freeze = Freeze(fake)
    before_us = gates._now_us()
    async with dump(fake, channel, freeze) as held:
        assert freeze.notes == [["request DUMP"]], "the last moment before CRIU goes on, once"
        assert before_us < held.frozen_since_us < gates._now_us()
        await asyncio.sleep(0.1)
        assert fake.notes == ["request DUMP", *passed(*UP_TO_DUMPED[:2])], "post-dump stays unanswered"
        await held.release_killed()
    assert fake.notes == ["request DUMP", *passed(*UP_TO_DUMPED), "replied True"]
    assert not fake.running


NAP_SECONDS = 0.3


async def test_the_freeze_begins_when_the_root_task_ran_last(tmp_path: Path, channel: socket.socket) -> None:
    """Past its `pre-dump` stage CRIU looks at the host first; here it never seizes anybody."""
    fake = FakeCriu(tmp_path, DUMP[0], ("nap", NAP_SECONDS), *DUMP[1:])
    asked_us: list[int] = []

    async def freeze(_pid: int) -> None:
        asked_us.append(gates._now_us())

    async with dump(fake, channel, freeze) as held:
        assert held.frozen_since_us - asked_us[0] > NAP_SECONDS * 1e6 / 2
        await held.release_killed()


async def test_a_dump_is_held_and_refused(tmp_path: Path, channel: socket.socket) -> None:
    fake = FakeCriu(tmp_path, *DUMP)
    async with dump(fake, channel) as held:
        await held.resume()
    assert fake.notes[-2:] == ["post-dump refused", "replied False"]
    assert not fake.running


@pytest.mark.parametrize("failure", [None, SwitchoverError("no"), asyncio.CancelledError()])
async def test_a_dump_left_without_a_decision_is_given_up(
    tmp_path: Path, channel: socket.socket, failure: BaseException | None
) -> None:
    fake = FakeCriu(tmp_path, *DUMP)
    try:
        async with dump(fake, channel):
            if failure:
                raise failure
    except (SwitchoverError, asyncio.CancelledError) as error:
        assert error is failure
    assert fake.notes[-1] == "gone at post-dump"
    assert not fake.running


async def test_only_the_first_decision_counts(tmp_path: Path, channel: socket.socket) -> None:
    fake = FakeCriu(tmp_path, *DUMP)
    async with dump(fake, channel) as held:
        await held.release_killed()
        await held.resume()
    assert fake.notes[-2:] == ["post-dump passed", "replied True"]
    await held.resume()


async def test_what_fails_before_the_freeze_keeps_it_from_happening(tmp_path: Path, channel: socket.socket) -> None:
    fake = FakeCriu(tmp_path, *DUMP)
    with pytest.raises(SwitchoverError, match="no fence"):
        async with dump(fake, channel, Freeze(fake, SwitchoverError("no fence"))):
            pytest.fail("it was dumped")
    assert fake.notes == ["request DUMP", "gone at pre-dump"]
    assert not fake.running


@pytest.mark.parametrize("before", range(4))
async def test_a_dump_that_dies_is_an_error(tmp_path: Path, channel: socket.socket, before: int) -> None:
    fake = FakeCriu(tmp_path, *UP_TO_DUMPED[: max(before - 1, 0)], ("die",), reads_request=before > 0)
    with pytest.raises(DumpError, match="CRIU could not dump the workload: ") as raised:
        async with dump(fake, channel):
            pytest.fail("it was dumped")
    assert f"log: {tmp_path}/dump.log" in raised.value.detail
    assert not fake.running


@pytest.mark.parametrize("steps", [(("die",),), (("reply", False, "late"),), (("repeat_reply", 3, False),)])
async def test_how_a_dump_ends_after_its_tree_was_killed_changes_nothing(
    tmp_path: Path, channel: socket.socket, steps: tuple[Step, ...]
) -> None:
    fake = FakeCriu(tmp_path, *UP_TO_DUMPED, *steps)
    async with dump(fake, channel) as held:
        await held.release_killed()
    assert "post-dump passed" in fake.notes
    assert not fake.running


async def test_a_dump_that_died_at_its_gate_can_be_taken_leave_of(tmp_path: Path, channel: socket.socket) -> None:
    fake = FakeCriu(tmp_path, *DUMP)
    async with dump(fake, channel) as held:
        held._open._child.kill()
        await held._open._child.wait()
        await held.release_killed()
        await held.resume()
    assert not fake.running


async def test_a_dump_that_fails_says_why_in_words(tmp_path: Path, channel: socket.socket) -> None:
    (tmp_path / "dump.log").write_text(IN_FLIGHT)
    fake = FakeCriu(tmp_path, ("notify", "pre-dump"), ("notify", "network-unlock"), ("reply", False, "raw"))
    with pytest.raises(DumpError, match="wait in a listen queue") as raised:
        async with dump(fake, channel):
            pytest.fail("it was dumped")
    assert "--drop-unaccepted" in raised.value.hint
    assert raised.value.detail.splitlines() == [
        "inet: In-flight connection (l) for 55646",
        f"log: {tmp_path}/dump.log",
    ]
    assert not fake.running


@pytest.mark.parametrize(("message", "told"), [("what CRIU says", "what CRIU says"), ("", "CRIU gave no reason")])
async def test_a_dump_that_fails_without_a_log_says_what_it_can(
    tmp_path: Path, channel: socket.socket, message: str, told: str
) -> None:
    fake = FakeCriu(tmp_path, ("reply", False, message))
    with pytest.raises(DumpError, match=told):
        async with dump(fake, channel):
            pytest.fail("it was dumped")


async def test_a_cancelled_dump_ends_by_its_channel_and_in_its_own_time(tmp_path: Path, channel: socket.socket) -> None:
    fake = FakeCriu(tmp_path, ("notify", "pre-dump"), ("channel",), ("notify", "network-unlock"), ("reply", False))

    async def enter() -> None:
        async with dump(fake, channel):
            pytest.fail("it was dumped")

    entering = asyncio.create_task(enter())
    await wait_for_note(fake, "sends pages")
    entering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await entering
    assert fake.notes[-3:] == ["channel ended", "network-unlock refused", "replied False"]
    assert not fake.running


async def test_a_cancelled_dump_that_does_not_end_is_killed(tmp_path: Path, channel: socket.socket) -> None:
    fake = FakeCriu(tmp_path, ("notify", "pre-dump"), ("hang",))

    async def enter() -> None:
        async with dump(fake, channel):
            pytest.fail("it was dumped")

    entering = asyncio.create_task(enter())
    await wait_for_note(fake, "hangs")
    entering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await entering
    assert not fake.running


async def test_a_dump_that_talks_nonsense_leaves_nothing(tmp_path: Path, channel: socket.socket) -> None:
    fake = FakeCriu(tmp_path, ("notify", "pre-dump"), ("garbage",), ("garbage",), ("hang",))
    with pytest.raises(DefectError):
        async with dump(fake, channel):
            pytest.fail("it was dumped")
    assert not fake.running


async def test_a_dump_without_criu_is_refused(tmp_path: Path, channel: socket.socket) -> None:
    fake = FakeCriu(tmp_path)
    fake.program.unlink()
    with pytest.raises(CriuMissingError):
        async with dump(fake, channel):
            pytest.fail("it was dumped")


async def test_the_page_channel_is_uncorked_while_the_dump_goes_on(tmp_path: Path, channel: socket.socket) -> None:
    def delayed() -> bool:
        return not channel.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

    fake = FakeCriu(tmp_path, ("notify", "pre-dump"), ("channel",), *DUMP[1:])
    entering = asyncio.create_task(dump(fake, channel).__aenter__())
    await wait_for_note(fake, "sends pages")
    channel.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)
    async with asyncio.timeout(5):
        while delayed():
            await asyncio.sleep(0.005)
    channel.shutdown(socket.SHUT_RD)
    held = await entering
    channel.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)
    await asyncio.sleep(0.05)
    assert delayed(), "the dump is over"
    await held.__aexit__(None, None, None)


async def test_a_copy_is_held_and_run(tmp_path: Path) -> None:
    fake = FakeCriu(tmp_path, *RESTORE)
    notes: list[list[str]] = []

    async def open_network() -> None:
        notes.append(fake.notes)

    async with restore(fake) as held:
        assert held.tree.root_pid == 42, "as CRIU says at its gate"
        assert held.tree.restore_us > 0
        await asyncio.sleep(0.1)
        assert fake.notes == ["request RESTORE", "pre-restore passed"]
        await held.run(open_network)
    assert notes == [["request RESTORE", "pre-restore passed", "post-restore passed"]]
    assert fake.notes[1:] == [*passed(*RESTORE[:-1]), "replied True"]
    assert not fake.running


@pytest.mark.parametrize("at", ["setup-namespaces", "post-setup-namespaces"])
async def test_the_namespaces_are_filled_at_the_stage_that_is_meant(tmp_path: Path, at: str) -> None:
    stages: tuple[Step, ...] = (("notify", "setup-namespaces", 42), ("notify", "post-setup-namespaces", 42))
    fake = FakeCriu(tmp_path, *stages, *RESTORE)
    notes: list[list[str]] = []

    async def set_up(root_pid: int) -> None:
        assert root_pid == 42
        notes.append(fake.notes)

    request = rpc_pb2.Request(type=rpc_pb2.RESTORE, opts=rpc_pb2.Options(images_dir_fd=3))
    async with CriuRestore(fake.path, request, (), tmp_path, 41, setting_up=set_up, setting_up_at=at) as held:
        assert notes == [["request RESTORE", *passed(*stages[: stages.index(("notify", at, 42))])]]
        await held.discard()


async def test_a_copy_is_held_and_discarded(tmp_path: Path) -> None:
    fake = FakeCriu(tmp_path, *RESTORE)
    async with restore(fake) as held:
        await held.discard()
    assert fake.notes[-2:] == ["post-restore refused", "replied False"]
    assert not fake.running
    await held.discard()


@pytest.mark.parametrize("failure", [None, SwitchoverError("no"), asyncio.CancelledError()])
async def test_a_copy_left_without_a_decision_is_given_up(tmp_path: Path, failure: BaseException | None) -> None:
    fake = FakeCriu(tmp_path, *RESTORE)
    try:
        async with restore(fake):
            if failure:
                raise failure
    except (SwitchoverError, asyncio.CancelledError) as error:
        assert error is failure
    assert fake.notes[-1] == "gone at post-restore"
    assert not fake.running


@pytest.mark.parametrize("steps", [(("die",),), (("reply", False),), (("notify", "network-unlock"), ("die",))])
async def test_a_copy_that_does_not_come_to_run_is_an_error(tmp_path: Path, steps: tuple[Step, ...]) -> None:
    async def open_network() -> None:
        pytest.fail("it could still fail")

    fake = FakeCriu(tmp_path, *UP_TO_RESTORED, *steps)
    async with restore(fake) as held:
        with pytest.raises(RestoreError, match="could not let the restored workload run"):
            await held.run(open_network)
    assert not fake.running


@pytest.mark.parametrize("end", [("die",), ("reply", False)])
async def test_from_the_last_stage_on_a_copy_runs_whatever_becomes_of_criu(tmp_path: Path, end: Step) -> None:
    fake = FakeCriu(tmp_path, *UP_TO_RESTORED, ("notify", "pre-resume"), end)
    async with restore(fake) as held:
        await held.run(nothing)
    assert not fake.running


async def test_a_network_that_does_not_open_is_told_once_the_copy_runs(tmp_path: Path) -> None:
    async def open_network() -> None:
        raise SwitchoverError("nft is gone")

    fake = FakeCriu(tmp_path, *RESTORE)
    async with restore(fake) as held:
        with pytest.raises(SwitchoverError, match="nft is gone"):
            await held.run(open_network)
    assert fake.notes[-1] == "replied True"


@pytest.mark.parametrize("before", range(3))
async def test_a_restore_that_dies_is_an_error(tmp_path: Path, before: int) -> None:
    fake = FakeCriu(tmp_path, *UP_TO_RESTORED[: max(before - 1, 0)], ("die",), reads_request=before > 0)
    with pytest.raises(RestoreError, match="CRIU could not restore the workload: ") as raised:
        async with restore(fake):
            pytest.fail("it was restored")
    assert f"log: {tmp_path}/restore.log" in raised.value.detail
    assert not fake.running


async def test_a_cancelled_restore_leaves_nothing(tmp_path: Path) -> None:
    fake = FakeCriu(tmp_path, ("notify", "pre-restore"), ("hang",))

    async def enter() -> None:
        async with restore(fake):
            pytest.fail("it was restored")

    entering = asyncio.create_task(enter())
    await wait_for_note(fake, "hangs")
    entering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await entering
    assert not fake.running
