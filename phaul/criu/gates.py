"""The two points at which CRIU waits for us: a dump that holds the tree frozen, a restore that holds the copy.

`CriuDump` and `CriuRestore` are what `criu.engine` gives to the coordinator and the destination. Leaving either without
a decision aborts, and so does the death of this process: CRIU sees the socket close and rolls back by itself (seen with
CRIU 4.1 and 4.2).
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import structlog

from phaul.criu.leftovers import boot_ticks, end_helpers, end_leftovers
from phaul.criu.log import LogExcerpt, read_excerpt
from phaul.criu.session import CriuGoneError, CriuSession
from phaul.errors import DefectError, DumpError, PhaulError, RestoreError
from phaul.migration.engine_requests import RestoredTree
from phaul.migration.guard import Guard
from phaul.rpc.criu import rpc_pb2
from phaul.system import procfs
from phaul.system.memory import keep_from_oom_killer
from phaul.system.pidfd import HeldProcess
from phaul.system.standing_still import is_traced, tell_clients

log = structlog.get_logger(__name__)

# CRIU corks the page channel and does not push its last message, which then waits for the kernel's 200 ms cork timer
# (CRIU 4.2, criu/page-xfer.c: disconnect_from_page_server). Setting TCP_NODELAY pushes what is held, corked or not
# (tcp(7)).
UNCORK_INTERVAL_SECONDS = 0.002

LOOK_SECONDS = 0.001  # between two looks whether CRIU has seized the root task
DRAIN_SECONDS = 10.0  # for a dump that lost its page channel to give up

DUMP_LOG = "dump.log"
RESTORE_LOG = "restore.log"


def _now_us() -> int:
    return time.monotonic_ns() // 1000


def failure(
    kind: type[PhaulError],
    what: str,
    response: rpc_pb2.Response | None,
    excerpt: LogExcerpt,
    gone: CriuGoneError | None,
) -> PhaulError:
    """Put a failed dump or restore into one error."""
    first = excerpt.cause or next(iter(excerpt.errors), "") or (response.cr_errmsg.strip() if response else "")
    if not first and gone:
        first = gone.message
    return kind(f"{what}: {first or 'CRIU gave no reason'}", hint=excerpt.hint, detail=excerpt.detail())


class _Held:
    """What both gates share: a session in which CRIU waits, or has been answered."""

    def __init__(self, criu: str, request: rpc_pb2.Request, fds: Sequence[int], logs: Path, log_name: str) -> None:
        self._criu = criu
        self._request = request
        self._fds = fds
        self._log = logs / log_name
        self._session: CriuSession | None = None
        self._began_ticks = 0

    @property
    def _open(self) -> CriuSession:
        assert self._session is not None, "the gate is not held"
        return self._session

    async def _reach(self, gate: str, on_stage: Callable[[str, int], Awaitable[None]]) -> rpc_pb2.Response | None:
        """Start CRIU and go up to `gate`. None when held there; CRIU's answer when it ended before."""
        self._began_ticks = boot_ticks()
        self._session = await CriuSession.start(self._criu, inherited_fds=self._fds)
        await self._session.send(self._request)
        while True:
            response = await self._session.receive()
            if response.type != rpc_pb2.NOTIFY:
                return response
            await on_stage(response.notify.script, response.notify.pid)
            if response.notify.script == gate:
                return None
            await self._session.answer(success=True)

    async def _finish(
        self, *, success: bool, on_stage: Callable[[str], Awaitable[None]] | None = None
    ) -> rpc_pb2.Response | None:
        """Answer the gate and see the conversation to its end. None when CRIU ended without an answer.

        CRIU itself may take a while longer to end; leaving the context waits for that.
        """
        session = self._open
        try:
            await session.answer(success=success)
            while True:
                response = await session.receive()
                if response.type != rpc_pb2.NOTIFY:
                    return response
                if on_stage is not None:
                    await on_stage(response.notify.script)
                await session.answer(success=True)
        except CriuGoneError:
            return None

    async def _close(self) -> int:
        """End CRIU, if it is there; give its PID, else 0."""
        if self._session is None:
            return 0
        session, self._session = self._session, None
        await session.close()
        return session.pid

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # Closing the socket is a refusal that needs no answer, so that it also works where CRIU is stuck.
        await asyncio.shield(self._close())


class CriuDump(_Held):
    """`HeldDump` on CRIU: entering freezes and dumps the tree; inside, it is frozen until a decision."""

    def __init__(
        self,
        criu: str,
        request: rpc_pb2.Request,
        fds: Sequence[int],
        logs: Path,
        page_channel_fd: int,
        about_to_freeze: Callable[[int], Awaitable[None]],
    ) -> None:
        super().__init__(criu, request, fds, logs, DUMP_LOG)
        self._page_channel_fd = page_channel_fd
        self._about_to_freeze = about_to_freeze
        self._frozen_since_us = 0

    @property
    def frozen_since_us(self) -> int:
        """When the root task, the first to be seized, was last seen in nobody's hands after CRIU's `pre-dump` stage."""
        return self._frozen_since_us

    async def __aenter__(self) -> Self:
        seeing: asyncio.Task[None] | None = None

        async def on_stage(stage: str, _pid: int) -> None:
            nonlocal seeing
            if stage == "pre-dump":
                keep_from_oom_killer(self._open.pid)  # killed in the middle, it may take the workload along
                await self._about_to_freeze(self._open.pid)
                self._frozen_since_us = _now_us()
                seeing = asyncio.create_task(self._see_freeze())

        uncork = asyncio.create_task(keep_uncorking(self._page_channel_fd))
        gone = response = None
        try:
            response = await self._reach("post-dump", on_stage)
        except CriuGoneError as error:
            gone = error
        except BaseException:
            # In the middle of the dump: without its page channel CRIU fails, cures the tree and lets it run.
            shut_down(self._page_channel_fd)
            await asyncio.shield(self._drain())
            raise
        finally:
            uncork.cancel()
            if seeing is not None:
                seeing.cancel()
        if gone or response:
            await self._close()
            raise failure(
                DumpError, "CRIU could not dump the workload", response, read_excerpt(self._log), gone
            ) from gone
        return self

    async def _see_freeze(self) -> None:
        """Note when the root task ran last: after its `pre-dump` stage CRIU looks at the host before it stops any."""
        root_pid = self._request.opts.pid
        while not is_traced(root_pid):
            self._frozen_since_us = _now_us()
            await asyncio.sleep(LOOK_SECONDS)

    async def _drain(self) -> None:
        """Let a dump that is failing come to its end by itself: killed half-way, CRIU leaves its parasite behind."""
        if self._session is None:
            return
        try:
            async with asyncio.timeout(DRAIN_SECONDS):
                # Before the freeze there is nothing to come to an end: CRIU waits for our answer.
                while self._frozen_since_us and (await self._session.receive()).type == rpc_pb2.NOTIFY:
                    await self._session.answer(success=False)
        except (CriuGoneError, DefectError, TimeoutError):
            pass  # it ended, which is what was waited for; or it never will, and closing the session kills it
        await self._close()

    async def _close(self) -> int:
        if pid := await super()._close():
            end_helpers(pid)
        return pid

    async def release_killed(self) -> None:
        """Pass the gate. What CRIU says of it is only logged: the tree was dead before."""
        response = await self._finish(success=True)
        if response is None or not response.success:
            log.info("criu.dump_ended_with_errors", errors=read_excerpt(self._log).errors)

    async def resume(self) -> None:
        """Refuse the gate: CRIU thaws the tree, and ends with an error that means nothing here."""
        if self._session is not None:
            await self._finish(success=False)


class CriuRestore(_Held):
    """`HeldRestore` on CRIU: entering restores up to `post-restore`; inside, the copy is complete and stopped.

    A lazily restored one is complete as long as its loader lives: `loader_lives` is asked before it is relied on.
    """

    def __init__(
        self,
        criu: str,
        request: rpc_pb2.Request,
        fds: Sequence[int],
        logs: Path,
        root_pid: int,
        loader_lives: Callable[[], bool] = lambda: True,
        setting_up: Callable[[int], Awaitable[None]] | None = None,
        guard: Guard | None = None,
        setting_up_at: str = "setup-namespaces",
    ) -> None:
        super().__init__(criu, request, fds, logs, RESTORE_LOG)
        self._setting_up, self._setting_up_at = setting_up, setting_up_at
        self._root_pid = root_pid
        self._loader_lives = loader_lives
        self._guard = guard
        self._restore_us = 0
        self._guarded = False
        self._runs = False

    @property
    def tree(self) -> RestoredTree:
        """The copy. Its root has the PID it had on the source: CRIU restores PIDs or fails."""
        return RestoredTree(root_pid=self._root_pid, restore_us=self._restore_us)

    async def __aenter__(self) -> Self:
        async def on_stage(stage: str, pid: int) -> None:
            if stage == "post-restore" and pid:
                self._root_pid = pid
            elif stage == self._setting_up_at and self._setting_up is not None:
                await self._setting_up(pid or self._root_pid)

        started_us = _now_us()
        gone = response = None
        try:
            response = await self._reach("post-restore", on_stage)
        except CriuGoneError as error:
            gone = error
        except BaseException:
            await asyncio.shield(self._close())
            raise
        if gone or response:
            await self._close()
            raise failure(
                RestoreError, "CRIU could not restore the workload", response, read_excerpt(self._log), gone
            ) from gone
        self._restore_us = _now_us() - started_us
        if self._guard is not None:
            self._guarded = await self._guard.watch(self._open.pid, self._root_pid, self._began_ticks)
        await self._require_loader()
        return self

    async def _require_loader(self) -> None:
        if not self._loader_lives():
            await self._close()
            raise RestoreError("the process that loads the restored workload's pages has ended")

    async def run(self, open_network: Callable[[], Awaitable[None]]) -> None:
        """Pass the gate. Raises `RestoreError` where the copy does not come to run.

        At CRIU's `pre-resume` stage all that can fail is over: each task stands still on its way out of the restorer,
        held by ptrace, and goes on whether CRIU lets it or ends (4.2, criu/cr-restore.c: after `finalize_restore`).
        Before that the end of CRIU is the end of the copy, where a guard watches. Elsewhere it is left as it is: it may
        run as well.
        """
        await self._require_loader()
        refused: list[PhaulError] = []

        async def on_stage(stage: str) -> None:
            if stage != "pre-resume" or (self._guard and not await self._guard.release()):
                return
            self._runs = True
            try:
                await open_network()
                await asyncio.to_thread(tell_clients_of_tree, self._root_pid)
            except PhaulError as error:
                refused.append(error)

        response = await self._finish(success=True, on_stage=on_stage)
        if refused:
            raise refused[0]
        if not self._runs:
            await (super()._close() if response is None and not self._guarded else self._close())
            raise failure(
                RestoreError, "CRIU could not let the restored workload run", response, read_excerpt(self._log), None
            )

    async def discard(self) -> None:
        """Refuse the gate: CRIU kills the copy."""
        if self._session is not None:
            await self._finish(success=False)

    async def _close(self) -> int:
        """End CRIU; without `run` there is no copy afterwards, also where CRIU was killed and could not see to that."""
        pid = await super()._close()
        if pid and not self._runs:
            await end_leftovers(self._root_pid, self._began_ticks)
            end_helpers(pid)
        return pid


def shut_down(fd: int) -> None:
    with socket.socket(fileno=os.dup(fd)) as channel:
        try:
            channel.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the other end was faster


def tell_clients_of_tree(root_pid: int) -> None:
    """Have the clients of a copy that stands still learn where it is now; blocks.

    CRIU sends a window probe as it ends the sockets' repair mode, but then the fence is still there.
    """
    try:
        pids = procfs.walk_tree(root_pid)
    except OSError:
        return
    for pid in pids:
        try:
            held = HeldProcess.open(pid)
        except OSError:
            continue
        try:
            tell_clients(held.fileno(), pid)
        finally:
            held.close()


async def keep_uncorking(fd: int) -> None:
    with socket.socket(fileno=os.dup(fd)) as channel:
        while True:
            try:
                channel.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except OSError:
                return  # shut down
            await asyncio.sleep(UNCORK_INTERVAL_SECONDS)
