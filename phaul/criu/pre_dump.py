"""One round of pre-copy: CRIU stops the tree for a moment, notes what was written since the round before, and sends it.

Called by `criu.engine`. The tree is stopped only while CRIU looks at its pagemaps, asks the kernel to track writes from
then on and gets hold of the pages (CRIU 4.2, criu/cr-dump.c: cr_pre_dump_tasks); they are sent while it runs. CRIU's
other way, `pre_dump_mode` read, sends wrong content to a page server (seen with 4.2.1: pages of other addresses).
Whatever goes wrong, the tree runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from phaul.criu.gates import failure, keep_uncorking, shut_down
from phaul.criu.images import read_statistics
from phaul.criu.leftovers import end_helpers
from phaul.criu.log import read_excerpt
from phaul.criu.session import CriuGoneError, CriuSession
from phaul.errors import DefectError, DumpError
from phaul.migration.engine_requests import PreDumped
from phaul.rpc.criu import rpc_pb2
from phaul.system.memory import keep_from_oom_killer

DRAIN_SECONDS = 10.0  # for a pre-dump that lost its page channel to give up


async def pre_dump(
    criu: str,
    options: rpc_pb2.Options,
    inherited_fds: Sequence[int],
    logs: Path,
    page_size_bytes: int,
) -> PreDumped:
    """Have CRIU make one pre-dump and send it; returns when the page server has all of it.

    Raises `DumpError` with the tree running, and so does cancelling.
    """
    page_channel_fd = options.ps.fd
    session = await CriuSession.start(criu, inherited_fds=inherited_fds)
    keep_from_oom_killer(session.pid)
    uncork = asyncio.create_task(keep_uncorking(page_channel_fd))
    gone = response = None
    try:
        await session.send(rpc_pb2.Request(type=rpc_pb2.SINGLE_PRE_DUMP, opts=options))
        response = await session.receive()
    except CriuGoneError as error:
        gone = error
    except BaseException:
        # Without its page channel CRIU fails by itself and takes its parasite out, which it would not if it was killed.
        shut_down(page_channel_fd)
        await asyncio.shield(_drain(session))
        raise
    finally:
        uncork.cancel()
        await asyncio.shield(session.close())
        end_helpers(session.pid)
    if response is None or not response.success:
        excerpt = read_excerpt(logs / options.log_file)
        raise failure(DumpError, "CRIU could not pre-dump the workload", response, excerpt, gone) from gone
    found = read_statistics(logs, "dump")
    if found is None:
        raise DumpError("CRIU has left no statistics of a pre-dump")
    return PreDumped(
        page_bytes=found.dump.pages_written * page_size_bytes,
        frozen_us=found.dump.freezing_time + found.dump.frozen_time,
    )


async def _drain(session: CriuSession) -> None:
    try:
        async with asyncio.timeout(DRAIN_SECONDS):
            await session.receive()
    except (CriuGoneError, DefectError, TimeoutError):
        pass  # it ended, which is what was waited for; or it never will, and closing the session kills it
