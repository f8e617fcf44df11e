"""What the kernel tells of processes through ``/proc``: pure parsers, and thin readers that call them.

Called by `workloads`. Reads only: it never opens a file that a process holds, never signals and never attaches. Every
function blocks for as long as the kernel takes (walking the memory of a big tree takes 10 ms a GiB and more), so that
asynchronous callers go through a thread. A process that is gone or not ours raises the plain `OSError` of the read.
"""

# ruff: noqa: PTH115, PTH116, PTH208 -- links of /proc are no paths ("pipe:[7]"), and tens of thousands are read at once

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
KERNEL_THREAD_FLAG = 0x0020_0000  # PF_KTHREAD of include/linux/sched.h, unchanged since Linux 2.6.32
DELETED_SUFFIX = " (deleted)"  # d_path() appends it to the name of a file without one
_KIB = 1024
_MAPPING_LINE = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) ([rwxsp-]{4}) [0-9a-f]+ ([0-9a-f]+):([0-9a-f]+) (\d+) *(.*)$")


@dataclass(frozen=True, slots=True)
class ProcessStat:
    """``/proc/PID/stat``, the fields phaul uses (proc_pid_stat(5))."""

    pid: int
    command: str  # the name of the main thread, at most 15 bytes
    state: str  # one letter: R S D T t Z X I
    parent_pid: int
    group_id: int
    session_id: int
    terminal: int  # device number of the controlling terminal, 0 for none; see `terminal_device`
    flags: int
    start_ticks: int  # clock ticks after boot
    policy: int = 0  # scheduling policy: 0 other, 1 FIFO, 2 round robin, 3 batch, 5 idle, 6 deadline, 7 extensible

    @property
    def is_kernel_thread(self) -> bool:
        """Whether it runs kernel code only."""
        return bool(self.flags & KERNEL_THREAD_FLAG)

    @property
    def is_dead(self) -> bool:
        """Whether it has ended and only waits to be reaped."""
        return self.state in "ZX"


@dataclass(frozen=True, slots=True)
class Mapping:
    """One entry of ``/proc/PID/smaps``; all sizes in bytes."""

    start: int
    end: int
    permissions: str  # e.g. "rw-p"; the last letter tells shared from private
    device: int  # st_dev of the mapped file, 0 for none
    inode: int
    path: str  # "" for anonymous memory, "[heap]" and the like, or a path
    resident_bytes: int = 0
    anonymous_bytes: int = 0
    swap_bytes: int = 0
    hugetlb_bytes: int = 0
    filled_in: bool = False  # what is missing of it another process puts in place (userfaultfd)

    @property
    def shared(self) -> bool:
        """Whether writes are seen by everyone who maps it."""
        return self.permissions.endswith("s")


@dataclass(frozen=True, slots=True)
class Descriptor:
    """One open file of a process. `look` is that of the file itself, not of the path it was opened by."""

    number: int
    link: str  # what ``/proc/PID/fd/N`` points to
    look: os.stat_result
    info: dict[str, str]  # ``/proc/PID/fdinfo/N``: the first value of each key
    protocol: str = ""  # of a socket: the kernel's name, "TCP", "MPTCPv6", "UNIX-STREAM", ...; "" when not known
    watches: tuple[str, ...] = ()  # of an inotify or fanotify: the lines of fdinfo that name what is watched

    @property
    def flags(self) -> int:
        """The open flags (O_APPEND, O_ACCMODE, ...)."""
        return int(self.info.get("flags", "0"), 8)


def parse_stat(text: str) -> ProcessStat:
    """Read ``/proc/PID/stat``. The command may hold spaces and parentheses, so it ends at the last one."""
    head, _, tail = text.rpartition(")")
    pid, _, command = head.partition(" (")
    fields = tail.split()
    return ProcessStat(
        pid=int(pid),
        command=command,
        state=fields[0],
        parent_pid=int(fields[1]),
        group_id=int(fields[2]),
        session_id=int(fields[3]),
        terminal=int(fields[4]),
        flags=int(fields[6]),
        start_ticks=int(fields[19]),
        policy=int(fields[38]) if len(fields) > 38 else 0,
    )


def parse_keys(text: str) -> dict[str, str]:
    """Read lines of ``key:<space>value`` (status, fdinfo, meminfo); of a repeated key the first counts."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        key, separator, value = line.partition(":")
        if separator:
            found.setdefault(key.strip(), value.strip())
    return found


def parse_smaps(text: str) -> tuple[Mapping, ...]:
    """Read ``/proc/PID/smaps`` (or ``maps``, whose sizes then are 0), lowest address first."""
    found: list[Mapping] = []
    head: re.Match[str] | None = None
    sizes: dict[str, int] = {}
    for line in text.splitlines():
        if start := _MAPPING_LINE.match(line):
            if head:
                found.append(_mapping(head, sizes))
            head, sizes = start, {}
        else:
            key, _, value = line.partition(":")
            number = value.removesuffix(" kB").strip()
            if number.isdigit():
                sizes[key] = int(number) * _KIB
            elif key == "VmFlags":
                sizes[key] = "um" in value.split()
    if head:
        found.append(_mapping(head, sizes))
    return tuple(found)


def _mapping(head: re.Match[str], sizes: dict[str, int]) -> Mapping:
    start, end, permissions, major, minor, inode, path = head.groups()
    return Mapping(
        start=int(start, 16),
        end=int(end, 16),
        permissions=permissions,
        device=os.makedev(int(major, 16), int(minor, 16)),
        inode=int(inode),
        path=path.replace("\\012", "\n"),  # the only character that the kernel escapes here (show_map_vma)
        resident_bytes=sizes.get("Rss", 0),
        anonymous_bytes=sizes.get("Anonymous", 0),
        swap_bytes=sizes.get("Swap", 0),
        hugetlb_bytes=sizes.get("Private_Hugetlb", 0) + sizes.get("Shared_Hugetlb", 0),
        filled_in=bool(sizes.get("VmFlags")),
    )


@dataclass(frozen=True, slots=True)
class MountEntry:
    """One line of ``/proc/PID/mountinfo``."""

    device: int  # st_dev of what lies on it
    mount_point: str
    kind: str  # "ext4", "overlay", ...


def parse_mounts(text: str) -> dict[int, MountEntry]:
    """Read ``/proc/PID/mountinfo``, by mount ID; what `proc_pid_mountinfo(5)` escapes is put back."""
    found: dict[int, MountEntry] = {}
    for line in text.splitlines():
        fields = line.split(" ")
        major, _, minor = fields[2].partition(":")
        point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[4])
        kind = fields[fields.index("-") + 1]
        found[int(fields[0])] = MountEntry(os.makedev(int(major), int(minor)), point, kind)
    return found


def read_mounts(pid: int) -> dict[int, MountEntry]:
    """Read the mounts of a process's mount namespace that it can reach from its root, by mount ID."""
    try:
        return parse_mounts((PROC / str(pid) / "mountinfo").read_text(errors="surrogateescape"))
    except OSError as error:
        if error.errno == errno.EINVAL:  # it has ended: mounts_open_common, fs/proc_namespace.c
            raise ProcessLookupError(error.errno, error.strerror, error.filename) from error
        raise


def terminal_device(number: int) -> tuple[int, int]:
    """Split the terminal of `ProcessStat` into major and minor: bits 15-8, and 31-20 with 7-0 (proc_pid_stat(5))."""
    return number >> 8 & 0xFF, (number >> 12 & 0xFFF00) | number & 0xFF


def all_pids() -> list[int]:
    """Give every process of this PID namespace, ascending."""
    return sorted(int(name) for name in os.listdir(PROC) if name.isdigit())


def read_stat(pid: int) -> ProcessStat:
    """Read ``/proc/PID/stat``; `FileNotFoundError` or `ProcessLookupError` when there is no such process."""
    return parse_stat((PROC / str(pid) / "stat").read_text(errors="surrogateescape"))


def read_status(pid: int) -> dict[str, str]:
    """Read ``/proc/PID/status``, e.g. ``TracerPid`` and ``Uid`` (real, effective, saved, file system)."""
    return parse_keys((PROC / str(pid) / "status").read_text(errors="surrogateescape"))


def read_title(pid: int) -> str:
    """Give the first word of the command line, which a process may have written over with what it does."""
    return (PROC / str(pid) / "cmdline").read_text(errors="surrogateescape").partition("\0")[0]


def read_smaps(pid: int) -> tuple[Mapping, ...]:
    """Read every mapping with what of it is in memory or swapped."""
    return parse_smaps((PROC / str(pid) / "smaps").read_text(errors="surrogateescape"))


def read_maps(pid: int) -> tuple[Mapping, ...]:
    """Read every mapping, its sizes left out: costs little also for a process with much memory."""
    return parse_smaps((PROC / str(pid) / "maps").read_text(errors="surrogateescape"))


def read_syscall(pid: int, tid: int) -> str:
    """Read what a thread waits for in the kernel, and from where it went there: proc_pid_syscall(5)."""
    return (PROC / str(pid) / "task" / str(tid) / "syscall").read_text()


def read_namespaces(pid: int) -> dict[str, int]:
    """Give the inode of each namespace a process is in, by its name under ``/proc/PID/ns``.

    0 stands for one that is there only once a child is (``pid_for_children`` after unshare: pid_namespaces(7)).
    """
    return _namespaces(PROC / str(pid) / "ns")


def read_thread_namespaces(pid: int, tid: int) -> dict[str, int]:
    """Give the namespaces of one thread, which may be others than those of its process."""
    return _namespaces(PROC / str(pid) / "task" / str(tid) / "ns")


def _namespaces(folder: Path) -> dict[str, int]:
    found: dict[str, int] = {}
    for name in os.listdir(folder):
        try:
            found[name] = os.stat(folder / name).st_ino
        except FileNotFoundError:
            found[name] = 0
    return found


def read_thread_stat(pid: int, tid: int) -> ProcessStat:
    """Read the stat of one thread."""
    return parse_stat((PROC / str(pid) / "task" / str(tid) / "stat").read_text(errors="surrogateescape"))


def read_personality(pid: int) -> int:
    """Give the personality(2) of a process, 0 for the usual one."""
    return int((PROC / str(pid) / "personality").read_text(), 16)


def read_security_label(pid: int) -> str:
    """Give the profile or context that an LSM keeps a process in, "" where there is none."""
    try:
        label = (PROC / str(pid) / "attr" / "current").read_text(errors="surrogateescape").strip("\0\n ")
    except OSError:  # no LSM that labels processes
        return ""
    return "" if label.startswith(("unconfined", "kernel")) else label


def read_open_files_limit(pid: int) -> int:
    """Give the hard limit of open files of a process."""
    for line in (PROC / str(pid) / "limits").read_text().splitlines():
        if line.startswith("Max open files"):
            hard = line.split()[-2]
            return int(hard) if hard.isdigit() else 0
    return 0


def mount_of(pid: int, name: str) -> int:
    """Give the ID of the mount on which ``cwd`` or ``root`` of a process lies."""
    descriptor = os.open(PROC / str(pid) / name, os.O_PATH | os.O_CLOEXEC)
    try:
        return int(parse_keys((PROC / "self" / "fdinfo" / str(descriptor)).read_text())["mnt_id"])
    finally:
        os.close(descriptor)


def read_link(pid: int, name: str) -> str:
    """Give where ``exe``, ``cwd`` or ``root`` of a process points to."""
    return os.readlink(PROC / str(pid) / name)


def thread_ids(pid: int) -> tuple[int, ...]:
    """Give every thread of a process: its leader first, though numbers may have begun anew, then ascending."""
    return tuple(sorted(map(int, os.listdir(PROC / str(pid) / "task")), key=lambda tid: (tid != pid, tid)))


def walk_tree(root_pid: int) -> list[int]:
    """Give a process and all its descendants, parents before children.

    Complete only while the tree is stopped: a running parent that forks or reaps meanwhile may hide a child
    (proc_pid_task(5), ``children``). Raises when the root is gone; a descendant that ends meanwhile is left out.
    """
    found = [root_pid]
    for pid in found:  # grows while it is walked: breadth first
        try:
            tids = thread_ids(pid)
        except OSError:
            if pid == root_pid:
                raise
            continue
        for tid in tids:
            try:
                text = (PROC / str(pid) / "task" / str(tid) / "children").read_text()
            except OSError:  # the thread ended meanwhile; its children went to another thread of the process
                continue
            found.extend(child for child in map(int, text.split()) if child not in found)
    return found


def ancestors(pid: int) -> tuple[int, ...]:
    """Give a process and those it descends from, itself first, PID 1 (of this namespace) last."""
    found: list[int] = []
    while pid > 0:
        found.append(pid)
        pid = read_stat(pid).parent_pid
    return tuple(found)


def read_descriptors(pid: int) -> Iterator[Descriptor]:
    """Give the open files of a process, lowest number first; one that is closed meanwhile is left out."""
    folder = PROC / str(pid) / "fd"
    for number in sorted(map(int, os.listdir(folder))):
        path = folder / str(number)
        try:
            link = os.readlink(path)
            look = os.stat(path)
            text = (PROC / str(pid) / "fdinfo" / str(number)).read_text(errors="surrogateescape")
        except FileNotFoundError:
            continue
        protocol = _protocol(path) if stat.S_ISSOCK(look.st_mode) else ""
        watching = link.startswith("anon_inode:") and "notify" in link
        watches = tuple(line for line in text.splitlines() if "notify " in line) if watching else ()
        yield Descriptor(number, link, look, parse_keys(text), protocol, watches)


def _protocol(path: Path) -> str:
    # sockfs answers with the name of the socket's struct proto (net/socket.c, since Linux 2.6.16). MPTCP cannot be
    # told from TCP in any other cheap way: the table of TCP sockets shows its first subflow with the same inode.
    try:
        return os.getxattr(path, "system.sockprotoname").rstrip(b"\0").decode(errors="replace")
    except OSError:
        return ""


def holders_of(links: frozenset[str], except_pids: frozenset[int]) -> dict[str, list[int]]:
    """Say which other processes hold a descriptor with one of these links ("pipe:[17]"), by link.

    Reads the descriptors of every process on this host, about 2 µs each; processes we may not look into are left out.
    """
    found: dict[str, list[int]] = {}
    if not links:
        return found
    for pid in all_pids():
        if pid in except_pids:
            continue
        folder = PROC / str(pid) / "fd"
        try:
            held = {_read_link_or_nothing(folder / name) for name in os.listdir(folder)}
        except OSError:  # ended meanwhile, or not ours to look into
            continue
        for link in held & links:
            found.setdefault(link, []).append(pid)
    return found


def _read_link_or_nothing(path: Path) -> str:
    try:
        return os.readlink(path)
    except OSError:  # closed meanwhile
        return ""


def taken_ids(ids: frozenset[int]) -> frozenset[int]:
    """Say which of these numbers cannot be given to a new process or thread here.

    A number is in use as long as it names a process, a thread, a process group or a session: the kernel keeps one
    ``struct pid`` for all four (kernel/pid.c), and `clone3` with ``set_tid`` then fails with EEXIST.
    """
    found = {number for number in ids if (PROC / str(number)).exists()}
    for pid in all_pids():
        try:
            process = read_stat(pid)
        except OSError:  # ended meanwhile
            continue
        found |= {process.group_id, process.session_id} & ids
    return frozenset(found)
