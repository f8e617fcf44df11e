"""What `system` reads for preflight: against the kernel of this machine, and against texts of others."""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import threading
from pathlib import Path

import pytest

from phaul.system import files, procfs, sockets, sysv, watches
from phaul.system.borrowed import sockets_of
from phaul.system.kernel import kernel_facts, parse_cpu_features
from phaul.system.sharing import Shared, differs, is_shared, kernel_compares

LIBC = ctypes.CDLL(None, use_errno=True)


def test_processor_features_leave_out_what_is_the_kernels_own() -> None:
    assert parse_cpu_features("flags\t\t: fpu sse2 avx hypervisor ibrs constant_tsc\n") == ("avx", "sse2")
    assert parse_cpu_features("Features\t: fp asimd sve\n") == ("asimd", "fp", "sve")
    assert parse_cpu_features("") == ()


def test_this_kernel_tells_its_limits() -> None:
    facts = kernel_facts()
    assert facts["max_pid"] > os.getpid() and facts["max_mappings"] > 1000 and facts["max_open_files"] > 1000
    assert facts["cpu_features"]


def test_threads_share_and_processes_do_not() -> None:
    assert kernel_compares()
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    tid = thread.native_id or 0
    try:
        assert is_shared(Shared.MEMORY, os.getpid(), tid) and not differs(Shared.DESCRIPTORS, os.getpid(), tid)
        assert not is_shared(Shared.MEMORY, os.getpid(), os.getppid())
        assert differs(Shared.DIRECTORIES, os.getpid(), os.getppid())
        assert not is_shared(Shared.MEMORY, os.getpid(), 0) and not differs(Shared.MEMORY, os.getpid(), 0)
    finally:
        done.set()
        thread.join()


def test_mounts() -> None:
    text = (
        "36 35 98:0 / /mnt\\040a rw,noatime shared:1 master:2 - ext3 /dev/root rw\n37 35 0:5 / /dev rw - tmpfs t rw\n"
    )
    found = procfs.parse_mounts(text)
    assert found[36] == procfs.MountEntry(os.makedev(98, 0), "/mnt a", "ext3") and found[37].kind == "tmpfs"
    assert procfs.mount_of(os.getpid(), "cwd") in procfs.read_mounts(os.getpid())


def test_a_watch_leads_to_its_path(tmp_path: Path) -> None:
    number = LIBC.inotify_init1(os.O_CLOEXEC)
    assert LIBC.inotify_add_watch(number, os.fsencode(tmp_path), 0x100) > 0
    try:
        (descriptor,) = (each for each in procfs.read_descriptors(os.getpid()) if each.number == number)
        (watch,) = watches.parse(descriptor.watches)
        # On an overlay the handle leads nowhere, as CRIU finds too.
        assert watches.path_of(watch, procfs.read_mounts(os.getpid())) in (str(tmp_path), "")
    finally:
        os.close(number)
    assert watches.parse(("fanotify flags:0 event-flags:0",)) == ()
    (mount,) = watches.parse(("fanotify mnt_id:12 mflags:0 mask:20 ignored_mask:0",))
    assert mount.mount_id == 0x12 and watches.path_of(mount, {}) == ""


def test_locks_of_others_are_seen(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("content")
    assert not files.is_locked(path) and not files.is_locked(tmp_path / "missing") and not files.is_locked(tmp_path)
    with path.open("r+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert files.is_locked(path)
        fcntl.flock(held, fcntl.LOCK_UN)
        assert not files.is_locked(path)
        fcntl.fcntl(held, 37, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 2, 3, 0))  # F_OFD_SETLK
        assert files.is_locked(path)


def test_what_has_ended_and_is_not_reaped_has_no_mounts() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(ProcessLookupError):
            procfs.read_mounts(pid)
    finally:
        os.waitpid(pid, 0)


def test_contents_are_told_apart(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_text("1111")
    other.write_text("2222")
    ids = {files.content_id(path, files.look_at(path)) for path in (one, other)}
    assert len(ids) == 2 and all(each.startswith(files.HASH_PREFIX) for each in ids)
    assert files.content_id(tmp_path, files.look_at(tmp_path)) == ""


def test_sockets_are_looked_at_through_a_duplicate() -> None:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    plain = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with near, far, plain, sockets_of(os.getpid()) as looking:
        far.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        assert not looking.holds_credentials(far.fileno())
        near.send(b"x")
        assert looking.holds_credentials(far.fileno()) and not looking.holds_credentials(near.fileno())
        assert far.recv(9) == b"x"
        assert not looking.has_bpf_filter(plain.fileno()) and looking.device(plain.fileno()) == ""
        code = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0xFFFF))
        plain.setsockopt(socket.SOL_SOCKET, 26, struct.pack("H6xQ", 1, ctypes.addressof(code)))
        assert not looking.has_bpf_filter(plain.fileno()), "a classic filter travels"
        assert not looking.in_group(plain.fileno(), "239.1.2.3", "lo")
        assert not looking.has_bpf_filter(10**6) and looking.device(10**6) == ""


def test_tables_of_the_network() -> None:
    netlink = (
        "sk Eth Pid Groups Rmem Wmem Dump Locks Drops Inode\n00 0 12 00000000 0 0 0 2 0 17\n00 4 1 0 768 0 0 2 0 18\n"
    )
    assert sockets.parse_netlink(netlink) == {17: 0, 18: 768}
    igmp = "Idx\tDevice    : Count Querier\tGroup    Users Timer\tReporter\n2\teth0      :     2      V3\n\t\t\t\t"
    igmp += "030201EF     1 0:00000000\t\t0\n\t\t\t\t010000E0     1 0:00000000\t\t0\n"
    assert sockets.parse_groups(igmp) == (("239.1.2.3", "eth0"), ("224.0.0.1", "eth0"))


def test_system_v_shared_memory_is_read() -> None:
    LIBC.shmat.restype = ctypes.c_void_p
    number = LIBC.shmget(0, 5000, 0o1600)
    try:
        address = LIBC.shmat(number, None, 0)
        ctypes.memset(address, 7, 5000)
        LIBC.shmdt(ctypes.c_void_p(address))
        (segment,) = (each for each in sysv.segments() if each.number == number)
        assert (segment.size_bytes, segment.resident_bytes, segment.attached) == (5000, 8192, 0)
        attached = sysv.AttachedSegment(number)
        assert bytes(attached.read([(1000, 2), (4998, 4)])) == b"\7\7\7\7\0\0"
        assert len(attached.read([(8190, 4096)])) == 2
        attached.close()
        attached.close()
        assert [each.attached for each in sysv.segments() if each.number == number] == [0]
    finally:
        LIBC.shmctl(number, 0, None)
    with pytest.raises(OSError, match="cannot be attached"):
        sysv.AttachedSegment(number)


def test_system_v_tables() -> None:
    text = "       key      semid perms      nsems   uid\n         0          3   600          1     0\n"
    assert sysv.rows(text) == [{"key": 0, "semid": 3, "perms": 600, "nsems": 1, "uid": 0}]
    assert sysv.rows("") == []
    number = LIBC.semget(0, 1, 0o1600)
    try:
        assert LIBC.semop(number, ctypes.create_string_buffer(struct.pack("Hhh", 0, 1, 0)), 1) == 0
        assert number in sysv.semaphores_used_by(frozenset([os.getpid()]))
        assert number not in sysv.semaphores_used_by(frozenset([1]))
    finally:
        LIBC.semctl(number, 0, 0)  # IPC_RMID
