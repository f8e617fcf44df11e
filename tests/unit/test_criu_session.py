"""One conversation with `criu swrk`: whatever CRIU does, it is told from one another, and nothing of it stays."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

from phaul.criu import session as session_module
from phaul.criu.features import probe
from phaul.criu.session import CriuGoneError, CriuMissingError, CriuSession
from phaul.errors import DefectError
from phaul.rpc.criu import rpc_pb2
from phaul.system.children import _registry
from tests.unit.fake_criu import FakeCriu

VERSION = rpc_pb2.Request(type=rpc_pb2.VERSION)


@pytest.fixture(autouse=True)
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "EXIT_GRACE_SECONDS", 0.3)


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_a_request_gets_its_reply_and_criu_ends(tmp_path: Path) -> None:
    fake = FakeCriu(tmp_path, ("reply", True))
    before = open_descriptors()
    async with await CriuSession.start(fake.path) as session:
        assert session.pid in _registry.own
        reply = await session.request(VERSION)
        assert (reply.type, reply.success) == (rpc_pb2.VERSION, True)
    assert fake.notes == ["request VERSION", "replied True"]
    assert not fake.running
    assert session.pid not in _registry.own
    assert open_descriptors() == before


@pytest.mark.parametrize("size", [65_535, 65_536, 150_000])
async def test_a_large_reply_comes_whole(tmp_path: Path, size: int) -> None:
    fake = FakeCriu(tmp_path, ("reply", False, "x" * size))
    async with await CriuSession.start(fake.path) as session:
        reply = await session.request(VERSION)
    assert len(reply.cr_errmsg) == size


async def test_replies_do_not_run_into_each_other(tmp_path: Path) -> None:
    fake = FakeCriu(tmp_path, ("repeat_reply", 20, True))
    async with await CriuSession.start(fake.path) as session:
        await session.send(VERSION)
        assert [(await session.receive()).success for _ in range(20)] == [True] * 20
        with pytest.raises(CriuGoneError):
            await session.receive()


async def test_criu_is_missing(tmp_path: Path) -> None:
    before = open_descriptors()
    with pytest.raises(CriuMissingError, match="could not be started: No such file") as raised:
        await CriuSession.start(str(tmp_path / "criu"))
    assert "doctor" in raised.value.hint
    (tmp_path / "criu").write_text("no program")
    with pytest.raises(CriuMissingError, match="could not be started: Permission denied"):
        await CriuSession.start(str(tmp_path / "criu"))
    assert open_descriptors() == before


@pytest.mark.parametrize("reads_request", [True, False])
async def test_criu_that_dies_is_gone(tmp_path: Path, reads_request: bool) -> None:
    fake = FakeCriu(tmp_path, ("die",), reads_request=reads_request)
    async with await CriuSession.start(fake.path) as session:
        with pytest.raises(CriuGoneError, match=f"PID {session.pid}"):
            await session.request(VERSION)
        with pytest.raises(CriuGoneError):
            await session.request(VERSION)
    assert not fake.running


async def test_criu_that_dies_and_leaves_a_child_with_its_socket_is_gone(tmp_path: Path) -> None:
    """CRIU killed as it began was waited for for ever: a child of it slept on, the socket open."""
    fake = FakeCriu(tmp_path, ("fork_helper",), ("die",))
    async with await CriuSession.start(fake.path) as session:
        with pytest.raises(CriuGoneError, match=f"PID {session.pid}"):
            async with asyncio.timeout(10):
                await session.request(VERSION)
    (helper,) = (int(line.split()[1]) for line in fake.notes if line.startswith("helper "))
    assert Path(f"/proc/{helper}").exists()
    os.kill(helper, signal.SIGKILL)


async def test_what_is_no_message_is_a_defect(tmp_path: Path) -> None:
    fake = FakeCriu(tmp_path, ("garbage",))
    async with await CriuSession.start(fake.path) as session:
        with pytest.raises(DefectError):
            await session.request(VERSION)
    assert not fake.running


async def test_criu_that_hangs_is_killed(tmp_path: Path) -> None:
    fake = FakeCriu(tmp_path, ("hang",))
    session = await CriuSession.start(fake.path)
    await session.send(VERSION)
    while "hangs" not in fake.notes:
        await asyncio.sleep(0.01)
    started = time.monotonic()
    await session.close()
    assert time.monotonic() - started < 5
    assert not fake.running


async def test_waiting_can_be_cancelled(tmp_path: Path) -> None:
    fake = FakeCriu(tmp_path, ("hang",))

    async def converse() -> None:
        async with await CriuSession.start(fake.path) as session:
            await session.request(VERSION)

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await converse()
    assert not fake.running


async def test_closing_one_conversation_ends_it_while_others_go_on(tmp_path: Path) -> None:
    """A socket that a later child inherited would keep CRIU from seeing that we are gone."""
    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    first, second = (FakeCriu(tmp_path / name, ("notify", "post-dump")) for name in "12")
    async with await CriuSession.start(first.path) as one:
        await one.request(VERSION)
        async with await CriuSession.start(second.path) as two:
            await two.request(VERSION)
            await one.close()
            assert first.notes[-1] == "gone at post-dump"
            assert second.running
            await two.answer(success=True)
            with pytest.raises(CriuGoneError):
                await two.receive()
    assert second.notes[-1] == "post-dump passed"


async def test_descriptors_keep_their_numbers(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("here")
    script = tmp_path / "criu"
    script.write_text(f"#!/bin/sh\nreadlink /proc/self/fd/$FD >{tmp_path}/seen\nls /proc/$$/fd >{tmp_path}/all\n")
    script.chmod(0o755)
    descriptor = os.open(tmp_path / "file", os.O_RDONLY)
    other = os.open(tmp_path / "file", os.O_RDONLY)
    os.environ["FD"] = str(descriptor)
    try:
        async with await CriuSession.start(str(script), inherited_fds=(descriptor,)) as session:
            with pytest.raises(CriuGoneError):
                await session.receive()
    finally:
        del os.environ["FD"]
        os.close(descriptor)
        os.close(other)
    assert (tmp_path / "seen").read_text().strip() == str(tmp_path / "file")
    assert str(other) not in (tmp_path / "all").read_text().split()


@pytest.mark.parametrize("steps", [(("die",),), (("garbage",),), (("hang",),)])
async def test_a_criu_that_does_not_work_is_a_problem_and_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: tuple[tuple[str]]
) -> None:
    monkeypatch.setattr("phaul.criu.features.PROBE_SECONDS", 0.5)
    fake = FakeCriu(tmp_path, *steps)
    found = await probe(fake.path)
    assert [problem.code for problem in found.problems] == ["criu_unusable"]
    assert found.version_text == ""
    assert not fake.running
