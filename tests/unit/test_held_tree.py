"""A tree held by pidfd: it dies whole, only when killed, and never another in its place."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from phaul.errors import DumpError
from phaul.system import procfs
from phaul.workloads.held_tree import ProcessTree
from phaul.workloads.process import inspect
from tests.unit.process_trees import Start


async def test_a_held_tree_dies_whole_and_only_when_killed(start: Start) -> None:
    child = start("if os.fork() == 0:\n    if os.fork() == 0: time.sleep(600)\n    time.sleep(600)")
    facts = inspect(child.pid)
    os.kill(child.pid, signal.SIGSTOP)  # as frozen as a test can have it
    tree = ProcessTree.of(facts)
    try:
        assert tree.pids == tuple(task.pid for task in facts.tasks) and len(tree.pids) == 3
        assert not await tree.wait_dead(0.05)
        tree.kill()
        assert await tree.wait_dead(10)
        tree.kill()  # again, on what is dead and partly reaped
        assert child.wait(10) == -signal.SIGKILL
        assert await tree.wait_dead(0)
    finally:
        tree.close()
    tree.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="TCP_REPAIR needs CAP_NET_ADMIN: run as root")
@pytest.mark.parametrize("silenced", [True, False])
async def test_a_tree_that_criu_has_lost_ends_without_a_word(start: Start, silenced: bool) -> None:
    """Its connections are out of repair mode: the keeper has cured them."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        child = start(f"import socket; connection = socket.create_connection(('127.0.0.1', {port}))")
        client, _ = listener.accept()
    os.kill(child.pid, signal.SIGSTOP)
    tree = ProcessTree.of(inspect(child.pid))
    with client:
        if silenced:
            tree.silence()
        tree.kill()
        assert await tree.wait_dead(10)
        heard, _, _ = select.select([client], [], [], 0.3)
        assert bool(heard) is not silenced
    tree.close()


async def test_children_born_after_preflight_are_held_too(start: Start) -> None:
    child = start("signal.signal(signal.SIGUSR1, lambda *_: os.fork() or time.sleep(600))")
    facts = inspect(child.pid)
    os.kill(child.pid, signal.SIGUSR1)
    for _ in range(500):
        if len(procfs.walk_tree(child.pid)) == 2:
            break
        await asyncio.sleep(0.01)
    tree = ProcessTree.of(facts)
    assert len(facts.tasks) == 1 and len(tree.pids) == 2
    tree.close()


def test_another_process_with_the_same_number_is_not_held(start: Start) -> None:
    child = start("")
    facts = inspect(child.pid)
    before = len(list(Path("/proc/self/fd").iterdir()))
    other = replace(facts, tasks=(replace(facts.tasks[0], start_ticks=facts.tasks[0].start_ticks - 1),))
    with pytest.raises(DumpError, match="reused"):
        ProcessTree.of(other)
    child.kill()
    child.wait()
    with pytest.raises(DumpError, match="ended"):
        ProcessTree.of(facts)
    assert len(list(Path("/proc/self/fd").iterdir())) == before  # no pidfd leaks
