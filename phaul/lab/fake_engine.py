"""The engine of a fake host: it freezes, dumps, restores and holds trees that are only values, as CRIU does real ones.

Used by `lab.fakes` and by the crash model. Its dump speaks CRIU's page-server protocol into a real page channel.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from phaul.errors import DumpError, RestoreError
from phaul.lab.fake_images import read_pages
from phaul.lab.fake_machine import PAGE_BYTES, FakeMachine, FakeTree, TreeState
from phaul.migration.engine_requests import DumpRequest, PreDumped, PreDumpRequest, RestoredTree, RestoreRequest
from phaul.migration.facts import HostFacts
from phaul.migration.interfaces import HeldDump, HeldRestore
from phaul.migration.lazy import Loading, LoadingState
from phaul.migration.readdressing import STAYING, Readdressing
from phaul.transfer import page_protocol
from phaul.transfer.page_protocol import Command, Header, PageFlag

MEMORY_ADDRESS = 0x10000  # of the only mapping that a fake tree has


class FakeHeldDump:
    """`HeldDump` on one tree."""

    def __init__(self, machine: FakeMachine, tree: FakeTree) -> None:
        self._machine = machine
        self._tree = tree
        self.frozen_since_us = time.monotonic_ns() // 1000
        self.decided = False
        machine.held.append(self)

    def abandon(self) -> None:
        """CRIU sees the socket close: it lets the tree run on."""
        if self._tree.state is TreeState.FROZEN:
            self._tree.state = TreeState.RUNNING

    def orphan(self) -> None:
        """The keeper, which outlives both, lets the tree run on."""
        self.abandon()

    async def release_killed(self) -> None:
        """CRIU takes leave of a dead tree."""
        self._machine.act("engine.release")
        self.decided = True

    async def resume(self) -> None:
        """Thaw, unless it is dead: nothing brings a killed tree back."""
        self._machine.act("engine.resume")
        self.decided = True
        if self._tree.state is TreeState.FROZEN:
            self._tree.state = TreeState.RUNNING
            self._machine.acts.append("tree.resume")


class FakeLoader:
    """`Loader` that is ready as soon as it is asked."""

    def __init__(self, machine: FakeMachine) -> None:
        self._machine = machine

    async def ready(self) -> None:
        """It is."""
        self._machine.act("loader.ready")

    async def close(self) -> None:
        """It ends."""
        self._machine.act("loader.close")


class FakeHeldRestore:
    """`HeldRestore` on one tree. `loads_for` names the migration of a lazily restored one."""

    def __init__(self, machine: FakeMachine, tree: FakeTree, loads_for: str = "") -> None:
        self._machine = machine
        self._tree = tree
        self._loads_for = loads_for
        self.decided = False
        machine.held.append(self)

    def abandon(self) -> None:
        """CRIU sees the socket close before the gate was passed: it kills the copy."""
        if not self.decided:
            self._tree.state = TreeState.DEAD

    def orphan(self) -> None:
        """Nobody kills the copy, and nobody can let it run."""
        if not self.decided:
            self._tree.state = TreeState.UNFINISHED

    @property
    def tree(self) -> RestoredTree:
        """The copy."""
        return RestoredTree(self._tree.pid, 1000)

    async def run(self, open_network: Callable[[], Awaitable[None]]) -> None:
        """It runs from here on."""
        self._machine.act("copy.run")
        await open_network()
        self.decided = True
        self._tree.state = TreeState.RUNNING
        if self._loads_for:
            self._machine.begin_loading(self._loads_for, len(self._tree.memory))

    async def discard(self) -> None:
        """It is killed."""
        self._machine.act("copy.discard")
        if not self.decided:
            self.decided = True
            self._tree.state = TreeState.DEAD


class FakeGuard:
    """`Guard` of a copy whose engine never ends by itself."""

    async def watch(self, engine_pid: int, root_pid: int, since_ticks: int) -> bool:
        """It does."""
        return True

    async def release(self) -> bool:
        """It runs."""
        return True

    async def close(self) -> None:
        """Nothing is held."""


class FakeEngine:
    """`Engine` on a machine. Its dump speaks CRIU's page-server protocol into the page channel it is given."""

    def __init__(self, machine: FakeMachine) -> None:
        self._machine = machine

    async def describe(self) -> HostFacts:
        """A CRIU that can do everything."""
        return HostFacts(criu_version="4.2.1", criu_path="fake", features=("lazy_pages", "mem_track"))

    async def pre_dump(self, request: PreDumpRequest) -> PreDumped:
        """Send what changed since the round before, and track the memory from then on."""
        self._machine.act("engine.pre_dump")
        request.images.mkdir()
        tree = self._machine.trees[request.root_pid]
        since, tree.tracked = tree.tracked if request.parent else None, tree.memory
        tree.while_sent(tree)
        try:
            sent = await asyncio.to_thread(send_memory, request.page_channel_fd, tree, tree.tracked, since)
        except OSError as error:
            raise DumpError(f"the page channel broke: {error.strerror}") from error
        return PreDumped(sent, 1000)

    @asynccontextmanager
    async def dump(
        self, request: DumpRequest, about_to_freeze: Callable[[int], Awaitable[None]]
    ) -> AsyncIterator[HeldDump]:
        """Freeze, send the memory, write one small image, hold."""
        await about_to_freeze(0)
        tree = self._machine.trees[request.root_pid]
        tree.state = TreeState.FROZEN
        held = FakeHeldDump(self._machine, tree)
        try:
            try:
                self._machine.act("engine.dump")
                memory, since = tree.damaged or tree.memory, tree.tracked if request.parent else None
                await asyncio.to_thread(send_memory, request.page_channel_fd, tree, memory, since)
            except OSError as error:
                raise DumpError(f"the page channel broke: {error.strerror}") from error
            content = {
                "pid": tree.pid,
                "connections": len(tree.connections),
                "host_name": request.host_name or tree.host_name,
                "macs": tree.macs | dict(request.new_macs),
            }
            (request.images / "fake.img").write_text(json.dumps(content))
            yield held
        finally:
            if not held.decided:
                await held.resume()

    @asynccontextmanager
    async def restore(self, request: RestoreRequest) -> AsyncIterator[HeldRestore]:
        """Make a frozen copy out of the images, hold."""
        self._machine.act("engine.restore_lazily" if request.lazy else "engine.restore")
        try:
            image = json.loads((request.images / "fake.img").read_text())
            pid = image["pid"]
            pages = read_pages(request.images, f"pagemap-{pid}.img", PAGE_BYTES)
            memory = b"".join(content for _, content in pages)
        except FileNotFoundError as error:
            raise RestoreError(f"there is no image {error.filename}") from error
        if request.setting_up is not None and self._machine.own_namespaces:
            await request.setting_up(pid)
        tree = FakeTree(pid, memory, state=TreeState.FROZEN, host_name=image["host_name"], macs=image["macs"])
        self._machine.trees[pid] = tree
        held = FakeHeldRestore(self._machine, tree, request.migration_id if request.lazy else "")
        try:
            yield held
        finally:
            if not held.decided:
                await held.discard()

    async def change_identity(
        self,
        images: Path,
        new_addresses: Sequence[tuple[str, str]] = (),
        readdressing: Readdressing = STAYING,
        new_macs: Sequence[tuple[str, str]] = (),
        host_name: str = "",
    ) -> None:
        """Write it into the one small image."""
        content = json.loads((images / "fake.img").read_text())
        content["host_name"] = host_name or content["host_name"]
        content["macs"] |= dict(new_macs)
        (images / "fake.img").write_text(json.dumps(content))

    async def guard(self) -> FakeGuard:
        """Give one."""
        return FakeGuard()

    async def loader(self, migration_id: str, images: Path) -> FakeLoader:
        """Give one."""
        self._machine.act("engine.loader")
        return FakeLoader(self._machine)

    async def loading(self, migration_id: str) -> Loading:
        """What became of the loader."""
        return self._machine.loading.get(migration_id, Loading(LoadingState.LOST))


def send_memory(fd: int, tree: FakeTree, memory: bytes, since: bytes | None) -> int:
    """Do what CRIU's dump does: open the task's image, add its pages, close, wait for the status; give the bytes sent.

    Pages that are as they were in `since` are left to the round before.
    """
    image = page_protocol.task_image(tree.pid)
    sent = 0
    with socket.socket(fileno=os.dup(fd)) as channel:
        channel.sendall(page_protocol.encode(Header(Command.OPEN2, 0, 0, 0, image)))
        if channel.recv(1) != (page_protocol.HAS_NO_PARENT if since is None else page_protocol.HAS_PARENT):
            raise ConnectionError(104, "the page receiver did not open the image")
        for changed, numbers in itertools.groupby(
            range(len(memory) // PAGE_BYTES), lambda at: _changed(memory, since, at)
        ):
            first, *others = numbers
            pages = 1 + len(others)
            flag = PageFlag.PRESENT if changed else PageFlag.PARENT
            address = MEMORY_ADDRESS + first * PAGE_BYTES
            channel.sendall(page_protocol.encode(Header(Command.ADD_F, flag, pages, address, image)))
            if changed:
                channel.sendall(memory[first * PAGE_BYTES : (first + pages) * PAGE_BYTES])
                sent += pages * PAGE_BYTES
        channel.sendall(page_protocol.encode(Header(Command.FORCE_CLOSE, 0, 0, 0, 0)))
        if len(channel.recv(page_protocol.STATUS.size)) != page_protocol.STATUS.size:
            raise ConnectionError(104, "the page receiver gave no status")
    return sent


def _changed(memory: bytes, since: bytes | None, page: int) -> bool:
    part = slice(page * PAGE_BYTES, (page + 1) * PAGE_BYTES)
    return since is None or memory[part] != since[part]
