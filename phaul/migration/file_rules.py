"""Which files of the destination would make CRIU's restore fail: missing, or not the same. Pure.

Called by `preflight` alone. The rules are those of open_path and validate_file in criu/files-reg.c, 4.2: every path is
opened as it was; type and permission bits must be equal for files, directories and devices alike; the size for
regular files, unless held by O_WRONLY|O_APPEND alone; the build ID where both have one. phaul is stricter in one point:
a program that lost its build ID is another program.
"""

from __future__ import annotations

import shlex
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from phaul.migration.facts import FileFacts, FileUse, Problem, Severity
from phaul.units import format_bytes

LISTED_FILES = 3
USES = {
    FileUse.EXECUTABLE: "its program",
    FileUse.MAPPED: "mapped",
    FileUse.OPEN: "open",
    FileUse.WORKING_DIRECTORY: "its working directory",
    FileUse.ROOT_DIRECTORY: "its root directory",
    FileUse.SOCKET_DIRECTORY: "with a socket of it inside",
    FileUse.WATCHED: "watched",
}
KINDS = {
    stat.S_IFREG: "a regular file",
    stat.S_IFDIR: "a directory",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
}
# Made anew by each kernel: nothing can be copied there.
KERNEL_FILE_SYSTEMS = ("/proc/", "/sys/", "/dev/")
KERNEL_MADE = ("/proc/", "/sys/")
POSIX_MEMORY = "/dev/shm/"  # shm_overview(7)
ONLY_THERE = (FileUse.SOCKET_DIRECTORY, FileUse.WATCHED)  # whatever its mode
WARNINGS = ("log_size", "file_content")


def perhaps_changed(held: Sequence[FileFacts], there: Iterable[FileFacts]) -> tuple[FileFacts, ...]:
    """Give the open files whose difference may be but this: the workload wrote between the looks of the two hosts."""
    seen = {file.path: file for file in there}
    return tuple(
        file
        for file in held
        if file.use is FileUse.OPEN
        and stat.S_ISREG(file.mode)
        and (other := seen.get(file.path))
        and (not other.exists or (file.writable and other.size_bytes != file.size_bytes))
    )


def as_changed(
    held: Sequence[FileFacts], there: Iterable[FileFacts], later: Iterable[FileFacts]
) -> tuple[FileFacts, ...]:
    """
    Judge nothing by a file that has changed here while the destination looked at it: both see the same one.

    Args:
        held: as they looked here before.
        later: those of them that `perhaps_changed`, as they look here afterwards.

    Returns:
        `held`, with the size that the destination saw where it lies between the two that were seen here, and without
        what is gone from both hosts by now.
    """
    seen, now = {file.path: file for file in there}, {file.path: file for file in later}
    found: list[FileFacts] = []
    for file in held:
        other, after = seen.get(file.path), now.get(file.path)
        if other is None or after is None:
            found.append(file)
        elif other.exists and after.exists:
            least, most = sorted((file.size_bytes, after.size_bytes))
            found.append(replace(file, size_bytes=other.size_bytes) if least <= other.size_bytes <= most else file)
        elif other.exists or after.exists:
            found.append(file)
    return tuple(found)


def file_problems(held: Sequence[FileFacts], there: Iterable[FileFacts], host: str) -> tuple[Problem, ...]:
    """
    Compare what the workload holds with what the destination has.

    Args:
        held: as they look on the source.
        there: as they look on the destination, found by path; a path it did not answer for counts as missing.
        host: the destination's name, for the messages.

    Returns:
        One problem for each kind of difference, naming the first files.
    """
    seen = {file.path: file for file in there}
    differing: dict[str, list[tuple[FileFacts, str]]] = {}
    for file in held:
        for code, words in _differences(file, seen.get(file.path)):
            differing.setdefault(code, []).append((file, words))
    return tuple(_fold(code, found, host) for code, found in differing.items())


def _differences(file: FileFacts, other: FileFacts | None) -> Iterator[tuple[str, str]]:
    """Give what CRIU would stumble over first for one file: a code, and the difference in words."""
    if other is None or not other.exists:
        yield "file_missing", USES[file.use]
        return
    if stat.S_IFMT(file.mode) != stat.S_IFMT(other.mode):
        yield "file_type", f"{_kind(other.mode)} there, {_kind(file.mode)} here"
        return
    if stat.S_IMODE(file.mode) != stat.S_IMODE(other.mode) and file.use not in ONLY_THERE:
        yield "file_mode", f"{stat.S_IMODE(other.mode):04o} there, {stat.S_IMODE(file.mode):04o} here"
    if not stat.S_ISREG(file.mode) or file.use is FileUse.WATCHED:
        return
    if file.locked and other.locked:
        yield "file_locked", "locked"
    if file.size_bytes != other.size_bytes:
        words = f"{_size(other.size_bytes)} there, {_size(file.size_bytes)} here"
        yield ("log_size" if file.append_only else "file_size"), words
    elif file.build_id.startswith("content "):
        if file.build_id != other.build_id:
            yield "file_differs", "the same size, another content"
    elif file.build_id != other.build_id:
        yield "file_build_id", f"{_short(other.build_id)} there, {_short(file.build_id)} here"
    elif file.writable and not file.append_only and not file.path.startswith(KERNEL_MADE):
        yield "file_content", "mapped" if file.use is FileUse.MAPPED else "open for writing"


def _fold(code: str, found: list[tuple[FileFacts, str]], host: str) -> Problem:
    named = ", ".join(f"{file.path} ({words})" for file, words in found[:LISTED_FILES])
    if len(found) > LISTED_FILES:
        named += f" and {len(found) - LISTED_FILES} more"
    many = len(found) > 1
    files = [file for file, _ in found]
    if code == "file_missing":
        message = f"{'Paths' if many else 'A path'} that the workload uses {'are' if many else 'is'} missing on {host}"
    elif code == "file_type":
        message = f"{'Paths' if many else 'A path'} of the workload {'are' if many else 'is'} of another type on {host}"
    elif code == "file_mode":
        message = f"{'Paths' if many else 'A path'} of the workload {'have' if many else 'has'} another mode on {host}"
    elif code == "file_build_id":
        message = f"{'Programs' if many else 'A program'} or library of the workload is another build on {host}"
    elif code == "file_differs":
        message = (
            f"{'Files' if many else 'A file'} that the workload has mapped {'differ' if many else 'differs'} on {host}"
        )
    elif code == "file_locked":
        message = (
            f"{'Files' if many else 'A file'} that the workload has locked {'are' if many else 'is'} locked on {host}"
        )
    elif code == "log_size":
        message = f"{'Logs' if many else 'A log'} of the workload will go on in another file on {host}"
    elif code == "file_content":
        message = f"The workload writes to {'files' if many else 'a file'} whose content does not travel with it"
    else:
        message = f"{'Files' if many else 'A file'} of the workload {'have' if many else 'has'} another size on {host}"
    severity = Severity.WARNS if code in WARNINGS else Severity.REFUSES
    return Problem(code, f"{message}: {named}.", _hint(code, files, host), severity)


def _hint(code: str, files: list[FileFacts], host: str) -> str:
    """Say what to do about the first few; a command where one does it."""
    paths = [file.path for file in files]
    copyable = [path for path in paths if not path.startswith(KERNEL_FILE_SYSTEMS) or path.startswith(POSIX_MEMORY)]
    if code == "log_size":
        return (
            "Nothing is lost: what was written so far stays on the source. Use shared storage to have it in one file."
        )
    if code == "file_content":
        return (
            f"Make sure that it lies on storage that this host and {host} both mount; else {host} has other data in it."
        )
    if code == "file_locked":
        return (
            f"If {host} has files of its own there, end who holds the lock (`lslocks` on {host}). On storage that both "
            "hosts share the lock is the workload's own, and it cannot move while it holds it."
        )
    if code == "file_missing" and paths[0].startswith(POSIX_MEMORY):
        return (
            "Memory with a name in /dev/shm does not travel: configure another kind (PostgreSQL: "
            "dynamic_shared_memory_type = sysv), and start it in an IPC namespace of its own (`unshare --ipc`)."
        )
    if not copyable:
        return f"That path belongs to the kernel: look whether {host} has the same driver, device or module."
    quoted = " ".join(shlex.quote(path) for path in copyable[:LISTED_FILES])
    more = " (and the others)" if len(copyable) > LISTED_FILES else ""
    if code == "file_mode":
        modes = {path: file.mode for file, path in zip(files, paths, strict=True)}
        first = copyable[0]
        rest = " and so on" if len(copyable) > 1 else ""
        return f"On {host}: `chmod {stat.S_IMODE(modes[first]):04o} {shlex.quote(first)}`{rest}."
    if code == "file_missing" and all(stat.S_ISDIR(file.mode) for file in files):
        return f"On {host}: `mkdir -p {quoted}`{more}, with owner and mode as here."
    if code == "file_build_id" or any(file.use in (FileUse.EXECUTABLE, FileUse.MAPPED) for file in files):
        return f"Install the same version of the packages on both hosts; or `rsync -aR {quoted} {host}:/`{more}."
    if any(file.writable for file in files):
        return (
            f"The workload writes there: put it on storage that both hosts mount, or stop the writing and "
            f"`rsync -aR {quoted} {host}:/`{more}."
        )
    return f"Copy it: `rsync -aR {quoted} {host}:/`{more}; or put it on storage that both hosts mount."


def _kind(mode: int) -> str:
    return KINDS.get(stat.S_IFMT(mode), "something else")


def _size(count: int) -> str:
    """Exact, with a rounded one beside it where that reads better."""
    return f"{count} bytes" if count < 10_000 else f"{count} bytes = {format_bytes(count)}"


def _short(build_id: str) -> str:
    return f"build {build_id[:12]}" if build_id else "no build ID"
