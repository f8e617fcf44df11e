"""Attendants: one that stands ready is given, a dead one is not, and none is left behind."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from phaul.criu import loader
from phaul.criu.lazy_pages import PageLoader, look
from phaul.migration.lazy import LoadingState
from phaul.system import keeper
from phaul.system.attendants import Attendant, Attendants
from phaul.system.process import CommandError

MODULES = (keeper.__name__, loader.__name__)


def lives(pid: int) -> bool:
    """Whether there is such a process, be it a zombie."""
    return Path("/proc", str(pid)).exists()


async def heard(attendant: Attendant) -> bytes:
    """The first word of an attendant."""
    async with asyncio.timeout(10):
        return await asyncio.get_running_loop().sock_recv(attendant.socket, keeper.LONGEST_WORD)


async def test_one_stands_ready_and_the_next_is_a_new_one() -> None:
    attendants = Attendants()
    await attendants.fill(MODULES)
    await attendants.fill(MODULES)  # there are some already
    children = {attendant.child.pid for attendant in attendants._ready.values()}
    first, second = await attendants.take(keeper.__name__), await attendants.take(keeper.__name__)
    try:
        assert len(children) == len(MODULES)
        assert first.child.pid in children
        assert second.child.pid not in children
        assert [await heard(each) for each in (first, second)] == [keeper.READY, keeper.READY]
    finally:
        for each in (first, second, attendants):
            await each.close()
    assert not any(map(lives, {*children, first.child.pid, second.child.pid}))


async def test_one_that_was_killed_as_it_stood_ready_is_replaced() -> None:
    attendants = Attendants()
    await attendants.fill(MODULES)
    for module in MODULES:
        child = attendants._ready[module].child
        os.kill(child.pid, signal.SIGKILL)
        await child.wait()
    await attendants.fill([loader.__name__])
    for module in MODULES:
        taken = await attendants.take(module)
        assert taken.child.returncode is None
        await taken.close()
    await attendants.close()


async def test_one_that_cannot_be_started_is_an_error_when_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    attendants = Attendants()
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    await attendants.fill(MODULES)
    with pytest.raises(CommandError, match="/nowhere/python"):
        await attendants.take(keeper.__name__)


async def test_a_loader_that_stood_ready_waits_for_criu_where_it_is_told_to(tmp_path: Path) -> None:
    """Its paths come with its first word: until then it is nobody's."""
    attendants = Attendants()
    await attendants.fill([loader.__name__])
    pages = PageLoader(await attendants.take(loader.__name__))
    work = tmp_path / ("long " * 30)
    await pages.begin(work, tmp_path / "images")
    await pages.ready()
    assert look(work).state is LoadingState.LOADING  # it lives, and has nothing to load yet
    await pages.close()
    assert look(work).state is LoadingState.LOST
    assert not (work / loader.SOCKET).exists()


async def test_a_loader_that_is_killed_as_it_waits_leaves_no_socket_behind(tmp_path: Path) -> None:
    attendant = await Attendants().take(loader.__name__)
    pages = PageLoader(attendant)
    await pages.begin(tmp_path, tmp_path)
    await pages.ready()
    attendant.child.kill()
    await pages.close()
    assert not (tmp_path / loader.SOCKET).exists()
