"""What of a tree must be found again on the destination: its files, its connections, its memory.

Called by `workloads.process` with a `TreeSnapshot`. Looks at paths of this host; changes nothing.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum
from ipaddress import ip_address
from pathlib import Path, PurePosixPath

from phaul.migration.facts import ConnectionFacts, FileFacts, FileUse, Problem, WorkloadFacts
from phaul.system import files, watches
from phaul.system.borrowed import sockets_of
from phaul.system.procfs import DELETED_SUFFIX, PROC, Mapping
from phaul.system.sockets import InternetSocket, internet_sockets, unaccepted_sockets
from phaul.units import MIB, format_bytes
from phaul.workloads.snapshot import ProcessSnapshot, TreeSnapshot, differs

# CRIU's --ghost-limit when nothing else is asked: compared with the blocks in use (criu/files-reg.c, 4.2).
GHOST_LIMIT_BYTES = MIB
BLOCK_BYTES = 512  # the unit of st_blocks (stat(3type))

# Names that look like paths, but whose memory has no file: CRIU dumps it.
MEMORY_NAMES = ("/memfd:", "/dev/zero (deleted)", "/SYSV", "/[aio]", "/anon_hugepage", "/dmabuf:", "/secretmem")
ON_THE_PATH = (FileUse.OPEN, FileUse.WORKING_DIRECTORY, FileUse.ROOT_DIRECTORY)
MAPPABLE_DEVICES = ("/dev/zero", "/dev/null")


@dataclass(frozen=True, slots=True)
class Held:
    """A path as one process holds it, before it is known how it looks."""

    path: str  # as the kernel names it, with DELETED_SUFFIX where it has none any more
    use: FileUse
    proc_path: str  # where the held file itself can be looked at, whatever became of its path
    process: ProcessSnapshot
    writable: bool = False
    append_only: bool = False
    locked: bool = False
    mount: int = 0  # the ID of the mount it was opened on, 0 where not known


def files_of(tree: TreeSnapshot) -> tuple[tuple[FileFacts, ...], tuple[Problem, ...]]:
    """Say which paths the destination needs, and what keeps a held file from being dumped. Each path comes once."""
    found: dict[str, FileFacts] = {}
    problems: dict[str, Problem] = {}
    looks: dict[str, files.FileLook] = {}
    for process in tree.processes:
        if differs(process, tree.agent_namespaces, "mnt"):
            continue  # its paths mean something else to us; it is refused for that alone
        for held in _held_by(process):
            path = held.path
            if known := found.get(path):
                found[path] = replace(
                    known,
                    writable=known.writable or held.writable,
                    append_only=known.append_only and held.append_only,
                    locked=known.locked or held.locked,
                )
                continue
            if path in problems:
                continue
            if _is_of_proc(path):
                if stranger := _stranger_of_proc(tree, held):
                    problems[path] = stranger
                continue
            look = looks.setdefault(path, files.look_at(path))
            fate = _judge_path(held, look)
            if isinstance(fate, Problem):
                if _has_let_go(held):
                    continue
                problems[path] = fate
            if fate is not Fate.NEEDED:
                continue
            if held.use is FileUse.MAPPED and stat.S_ISCHR(look.mode) and path not in MAPPABLE_DEVICES:
                problems[path] = Problem(
                    "device",
                    f"{process.name} maps the device {path}, which cannot be dumped.",
                    "Stop what uses the device, then migrate again.",
                )
                continue
            found[path] = FileFacts(
                path=path,
                use=held.use,
                size_bytes=look.size_bytes,
                mode=look.mode,
                build_id=files.content_id(path, look) if _is_code_or_data(held) else look.build_id,
                writable=held.writable,
                append_only=held.append_only,
                locked=held.locked,
            )
        for path in _watched_by(process):
            if path:
                found.setdefault(path, FileFacts(path, FileUse.WATCHED, mode=files.look_at(path).mode))
            else:
                problems.setdefault(str(process.pid), _unknown_watch(process))
    for directory in _socket_directories(tree):
        found.setdefault(directory, FileFacts(directory, FileUse.SOCKET_DIRECTORY, mode=files.look_at(directory).mode))
    return tuple(found.values()), tuple(problems.values())


def _held_by(process: ProcessSnapshot) -> Iterator[Held]:
    proc = PROC / str(process.pid)
    if process.executable:
        yield Held(process.executable, FileUse.EXECUTABLE, str(proc / "exe"), process)
    for mapping in process.mappings:
        if mapping.path.startswith("/") and not mapping.path.startswith(MEMORY_NAMES):
            proc_path = str(proc / "map_files" / f"{mapping.start:x}-{mapping.end:x}")
            writable = mapping.shared and "w" in mapping.permissions
            yield Held(mapping.path, FileUse.MAPPED, proc_path, process, writable)
    for descriptor in process.descriptors:
        if int(descriptor.info.get("mnt_id", "0")) not in {0, *process.mounts}:
            continue  # on no mount that has a path; `obstacles` refuses it
        if descriptor.link.startswith("/") and not descriptor.link.startswith((*MEMORY_NAMES, "/dev/pts/")):
            access = descriptor.flags & os.O_ACCMODE
            yield Held(
                descriptor.link,
                FileUse.OPEN,
                str(proc / "fd" / str(descriptor.number)),
                process,
                writable=access != os.O_RDONLY,
                append_only=access == os.O_WRONLY and bool(descriptor.flags & os.O_APPEND),
                locked="lock" in descriptor.info,
                mount=int(descriptor.info.get("mnt_id", "0")),
            )
    if process.working_directory and process.directory_mount in {0, *process.mounts}:
        yield Held(process.working_directory, FileUse.WORKING_DIRECTORY, str(proc / "cwd"), process)
    if process.root_directory != "/":
        yield Held(process.root_directory, FileUse.ROOT_DIRECTORY, str(proc / "root"), process)


def _is_of_proc(path: str) -> bool:
    # /proc/PID of the tree is there again when the tree is; of others, CRIU takes leave to remap dead ones.
    return path.startswith("/proc/") and path.split("/")[2].isdigit()


def _is_code_or_data(held: Held) -> bool:
    """Whether its pages are part of the program: those that it has not changed come from the destination's file."""
    return held.use in (FileUse.EXECUTABLE, FileUse.MAPPED) and not held.writable


def _stranger_of_proc(tree: TreeSnapshot, held: Held) -> Problem | None:
    pid = int(held.path.split("/")[2].removesuffix(DELETED_SUFFIX))
    if pid in tree.pids or not (PROC / str(pid)).exists():
        return None
    return Problem(
        "proc_of_stranger",
        f"{held.process.name} has {held.path} open: that process stays on this host.",
        "Monitoring programs do so; end it before, or migrate the tree that holds both.",
    )


def dead_of_proc(tree: TreeSnapshot) -> frozenset[int]:
    """Give the PIDs of ended processes of which something in /proc is open: CRIU makes them anew for a moment."""
    links = {descriptor.link for process in tree.processes for descriptor in process.descriptors}
    numbers = {int(link.split("/")[2]) for link in links if _is_of_proc(link)}
    return frozenset(number for number in numbers - tree.pids if not (PROC / str(number)).exists())


def _watched_by(process: ProcessSnapshot) -> list[str]:
    return [
        watches.path_of(watch, process.mounts)
        for descriptor in process.descriptors
        for watch in watches.parse(descriptor.watches)
    ]


def _unknown_watch(process: ProcessSnapshot) -> Problem:
    # criu/fsnotify.c, 4.2: "Can't find suitable path for handle", "Can't dump that handle"
    return Problem(
        "watch",
        f"{process.name} watches (inotify, fanotify) what has no path any more, or lies on a file system whose "
        "files cannot be found again (overlay, proc).",
        "Turn off watching in that program (for example its reloading of changed files), then migrate again.",
    )


class Fate(Enum):
    """What becomes of a held file that is no problem."""

    NEEDED = "its path leads to it, here and so on the destination"
    CARRIED = "it has no path any more; CRIU carries it in its images"


def _judge_path(held: Held, look: files.FileLook) -> Fate | Problem:
    """Say how a held file can get to the destination, in the order of check_path_remap (criu/files-reg.c, 4.2)."""
    try:
        itself = os.stat(held.proc_path)  # noqa: PTH116 -- follows a link of /proc, which is no path
    except OSError:  # closed meanwhile, or map_files without CAP_CHECKPOINT_RESTORE: only the name is known
        return Fate.CARRIED if held.path.endswith(DELETED_SUFFIX) and not look.exists else Fate.NEEDED
    plain = held.path.removesuffix(DELETED_SUFFIX)
    if itself.st_nlink == 0:
        size_bytes = itself.st_blocks * BLOCK_BYTES
        if not stat.S_ISREG(itself.st_mode) or size_bytes <= GHOST_LIMIT_BYTES:
            return Fate.CARRIED
        replaced = files.look_at(plain).exists
        return Problem(
            "deleted_file_too_big",
            f"{held.process.name} holds {plain}, which was {'replaced' if replaced else 'deleted'} and has "
            f"{format_bytes(size_bytes)}; a file without a path travels only up to {format_bytes(GHOST_LIMIT_BYTES)}.",
            "The program or a library was upgraded under it: restart it, then migrate."
            if replaced and held.use is not FileUse.OPEN
            else "Let the process close the file (a restart or a log rotation signal does), then migrate again.",
        )
    if _is_covered(held) and (not look.exists or itself.st_ino != look.inode):
        return Problem(
            "mount_covered",
            f"{held.process.name} holds {plain}, and another file system was mounted over it since.",
            f"Let the process close it, or unmount what lies over it (`findmnt --target {plain}`).",
        )
    if not look.exists:
        return Problem(
            "deleted_file_linked",
            f"{held.process.name} holds {plain}, whose name was removed while another hard link to it is left.",
            "Let the process close the file, or give it its name back with `ln`, then migrate again.",
        )
    if held.use in ON_THE_PATH and (itself.st_ino, itself.st_dev) != (look.inode, look.device):
        return Problem(
            "file_replaced",
            f"{held.process.name} holds {plain}, but that path now leads to another file.",
            "Let the process open the file again (a restart or a log rotation signal does), then migrate again.",
        )
    return Fate.NEEDED


def _has_let_go(held: Held) -> bool:
    """Whether the number of a descriptor has become that of another file since it was looked at, or of none."""
    try:
        return held.use is FileUse.OPEN and str(Path(held.proc_path).readlink()) != held.path
    except OSError:
        return True


def _is_covered(held: Held) -> bool:
    mount = held.process.mounts.get(held.mount)
    return mount is not None and files.look_at(mount.mount_point).device != mount.device


def _socket_directories(tree: TreeSnapshot) -> list[str]:
    names = {tree.unix[inode].name for inode in socket_inodes(tree) if inode in tree.unix}
    return sorted({str(PurePosixPath(name).parent) for name in names if name.startswith("/")})


def socket_inodes(tree: TreeSnapshot) -> dict[int, tuple[ProcessSnapshot, int]]:
    """Give every socket of the tree by inode, with the first process that holds it and the descriptor's number."""
    found: dict[int, tuple[ProcessSnapshot, int]] = {}
    for process in tree.processes:
        for descriptor in process.descriptors:
            if stat.S_ISSOCK(descriptor.look.st_mode):
                found.setdefault(descriptor.look.st_ino, (process, descriptor.number))
    return found


def connections_of(tree: TreeSnapshot) -> tuple[ConnectionFacts, ...]:
    """Give every TCP and UDP socket of the tree once, however many processes share it."""
    return tuple(as_connection(tree.internet[inode]) for inode in socket_inodes(tree) if inode in tree.internet)


def unaccepted_of(facts: WorkloadFacts, *, closing: bool = False) -> tuple[ConnectionFacts, ...]:
    """Give the connections to its listening sockets that it has not accepted. Blocks; of a tree that ends, none.

    With `closing`, and of a tree with a network namespace of its own, in which nobody else is: those too that it has.
    """
    listening = {(each.local_port, each.local_address) for each in facts.connections if each.state == "listen"}
    closing = closing and facts.has_own_network
    try:
        waiting = unaccepted_sockets(facts.root_pid) if listening else ()
        found = internet_sockets(facts.root_pid).values() if closing else ()
    except OSError:
        return ()
    places = ("0.0.0.0", "::")
    unaccepted = (
        as_connection(each)
        for each in waiting
        if any((each.local_port, place) in listening for place in (each.local_address, *places))
    )
    held = (as_connection(each) for each in found if each.protocol == "tcp" and each.remote_port)
    return (*unaccepted, *(each for each in held if not ip_address(each.local_address).is_loopback))


def as_connection(each: InternetSocket) -> ConnectionFacts:
    """Give a socket as preflight compares it."""
    return ConnectionFacts(
        protocol=each.protocol,
        state=each.state,
        local_address=each.local_address,
        local_port=each.local_port,
        remote_address=each.remote_address,
        remote_port=each.remote_port,
        unaccepted=each.waiting if each.protocol == "tcp" and each.state == "listen" else 0,
    )


def helper_ids_of(tree: TreeSnapshot) -> tuple[int, ...]:
    """Give the numbers that CRIU takes for a moment, for leaders and processes that are gone (criu/pstree.c, 4.2)."""
    needed = {number for process in tree.processes for number in (process.stat.session_id, process.stat.group_id)}
    # The root's own come from whoever restores it, where their leaders are not in the tree (--shell-job).
    outside = {tree.root.stat.session_id, tree.root.stat.group_id}
    return tuple(sorted((needed - outside - tree.pids - {0}) | dead_of_proc(tree)))


def addresses_of_others(tree: TreeSnapshot) -> tuple[str, ...]:
    """Give the addresses that sockets of other processes of this host use by name."""
    mine = socket_inodes(tree)
    found = {each.local_address for inode, each in tree.internet.items() if inode not in mine}
    return tuple(sorted(each for each in found if not ip_address(each).is_unspecified))


def unix_names_of(tree: TreeSnapshot) -> tuple[str, ...]:
    """Give the names that Unix sockets of the tree are bound to; those without a path are of a network namespace."""
    names = {tree.unix[inode].name for inode in socket_inodes(tree) if inode in tree.unix} - {""}
    return tuple(sorted(name for name in names if not (tree.has_own_network and name.startswith("@"))))


def bound_devices_of(tree: TreeSnapshot) -> tuple[str, ...]:
    """Give the network devices that a socket of the tree is bound to."""
    found: set[str] = set()
    for process in tree.processes:
        numbers = [each.number for each in process.descriptors if each.look.st_ino in tree.internet]
        if not numbers:
            continue
        try:
            with sockets_of(process.pid) as sockets:
                found |= {sockets.device(number) for number in numbers}
        except OSError:  # ended meanwhile
            continue
    return tuple(sorted(found - {""}))


def memory_bytes_of(tree: TreeSnapshot) -> int:
    """Say how much memory CRIU will dump.

    Of each process what is anonymous (copied file pages included), resident or swapped; shared anonymous memory (shared
    mappings without a file, memfd, SysV) once for each object. Never less than what is dumped while the tree stands
    still: pages that two processes still share after a fork are counted, and dumped, for each (criu/mem.c, 4.2).
    """
    private = 0
    objects: dict[tuple[int, int], int] = {}  # what the kernel has allocated for each, where it tells
    mapped: dict[tuple[int, int], int] = {}  # where it does not: the sum of what each process has of it ...
    extents: dict[tuple[int, int], int] = {}  # ... but no more than the most that one process maps of it
    for process in tree.processes:
        spans: dict[tuple[int, int], int] = {}
        for mapping in process.mappings:
            private += mapping.anonymous_bytes
            if mapping.shared and mapping.path.startswith(MEMORY_NAMES):
                key = (mapping.device, mapping.inode)
                mapped[key] = mapped.get(key, 0) + mapping.resident_bytes + mapping.swap_bytes + mapping.hugetlb_bytes
                spans[key] = spans.get(key, 0) + mapping.end - mapping.start
                if key not in objects and (allocated := _allocated_bytes(process, mapping)) is not None:
                    objects[key] = allocated
            elif not mapping.shared:
                private += mapping.swap_bytes + mapping.hugetlb_bytes
        for key, span in spans.items():
            extents[key] = max(span, extents.get(key, 0))
        for descriptor in process.descriptors:
            if descriptor.link.startswith("/memfd:"):
                look = descriptor.look
                objects.setdefault((look.st_dev, look.st_ino), look.st_blocks * BLOCK_BYTES)
    guessed = {key: min(size, extents[key]) for key, size in mapped.items()}
    unattached = sum(each.resident_bytes for each in tree.segments if not each.attached)
    return private + unattached + sum((guessed | objects).values())


def _allocated_bytes(process: ProcessSnapshot, mapping: Mapping) -> int | None:
    try:
        look = (PROC / str(process.pid) / "map_files" / f"{mapping.start:x}-{mapping.end:x}").stat()
    except OSError:  # gone meanwhile, or without CAP_CHECKPOINT_RESTORE: a guess has to do
        return None
    return look.st_blocks * BLOCK_BYTES
