"""Looking at and holding real process trees: children of this test, which are only read, and killed at the end."""

from __future__ import annotations

import os
import pty
import socket
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from phaul.errors import PreflightError
from phaul.migration.facts import FileFacts, FileUse, WorkloadFacts
from phaul.system import procfs, sockets
from phaul.system.procfs import Descriptor
from phaul.system.sysv import Segment
from phaul.units import MIB
from phaul.workloads import holdings, obstacles, snapshot
from phaul.workloads.process import inspect, observe
from tests.unit.process_trees import Start


def codes(facts: WorkloadFacts) -> set[str]:
    return {problem.code for problem in facts.problems}


def test_a_plain_process_has_no_problem(start: Start, tmp_path: Path) -> None:
    child = start(
        """
        log = os.open('app.log', os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)
        data = open('data', 'w+'); data.write('12345'); data.flush()
        both = open('data')
        """
    )
    facts = inspect(child.pid)
    assert facts.problems == () and not facts.needs_shell_job and not facts.has_own_network
    (task,) = facts.tasks
    assert (task.pid, task.parent_pid, task.thread_ids) == (child.pid, os.getpid(), (child.pid,))
    assert (task.user_id, task.start_ticks) == (os.geteuid(), procfs.read_stat(child.pid).start_ticks)
    found = {file.path: file for file in facts.files}
    assert len(found) == len(facts.files)
    program = found[str(Path(sys.executable).resolve())]
    assert program.use is FileUse.EXECUTABLE and program.size_bytes == Path(sys.executable).stat().st_size
    log, data = found[str(tmp_path / "app.log")], found[str(tmp_path / "data")]
    assert log.writable and log.append_only and stat.S_IMODE(log.mode) == 0o640
    assert data.writable and not data.append_only and data.size_bytes == 5 and data.use is FileUse.OPEN
    assert found[str(tmp_path)].use is FileUse.WORKING_DIRECTORY
    assert stat.S_ISCHR(found["/dev/null"].mode)
    assert any(file.use is FileUse.MAPPED and "libc" in file.path and file.build_id for file in facts.files)


def test_a_tree_is_seen_whole_with_its_threads(start: Start) -> None:
    child = start(
        """
        for _ in range(3):
            if os.fork() == 0:
                if os.fork() == 0: time.sleep(600)
                time.sleep(600)
        threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
        def fork_and_wait():
            if os.fork() == 0: time.sleep(600)
            time.sleep(600)
        threading.Thread(target=fork_and_wait, daemon=True).start()
        time.sleep(0.3)
        """
    )
    facts = inspect(child.pid)
    assert len(facts.tasks) == 1 + 3 * 2 + 1 and facts.problems == ()
    assert facts.tasks[0].pid == child.pid and len(facts.tasks[0].thread_ids) == 3
    seen: set[int] = set()
    for task in facts.tasks:
        assert task.pid == child.pid or task.parent_pid in seen
        seen.add(task.pid)


@pytest.mark.parametrize(
    ("code", "megabytes"),
    [
        ("kept = bytearray(b'x') * (32 << 20)", 32),
        ("kept = mmap.mmap(-1, 64 << 20); kept.write(b'x' * (16 << 20))", 16),
        ("kept = mmap.mmap(-1, 32 << 20); kept.write(b'x' * (32 << 20)); os.fork()", 32),
        ("kept = os.memfd_create('m'); os.truncate(kept, 64 << 20); os.pwrite(kept, b'x' * (16 << 20), 0)", 16),
        ("kept = bytearray(b'x') * (32 << 20)\nif os.fork() == 0: time.sleep(600)", 64),
        ("f = open('f', 'w+b'); f.truncate(64 << 20); kept = mmap.mmap(f.fileno(), 0); kept[:] = b'x' * (64 << 20)", 0),
    ],
    ids=["private", "shared", "shared-by-two", "memfd", "private-after-fork", "file"],
)
def test_memory_is_what_will_be_dumped(start: Start, code: str, megabytes: int) -> None:
    processes = 2 if "fork" in code else 1
    facts = inspect(start(code).pid)
    slack = 14 * MIB * processes  # the interpreter itself: 6 MiB here, more in other builds
    assert megabytes * MIB <= facts.memory_bytes <= megabytes * MIB + slack


@pytest.mark.parametrize("told", [True, False], ids=["as the kernel tells", "as can be guessed without capabilities"])
def test_shared_memory_is_counted_once(start: Start, monkeypatch: pytest.MonkeyPatch, told: bool) -> None:
    if not told:
        monkeypatch.setattr(holdings, "_allocated_bytes", lambda *_: None)
    code = "kept = mmap.mmap(-1, 64 << 20)\nfor at in range(0, 64 << 20, 4096): kept[at] = 1\n"
    one = inspect(start(code).pid).memory_bytes
    four = inspect(start(code + "for _ in range(3):\n    if os.fork() == 0: break\nsum(kept[::4096])").pid).memory_bytes
    assert one >= 64 * MIB and four < one + 60 * MIB


def test_connections_are_listed_once(start: Start) -> None:
    child = start(
        """
        server = socket.create_server(('127.0.0.1', 0))
        ends = [socket.create_connection(server.getsockname()) for _ in range(2)]
        taken, _ = server.accept()
        datagrams = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); datagrams.bind(('::1', 0))
        if os.fork() == 0: time.sleep(600)
        """
    )
    facts = inspect(child.pid)
    assert facts.problems == ()
    found = sorted((each.protocol, each.state, each.unaccepted) for each in facts.connections)
    assert found == [("tcp", "established", 0)] * 3 + [("tcp", "listen", 1), ("udp", "close", 0)]


def test_the_directory_of_a_bound_unix_socket_is_needed(start: Start, tmp_path: Path) -> None:
    child = start(
        f"os.mkdir('run'); s = socket.socket(socket.AF_UNIX); s.bind({str(tmp_path / 'run/s')!r}); s.listen()"
    )
    facts = inspect(child.pid)
    (directory,) = [file for file in facts.files if file.use is FileUse.SOCKET_DIRECTORY]
    assert directory.path == str(tmp_path / "run") and stat.S_ISDIR(directory.mode)


def test_what_lies_wholly_within_the_tree_is_fine(start: Start) -> None:
    child = start(
        """
        import select
        kept = [os.pipe(), socket.socketpair(), select.epoll(), os.memfd_create('x'), os.pidfd_open(os.getpid())]
        os.mkfifo('fifo'); fifo = os.open('fifo', os.O_RDWR)
        gone = open('gone', 'w'); gone.write('x' * 1000); gone.flush(); os.unlink('gone')
        master, slave = os.openpty()
        status = open('/proc/self/status'); null = open('/dev/zero'); rng = open('/dev/urandom')
        if os.fork() == 0: time.sleep(600)
        """
    )
    facts = inspect(child.pid)
    assert facts.problems == ()
    assert not any(file.path.startswith(("/proc", "/dev/pts")) or "gone" in file.path for file in facts.files)


@pytest.mark.parametrize("end", [0, 1])
def test_a_pipe_to_someone_outside_is_refused(start: Start, end: int) -> None:
    ends = os.pipe()
    try:
        child = start("", pass_fds=(ends[end],))
        (problem,) = inspect(child.pid).problems
        assert problem.code == "pipe_leaves_tree"
        assert f"process {child.pid} (" in problem.message and f"process {os.getpid()} (" in problem.message
    finally:
        os.close(ends[0])
        os.close(ends[1])
    assert inspect(child.pid).problems == ()  # nobody holds the other end any more: nothing stays behind


def test_a_unix_socket_to_someone_outside_is_refused(start: Start) -> None:
    mine, theirs = socket.socketpair()
    with mine, theirs:
        child = start("", pass_fds=(theirs.fileno(),))
        theirs.close()
        (problem,) = inspect(child.pid).problems
        assert problem.code == "unix_socket_leaves_tree" and f"process {os.getpid()} (" in problem.message
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
        log.bind("\0phaul-test-log")
        child = start("s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); s.connect(b'\\0phaul-test-log')")
        (problem,) = inspect(child.pid).problems
        assert problem.code == "unix_socket_leaves_tree" and "@phaul-test-log" in problem.message


def test_a_terminal_is_refused(start: Start) -> None:
    master, slave = pty.openpty()
    try:
        name = os.ttyname(slave)
        open_only = inspect(start("", stdin=slave).pid)
        controlled = inspect(start(f"fd = os.open({name!r}, os.O_RDWR); os.close(fd)").pid)
    finally:
        os.close(master)
        os.close(slave)
    for facts in (open_only, controlled):
        (problem,) = facts.problems
        assert problem.code == "terminal" and name in problem.message and "setsid" in problem.hint


def test_a_process_in_someone_elses_session_needs_shell_job(start: Start) -> None:
    assert inspect(start("", session=False).pid).needs_shell_job


def test_deleted_files_go_up_to_what_criu_carries(start: Start) -> None:
    child = start(
        """
        big = open('big', 'w'); big.write('x' * (2 << 20)); big.flush(); os.unlink('big')
        sparse = open('sparse', 'w'); sparse.truncate(1 << 30); os.unlink('sparse')
        linked = open('linked', 'w'); os.link('linked', 'other'); os.unlink('linked')
        swapped = open('swapped', 'w'); os.link('swapped', 'kept'); os.rename('other', 'swapped')
        """
    )
    facts = inspect(child.pid)
    assert codes(facts) == {"deleted_file_too_big", "deleted_file_linked"}
    assert sorted(p.message.split("holds ")[1].split(",")[0].rsplit("/")[-1] for p in facts.problems) == [
        "big",
        "linked",
        "swapped",
    ]


def test_no_such_process_and_others_that_are_no_workload(start: Start, tmp_path: Path) -> None:
    child = start(
        "if os.fork() == 0: os._exit(0)\ntime.sleep(0.2)\nthreading.Thread(target=time.sleep, args=(600,)).start()"
    )
    zombie = procfs.walk_tree(child.pid)[1]
    thread = procfs.thread_ids(child.pid)[1]
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for pid, code in (
        (ended.pid, "no_such_process"),
        (0, "no_such_process"),
        (-1, "no_such_process"),
        (os.getpid(), "own_agent"),
        (1, "ancestor_of_agent"),
        (os.getppid(), "ancestor_of_agent"),
        (zombie, "zombie"),
        (thread, "thread"),
    ):
        with pytest.raises(PreflightError) as caught:
            inspect(pid)
        assert caught.value.detail.startswith(f"{code}: ") and caught.value.hint
    assert [task.pid for task in inspect(child.pid).tasks] == [child.pid, zombie]  # CRIU dumps zombies below the root


@pytest.mark.parametrize(
    ("link", "mode", "device", "protocol", "code"),
    [
        ("anon_inode:[io_uring]", stat.S_IFREG, 0, "", "io_uring"),
        ("anon_inode:[perf_event]", 0, 0, "", "descriptor_kind"),
        ("anon_inode:bpf-map", 0, 0, "", "descriptor_kind"),
        ("anon_inode:[fanotify]", 0, 0, "", None),
        ("anon_inode:[userfaultfd]", 0, 0, "", "descriptor_kind"),
        ("anon_inode:kvm-vm", 0, 0, "", "descriptor_kind"),
        ("/dmabuf:", stat.S_IFREG, 0, "", "descriptor_kind"),
        ("anon_inode:inotify", 0, 0, "", None),
        ("anon_inode:[eventfd]", 0, 0, "", None),
        ("anon_inode:[timerfd]", 0, 0, "", None),
        ("anon_inode:[pidfd]", 0, 0, "", None),
        ("mnt:[4026531832]", stat.S_IFREG, 0, "", "descriptor_kind"),
        ("socket:[5]", stat.S_IFSOCK, 0, "MPTCP", "mptcp_socket"),
        ("socket:[5]", stat.S_IFSOCK, 0, "MPTCPv6", "mptcp_socket"),
        ("socket:[5]", stat.S_IFSOCK, 0, "AF_VSOCK", "socket_kind"),
        ("socket:[5]", stat.S_IFSOCK, 0, "TCPv6", None),
        ("socket:[5]", stat.S_IFSOCK, 0, "NETLINK", None),
        ("/dev/kvm", stat.S_IFCHR, os.makedev(10, 232), "", "device"),
        ("/dev/net/tun", stat.S_IFCHR, os.makedev(10, 200), "", "device"),
        ("/dev/vda", stat.S_IFBLK, os.makedev(254, 0), "", "device"),
        ("/dev/urandom", stat.S_IFCHR, os.makedev(1, 9), "", None),
        ("/dev/mem", stat.S_IFCHR, os.makedev(1, 1), "", "device"),
        ("/dev/tty", stat.S_IFCHR, os.makedev(5, 0), "", None),
    ],
)
def test_descriptors_are_judged_by_kind(link: str, mode: int, device: int, protocol: str, code: str | None) -> None:
    look = os.stat_result((mode | 0o600, 5, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4096, 0, device))
    assert look.st_rdev == device
    descriptor = Descriptor(7, link, look, {"flags": "02"}, protocol)
    process = snapshot.ProcessSnapshot(procfs.read_stat(os.getpid()), (1,), descriptors=(descriptor, descriptor))
    tree = snapshot.TreeSnapshot((process,), {})
    found = obstacles.obstacles_of(tree, lambda *_: {})
    assert [problem.code for problem in found] == ([code] if code else [])
    if code:
        assert "descriptor 7" in found[0].message and f"process {os.getpid()} (" in found[0].message


@pytest.mark.parametrize(("busy_looks", "expected"), [(1, set()), (2, set()), (1000, {"unsent_messages"})])
def test_only_what_is_held_back_counts_as_unsent(
    start: Start, monkeypatch: pytest.MonkeyPatch, busy_looks: int, expected: set[str]
) -> None:
    """A datagram on its way to the device is seen in its socket as well."""
    child = start("sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); sender.connect(('127.0.0.1', 9))")
    look = sockets.internet_sockets
    looks = 0

    def busy(pid: int) -> dict[int, sockets.InternetSocket]:
        nonlocal looks
        looks += 1
        return {inode: replace(each, sending=looks <= busy_looks) for inode, each in look(pid).items()}

    monkeypatch.setattr(sockets, "internet_sockets", busy)
    assert codes(inspect(child.pid)) == expected


def test_what_the_kernel_says_of_the_process_itself_is_judged(start: Start) -> None:
    (whole,) = snapshot.take(start("").pid).processes
    ours = whole.namespaces
    assert {"mnt", "pid", "user", "ipc", "net"} <= set(ours)

    def judged(process: snapshot.ProcessSnapshot) -> list[str]:
        return [each.code for each in obstacles.obstacles_of(snapshot.TreeSnapshot((process,), ours), lambda *_: {})]

    assert judged(whole) == []
    assert judged(replace(whole, tracer_pid=1)) == ["traced"]
    assert judged(replace(whole, namespaces=ours | {"mnt": 1})) == ["own_namespaces"]
    alone = replace(whole, namespaces=ours | {"net": 1})
    assert judged(alone) == []
    parted = snapshot.TreeSnapshot((whole, alone), ours)
    assert [each.code for each in obstacles.obstacles_of(parted, lambda *_: {})] == ["own_network_namespace"]
    shared = snapshot.TreeSnapshot((alone,), ours, network_neighbours=(1,))
    assert [each.code for each in obstacles.obstacles_of(shared, lambda *_: {})] == ["network_namespace_shared"]
    assert judged(replace(whole, namespaces=ours | {"uts": 1, "cgroup": 1})) == []
    other = snapshot.TreeSnapshot((replace(whole, namespaces=ours | {"mnt": 1}),), ours)
    assert holdings.files_of(other) == ((), ())  # paths of another mount namespace would be misread
    missing = replace(whole.mappings[0], filled_in=True)
    assert judged(replace(whole, mappings=(*whole.mappings, missing))) == ["memory_missing"]
    sysv = replace(whole.mappings[0], path="/SYSV00000000 (deleted)")
    with_sysv = replace(whole, mappings=(*whole.mappings, sysv))
    assert judged(with_sysv) == ["sysv_shared_memory"]
    apart = replace(with_sysv, namespaces=ours | {"ipc": 1})
    assert judged(apart) == []
    parted = snapshot.TreeSnapshot((whole, apart), ours)
    assert "own_namespaces" in [each.code for each in obstacles.obstacles_of(parted, lambda *_: {})]
    shared = snapshot.TreeSnapshot((apart,), ours, ipc_neighbours=(1,))
    assert [each.code for each in obstacles.obstacles_of(shared, lambda *_: {})] == ["ipc_namespace_shared"]

    def memory_with(*segments: Segment) -> int:
        return holdings.memory_bytes_of(snapshot.TreeSnapshot((whole,), ours, segments=segments))

    assert memory_with(sysv_segment(0)) - memory_with() == sysv_segment(0).resident_bytes
    assert memory_with(sysv_segment(2)) == memory_with(), "it is counted as a mapping"


def test_what_a_server_has_forked_since_it_was_looked_at_is_no_stranger(start: Start) -> None:
    child = start(
        """
        ends = os.pipe(), socket.socketpair()
        if os.fork() == 0: time.sleep(600)
        time.sleep(0.1)
        """
    )
    whole = snapshot.take(child.pid)
    assert len(whole.processes) == 2
    before = replace(whole, processes=whole.processes[:1])
    assert obstacles.obstacles_of(before) == ()
    forked = whole.processes[1].pid
    assert snapshot.strangers(before, [forked, os.getpid(), 2**22 + 1]) == [os.getpid()]
    parted = replace(before, processes=(replace(before.root, stat=procfs.read_stat(forked)),))
    assert {each.code for each in obstacles.obstacles_of(parted)} == {"pipe_leaves_tree"}


def test_a_descriptor_that_became_another_since_it_was_looked_at_says_nothing(start: Start, tmp_path: Path) -> None:
    (tmp_path / "before").touch()
    child = start("now = open('now', 'w')")
    whole = snapshot.take(child.pid)
    (now,) = (each for each in whole.root.descriptors if each.link == str(tmp_path / "now"))
    before = replace(now, link=str(tmp_path / "before"))
    tree = replace(whole, processes=(replace(whole.root, descriptors=(before,)),))
    needed, problems = holdings.files_of(tree)
    assert problems == () and before.link not in [each.path for each in needed]


def sysv_segment(attached: int) -> Segment:
    return Segment(7, 1 << 20, 1 << 16, attached)


def test_the_other_host_answers_in_the_order_asked(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("abc")
    asked = [
        FileFacts(str(tmp_path / "missing"), FileUse.MAPPED, True, 9, 0o644, "ab"),
        FileFacts(str(tmp_path / "there"), FileUse.OPEN, True, 9, 0o644, "ab", writable=True),
    ]
    taken, found, _ = observe([os.getpid(), procfs.thread_ids(os.getpid())[0]], asked)
    assert taken == (os.getpid(),)
    assert [(file.exists, file.size_bytes, file.build_id) for file in found] == [(False, 0, ""), (True, 3, "")]
    assert found[1].writable and found[1].use is FileUse.OPEN
