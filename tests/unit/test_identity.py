"""Which process was meant: its number alone says nothing once it may have been given out again."""

from __future__ import annotations

import subprocess

import pytest

from phaul.migration.interfaces import TreeIdentity
from phaul.migration.recovery import Tree
from phaul.workloads import identity
from tests.unit.process_trees import Start

WAIT_SECONDS = 10.0
SURVIVED_SECONDS = 0.2


def of_another_start(tree: TreeIdentity) -> TreeIdentity:
    """The same numbers, as they would be of processes that have ended before these were born."""
    return TreeIdentity(tree.boot_id, tuple((pid, ticks - 1) for pid, ticks in tree.tasks))


def test_a_number_that_was_given_out_again_is_not_the_process_that_was_meant(start: Start) -> None:
    child = start("if os.fork() == 0: time.sleep(600)")
    tree = identity.identify(child.pid)
    assert len(tree.tasks) == 2
    assert identity.look(tree) == (Tree.ALIVE, True)
    assert identity.look(of_another_start(tree)) == (Tree.DEAD, False)


def test_a_number_that_was_given_out_again_is_not_killed(start: Start) -> None:
    child = start("")
    tree = identity.identify(child.pid)
    identity.finish_kill(of_another_start(tree))
    identity.finish_kill(TreeIdentity("another boot", tree.tasks))
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(SURVIVED_SECONDS)
    identity.finish_kill(tree)
    child.wait(WAIT_SECONDS)
    assert identity.look(tree) == (Tree.DEAD, False)
    identity.finish_kill(tree)  # a second time, on what is gone


def test_after_a_restart_of_the_host_every_number_means_another_process(start: Start) -> None:
    tree = identity.identify(start("").pid)
    assert identity.look(TreeIdentity("another boot", tree.tasks)) == (Tree.ANOTHER_BOOT, False)
