"""What keeps a tree from being dumped or restored, as far as the source alone can see it: one `Problem` for each.

Called by `workloads.process` with a `TreeSnapshot`. Everything here fails at the freeze or in the restore, or is
lost, with CRIU 4.2 (criu/files.c, sk-unix.c, tty.c, cr-dump.c): tests/lab/corpus has a program for each. So it is said
before anything is touched. Reads only.
"""

from __future__ import annotations

from phaul.migration.facts import Problem
from phaul.system import procfs
from phaul.workloads.obstacles import descriptors, ends, tasks
from phaul.workloads.obstacles.ends import Holders
from phaul.workloads.snapshot import TreeSnapshot, strangers


def obstacles_of(tree: TreeSnapshot, holders: Holders = procfs.holders_of) -> tuple[Problem, ...]:
    """Say what keeps this tree from going; `holders` finds out who else holds a pipe or a socket."""

    def outside(links: frozenset[str], except_pids: frozenset[int]) -> dict[str, list[int]]:
        found = {link: strangers(tree, pids) for link, pids in holders(links, except_pids).items()}
        return {link: pids for link, pids in found.items() if pids}

    return (
        *tasks.namespaces(tree),
        *tasks.tracers(tree),
        *tasks.standing(tree),
        *tasks.sharing(tree),
        *tasks.scheduling(tree),
        *tasks.rights(tree),
        *tasks.system_v(tree),
        *tasks.missing_memory(tree),
        *tasks.special_memory(tree),
        *ends.terminals(tree),
        *descriptors.descriptors(tree),
        *(problem for process in tree.processes for problem in descriptors.directory_on_lost_mount(process)),
        *ends.pipes(tree, outside),
        *ends.unix_sockets(tree, holders),
        *ends.shared_sockets(tree, outside),
    )
