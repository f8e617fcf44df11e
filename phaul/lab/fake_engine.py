"""The engine of a fake host: it freezes, dumps, restores and holds trees that are only values, as CRIU does real ones.

Used by `lab.fakes` and by the crash model. Its dump speaks CRIU's page-server protocol into a real page channel.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from phaul.errors import DumpError, RestoreError
from phaul.lab.fake_machine import PAGE_BYTES, FakeMachine, FakeTree, TreeState
from phaul.migration.facts import HostFacts
from phaul.migration.interfaces import DumpRequest, HeldDump, HeldRestore, RestoredTree, RestoreRequest
from phaul.transfer import page_protocol
from phaul.transfer.page_protocol import Command, Header, PageFlag


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


class FakeHeldRestore:
    """`HeldRestore` on one tree."""

    def __init__(self, machine: FakeMachine, tree: FakeTree) -> None:
        self._machine = machine
        self._tree = tree
        self.decided = False
        machine.held.append(self)

    def abandon(self) -> None:
        """CRIU sees the socket close before the gate was passed: it kills the copy."""
        if not self.decided:
            self._tree.state = TreeState.DEAD

    @property
    def tree(self) -> RestoredTree:
        """The copy."""
        return RestoredTree(self._tree.pid, 1000)

    async def run(self) -> None:
        """It runs from here on."""
        self._machine.act("copy.run")
        self.decided = True
        self._tree.state = TreeState.RUNNING

    async def discard(self) -> None:
        """It is killed."""
        self._machine.act("copy.discard")
        if not self.decided:
            self.decided = True
            self._tree.state = TreeState.DEAD


class FakeEngine:
    """`Engine` on a machine. Its dump speaks CRIU's page-server protocol into the page channel it is given."""

    def __init__(self, machine: FakeMachine) -> None:
        self._machine = machine

    async def describe(self) -> HostFacts:
        """A CRIU that can do everything."""
        return HostFacts(criu_version="4.2.1", criu_path="fake", features=("lazy_pages", "mem_track"))

    @asynccontextmanager
    async def dump(
        self, request: DumpRequest, about_to_freeze: Callable[[], Awaitable[None]]
    ) -> AsyncIterator[HeldDump]:
        """Freeze, send the memory, write one small image, hold."""
        await about_to_freeze()
        tree = self._machine.trees[request.root_pid]
        tree.state = TreeState.FROZEN
        held = FakeHeldDump(self._machine, tree)
        try:
            try:
                self._machine.act("engine.dump")
                await asyncio.to_thread(send_memory, request.page_channel_fd, tree)
            except OSError as error:
                raise DumpError(f"the page channel broke: {error.strerror}") from error
            content = {"pid": tree.pid, "connections": len(tree.connections)}
            (request.images / "fake.img").write_text(json.dumps(content))
            yield held
        finally:
            if not held.decided:
                await held.resume()

    @asynccontextmanager
    async def restore(self, request: RestoreRequest) -> AsyncIterator[HeldRestore]:
        """Make a frozen copy out of the images, hold."""
        self._machine.act("engine.restore")
        try:
            pid = json.loads((request.images / "fake.img").read_text())["pid"]
            memory = (request.images / "pages-1.img").read_bytes()
        except FileNotFoundError as error:
            raise RestoreError(f"there is no image {error.filename}") from error
        tree = FakeTree(pid, memory, state=TreeState.FROZEN)
        self._machine.trees[pid] = tree
        held = FakeHeldRestore(self._machine, tree)
        try:
            yield held
        finally:
            if not held.decided:
                await held.discard()


def send_memory(fd: int, tree: FakeTree) -> None:
    """Do what CRIU's dump does: open the task's image, add one run of pages, close, wait for the status."""
    image = page_protocol.task_image(tree.pid)
    pages = len(tree.memory) // PAGE_BYTES
    with socket.socket(fileno=os.dup(fd)) as channel:
        channel.sendall(page_protocol.encode(Header(Command.OPEN2, 0, 0, 0, image)))
        if channel.recv(1) != page_protocol.OPENED_WITHOUT_PARENT:
            raise ConnectionError(104, "the page receiver did not open the image")
        channel.sendall(page_protocol.encode(Header(Command.ADD_F, PageFlag.PRESENT, pages, 0x10000, image)))
        channel.sendall(tree.damaged or tree.memory)
        channel.sendall(page_protocol.encode(Header(Command.FORCE_CLOSE, 0, 0, 0, 0)))
        if len(channel.recv(page_protocol.STATUS.size)) != page_protocol.STATUS.size:
            raise ConnectionError(104, "the page receiver gave no status")
