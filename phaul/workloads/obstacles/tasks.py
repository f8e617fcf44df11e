"""Tasks that cannot be stopped, dumped or made again as they are, and what they live in."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

from phaul.migration.facts import Problem, Severity
from phaul.system import procfs
from phaul.workloads.obstacles.words import listed, named
from phaul.workloads.snapshot import ProcessSnapshot, TreeSnapshot, differs

OWN_NAMESPACES = {"mnt": "mount", "pid": "PID", "user": "user", "pid_for_children": "PID (for children)"}
# A namespace of its own for the tree as a whole travels, for a part of it does not (criu/namespaces.c, 4.2).
ONE_FOR_ALL = {"uts": "UTS", "ipc": "IPC", "cgroup": "control group", "time": "time"}
KNOWN_POLICIES = range(6)  # SCHED_OTHER to SCHED_IDLE; criu/cr-restore.c, 4.2: "Inconsistent sched params"
LOOKS, LOOK_AGAIN_SECONDS = 5, 0.02
CAP_SYS_RESOURCE = 1 << 24
ANONYMOUS = ("/dev/zero (deleted)", "/memfd:", "[anon_shmem:")  # shared memory that is no file and no segment
OWN_IPC = "Start it in an IPC namespace of its own: put `unshare --ipc` before its command."


def namespaces(tree: TreeSnapshot) -> Iterator[Problem]:
    """Namespaces of their own."""
    elsewhere = next((each for each in tree.processes if differs(each, tree.root.namespaces, "net")), None)
    if elsewhere is not None:
        yield Problem(
            "own_network_namespace",
            f"{elsewhere.name} lives in another network namespace than {tree.root.name}, and phaul moves but one.",
            "Migrate each of them for itself, or start them in the same network namespace.",
        )
    if tree.network_neighbours:
        others = named(list(tree.network_neighbours))
        yield Problem(
            "network_namespace_shared",
            f"The network namespace of {tree.root.name} has {others} in it as well, which would be left without links.",
            "End them (a shell of `ip netns exec` is one, too), or migrate the tree that holds them all.",
        )
    if tree.ipc_neighbours:
        yield Problem(
            "ipc_namespace_shared",
            f"The IPC namespace of {tree.root.name} has {named(list(tree.ipc_neighbours))} in it as well: what they "
            "share there would part.",
            "End them, or migrate the tree that holds them all (`unshare --ipc` without `--fork` leaves nobody above).",
        )
    for process in tree.processes:
        found = [words for name, words in OWN_NAMESPACES.items() if differs(process, tree.agent_namespaces, name)]
        found += [words for name, words in ONE_FOR_ALL.items() if differs(process, tree.root.namespaces, name)]
        if found:
            words = " and ".join(dict.fromkeys(found))
            yield Problem(
                "own_namespaces",
                f"{process.name} lives in {words} namespaces of its own, as containers and sandboxed services do, "
                "which phaul cannot move yet.",
                "Start it outside a container (for a systemd unit: without PrivateTmp=, ProtectSystem= and the like).",
            )
            return


def tracers(tree: TreeSnapshot) -> Iterator[Problem]:
    """Debuggers."""
    for process in tree.processes:
        if process.tracer_pid:
            yield Problem(
                "traced",
                f"{process.name} is traced by process {process.tracer_pid}, and only one tracer can hold a process.",
                f"Detach the debugger or strace (process {process.tracer_pid}), then migrate again.",
            )
    if tree.tracees:
        yield Problem(
            "traces",
            f"The workload traces {named(sorted(tree.tracees))}, which would stay on this host.",
            "Let the debugger detach, then migrate again.",
        )


def standing(tree: TreeSnapshot) -> Iterator[Problem]:
    """Tasks that CRIU cannot stop: it waits for them while the others stand still."""
    for process in tree.processes:
        if process.frozen:
            yield Problem(
                "frozen",
                f"{process.name} stands still because its control group is frozen.",
                "Thaw it (`systemctl thaw UNIT`, or `docker unpause`), then migrate again.",
            )
            break
    for process in tree.processes:
        if process.stat.is_dead and len(process.thread_ids) > 1:
            yield leader_ended(process.name)
        for thread in process.threads:
            if thread.stat.state == "D" and _still_waits(process.pid, thread.tid):
                yield Problem(
                    "uninterruptible",
                    f"Thread {thread.tid} of {process.name} waits in the kernel where nothing can interrupt it: for a "
                    "child that has not become another program yet (vfork), or for storage that does not answer.",
                    "Try again; if it lasts, see `cat /proc/PID/stack` for what it waits for.",
                )
                break


def leader_ended(name: str) -> Problem:
    """A process without its first thread (criu/seize.c, 4.2: "Zombies with threads are not supported")."""
    return Problem(
        "leader_ended",
        f"The first thread of {name} has ended while others go on, which CRIU cannot dump.",
        "Let the program keep its first thread (no pthread_exit in main), then migrate again.",
    )


def _still_waits(pid: int, tid: int) -> bool:
    """Look a few times more: reading from a disk is uninterruptible too, for milliseconds."""
    for _ in range(LOOKS):
        time.sleep(LOOK_AGAIN_SECONDS)
        try:
            if procfs.read_thread_stat(pid, tid).state != "D":
                return False
        except OSError:
            return False
    return True


def sharing(tree: TreeSnapshot) -> Iterator[Problem]:
    """Processes that have too much in common, and threads that have too little."""
    for process in tree.processes:
        if process.shares:
            yield Problem(
                "shared_between_processes",
                f"{process.name} shares {' and '.join(process.shares)} with another process without being a thread of "
                "it, which CRIU cannot dump.",
                "Turn off what starts it that way, or try again if it is only just starting.",
            )
            break
    for process in tree.processes:
        apart = [thread for thread in process.threads if thread.apart]
        if apart:
            yield Problem(
                "thread_apart",
                f"Thread {apart[0].tid} of {process.name} has its own {listed(list(apart[0].apart))}, which would be "
                "that of its process after the move.",
                "Container managers and file servers do so: restart it on the destination instead.",
            )
            break


def scheduling(tree: TreeSnapshot) -> Iterator[Problem]:
    """Scheduling that is not made again."""
    for process in tree.processes:
        if any(thread.stat.policy not in KNOWN_POLICIES for thread in process.threads):
            yield Problem(
                "scheduling_policy",
                f"{process.name} is scheduled by deadline (or by a scheduler of eBPF), which CRIU cannot restore.",
                "Give it another policy for the move: `chrt --all-tasks --other --pid 0 PID`.",
            )
            break
    lost: list[str] = []
    ours = procfs.read_status(os.getpid()).get("Cpus_allowed_list", "")
    if any(process.processors not in ("", ours) for process in tree.processes):
        lost.append("the processors that it is bound to")
    if any(process.personality for process in tree.processes):
        lost.append("its personality (setarch)")
    if lost:
        yield Problem(
            "settings_lost",
            f"{tree.root.name} loses {' and '.join(lost)} on the way.",
            "Set it again on the destination: `taskset --all-tasks --cpu-list --pid LIST PID`."
            if "processors" in lost[0]
            else "Nothing, as long as it does not start other programs that count on it.",
            Severity.WARNS,
        )


def rights(tree: TreeSnapshot) -> Iterator[Problem]:
    """What the agent may not do to a task: prlimit(2) of another user's needs CAP_SYS_RESOURCE (kernel/sys.c)."""
    status = procfs.read_status(os.getpid())
    if int(status.get("CapEff", "0"), 16) & CAP_SYS_RESOURCE:
        return
    ours = {int(status["Uid"].split()[0])}, {int(status["Gid"].split()[0])}
    foreign = [each for each in tree.processes if each.users and not _is_ours(each, ours)]
    if foreign:
        yield Problem(
            "agent_capabilities",
            f"{foreign[0].name} belongs to another user than the agent, which may not read its limits: the agent lacks "
            "CAP_SYS_RESOURCE.",
            "Run the agent with all capabilities (not in a container that drops some).",
        )


def _is_ours(process: ProcessSnapshot, ours: tuple[set[int], set[int]]) -> bool:
    users, groups = process.users[:3], process.users[3:]
    return set(users) == ours[0] and set(groups) == ours[1]


def system_v(tree: TreeSnapshot) -> Iterator[Problem]:
    """System V objects: they belong to the host, and CRIU dumps them only with an IPC namespace of their own."""
    if tree.has_own_ipc:
        yield from _numbered_alike(tree)
        return
    users = [p for p in tree.processes if any(mapping.path.startswith("/SYSV") for mapping in p.mappings)]
    if users:
        # check_sysvipc_map_dump in criu/cr-dump.c, 4.2
        yield Problem(
            "sysv_shared_memory",
            f"{listed([user.name for user in users])} {'uses' if len(users) == 1 else 'use'} System V shared memory, "
            "which cannot be dumped outside an IPC namespace of its own.",
            f"{OWN_IPC} PostgreSQL always has some, however it is configured.",
        )
    if tree.semaphores:
        yield Problem(
            "sysv_semaphores",
            f"The workload uses System V semaphores (`ipcs -s -i {tree.semaphores[0]}`), which stay on this host.",
            f"{OWN_IPC} Or configure it for POSIX semaphores (Apache: Mutex pthread).",
        )
    if tree.message_queues:
        yield Problem(
            "sysv_messages",
            f"The workload uses a System V message queue (`ipcs -q -i {tree.message_queues[0]}`), which stays on this "
            "host.",
            f"{OWN_IPC} Or turn off what uses it.",
        )


def _numbered_alike(tree: TreeSnapshot) -> Iterator[Problem]:
    """CRIU names both kinds after a number: of a segment its own, of other memory its inode (criu/shmem.c, 4.2)."""
    numbers = {segment.number for segment in tree.segments}
    for process in tree.processes:
        for mapping in process.mappings:
            if mapping.shared and mapping.path.startswith(ANONYMOUS) and mapping.inode in numbers:
                yield Problem(
                    "shared_memory_number",
                    f"{process.name} has shared memory with the number {mapping.inode}, which a System V segment of "
                    "it has as well, so that CRIU cannot tell them apart.",
                    "Restart it: it gets other numbers then.",
                )
                return


def missing_memory(tree: TreeSnapshot) -> Iterator[Problem]:
    """CRIU takes for empty what is still to be put in place, and the workload would go on with zeros (CRIU 4.2)."""
    for process in tree.processes:
        if any(mapping.filled_in for mapping in process.mappings):
            yield Problem(
                "memory_missing",
                f"The memory of {process.name} is still being put in place by another process (userfaultfd).",
                "After a migration to this host wait until `phaul status` speaks of no loading any more; it takes "
                "about a second a GiB.",
            )
            return


def special_memory(tree: TreeSnapshot) -> Iterator[Problem]:
    """Mappings that cannot be read or made again."""
    for process in tree.processes:
        for mapping in process.mappings:
            if mapping.path.startswith("/secretmem"):
                yield Problem(
                    "secret_memory",
                    f"{process.name} has memory that nobody else can read (memfd_secret).",
                    "Turn off what uses it in that program, then migrate again.",
                )
                break
            if mapping.path == "[uprobes]":
                yield Problem(
                    "uprobes",
                    f"{process.name} is watched by uprobes (bpftrace, perf probe), which CRIU refuses to dump.",
                    "Stop the tracing, restart the program, then migrate.",
                )
                break
