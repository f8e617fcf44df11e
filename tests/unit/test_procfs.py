"""What is read of processes and sockets: the parsers on made-up text, the readers on this very process."""

from __future__ import annotations

import os
import socket
import string
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phaul.errors import DefectError
from phaul.system import memory, procfs, sockets

SMAPS = """\
55d1d079b000-55d1d07b5000 r-xp 00004000 fe:01 1234                       /usr/bin/a program
Size:                104 kB
Rss:                 100 kB
Anonymous:             8 kB
Swap:                  4 kB
Private_Hugetlb:       0 kB
VmFlags: rd ex mr mw me um
7f0000000000-7f0000002000 rw-s 00000000 00:01 77                         /dev/zero (deleted)
Rss:                   8 kB
Anonymous:             0 kB
Swap:                  0 kB
Shared_Hugetlb:     2048 kB
7ffd00000000-7ffd00021000 rw-p 00000000 00:00 0                          [stack]
Anonymous:            12 kB
7ffe00000000-7ffe00001000 rw-p 00000000 00:00 0
"""


@given(
    command=st.text(alphabet=string.ascii_letters + "() :/", max_size=15),
    numbers=st.lists(st.integers(0, 2**31), min_size=40, max_size=50),
    state=st.sampled_from("RSDTtZXI"),
)
def test_any_command_name_leaves_the_other_fields_of_stat_right(command: str, numbers: list[int], state: str) -> None:
    text = f"42 ({command}) {state} {' '.join(map(str, numbers))}\n"
    found = procfs.parse_stat(text)
    assert (found.pid, found.command, found.state) == (42, command, state)
    assert (found.parent_pid, found.group_id, found.session_id, found.terminal) == tuple(numbers[:4])
    assert (found.flags, found.start_ticks) == (numbers[5], numbers[18])
    assert found.is_dead == (state in "ZX")


def test_kernel_threads_are_told_by_their_flag() -> None:
    text = "2 (kthreadd) S 0 0 0 0 -1 {} " + "0 " * 40
    assert procfs.parse_stat(text.format(0x208040)).is_kernel_thread
    assert not procfs.parse_stat(text.format(0x400100)).is_kernel_thread


def test_smaps_are_read_with_their_sizes() -> None:
    program, zero, stack, anonymous = procfs.parse_smaps(SMAPS)
    assert (program.path, program.inode, program.device) == ("/usr/bin/a program", 1234, os.makedev(0xFE, 1))
    assert (program.start, program.end, program.shared) == (0x55D1D079B000, 0x55D1D07B5000, False)
    assert (program.resident_bytes, program.anonymous_bytes, program.swap_bytes) == (102400, 8192, 4096)
    assert [each.filled_in for each in (program, zero, stack, anonymous)] == [True, False, False, False]
    assert (zero.path, zero.shared, zero.hugetlb_bytes) == ("/dev/zero (deleted)", True, 2048 * 1024)
    assert (stack.path, stack.anonymous_bytes) == ("[stack]", 12288)
    assert (anonymous.path, anonymous.anonymous_bytes) == ("", 0)


def test_a_line_break_in_a_mapped_path_is_read_back() -> None:
    (found,) = procfs.parse_smaps("1000-2000 r--p 00000000 fe:01 5 /tmp/a\\012b\n")
    assert found.path == "/tmp/a\nb"


@given(st.integers(0, 0xFFF), st.integers(0, 0xFFFFF))
def test_terminal_numbers_are_split_as_the_kernel_joins_them(major: int, minor: int) -> None:
    joined = (minor & 0xFF) | (major & 0xFF) << 8 | (minor >> 8) << 20  # new_encode_dev() for majors below 256
    assert procfs.terminal_device(joined) == (major & 0xFF, minor)


def test_this_process_is_read_as_it_is(tmp_path: Path) -> None:
    me = procfs.read_stat(os.getpid())
    assert me.pid == os.getpid() and me.parent_pid == os.getppid() and me.session_id == os.getsid(0)
    assert not me.is_kernel_thread and not me.is_dead
    assert procfs.thread_ids(os.getpid())[0] == os.getpid()
    assert procfs.ancestors(os.getpid())[:2] == (os.getpid(), os.getppid())
    assert procfs.read_link(os.getpid(), "cwd") == str(Path.cwd())
    with (tmp_path / "log").open("a") as log, socket.socket() as plain:
        found = {each.number: each for each in procfs.read_descriptors(os.getpid())}
        held = found[log.fileno()]
        assert held.link == str(tmp_path / "log") and held.flags & os.O_APPEND and held.flags & os.O_WRONLY
        assert found[plain.fileno()].protocol == "TCP"


def test_the_leader_comes_first_though_numbers_began_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for tid in (500, 7, 501):
        (tmp_path / "500/task" / str(tid)).mkdir(parents=True)
    monkeypatch.setattr(procfs, "PROC", tmp_path)
    assert procfs.thread_ids(500) == (500, 7, 501)


def test_ids_are_taken_by_processes_threads_groups_and_sessions() -> None:
    free = int(Path("/proc/sys/kernel/pid_max").read_text()) - 1
    wanted = {os.getpid(), os.getpgid(0), os.getsid(0)} - {0}  # 0: a group of another PID namespace
    assert procfs.taken_ids(frozenset(wanted | {free})) == wanted


def test_someone_else_holding_our_pipe_is_found_by_its_link() -> None:
    reader, writer = os.pipe()
    try:
        link = procfs.read_link(os.getpid(), f"fd/{reader}")
        assert procfs.holders_of(frozenset({link}), frozenset()) == {link: [os.getpid()]}
        assert procfs.holders_of(frozenset({link}), frozenset({os.getpid()})) == {}
    finally:
        os.close(reader)
        os.close(writer)


def test_available_memory_is_read_in_bytes() -> None:
    assert memory.parse_available_bytes("MemTotal:  100 kB\nMemFree:  1 kB\nMemAvailable:      50 kB\n") == 51200
    assert memory.available_bytes() > 0
    assert memory.page_size_bytes() == os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(
    ("words", "address"),
    [
        (socket.inet_pton(socket.AF_INET, "192.0.2.7"), "192.0.2.7"),
        (socket.inet_pton(socket.AF_INET6, "2001:db8::1:2"), "2001:db8::1:2"),
        (socket.inet_pton(socket.AF_INET6, "::ffff:192.0.2.7"), "192.0.2.7"),
        (bytes(16), "::"),
    ],
)
def test_addresses_of_proc_net_are_words_in_machine_order(words: bytes, address: str) -> None:
    text = "".join(f"{word:08X}" for (word,) in struct.iter_unpack("=I", words))
    assert sockets.parse_address(f"{text}:1F90") == (address, 8080)


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_a_listener_with_a_backlog_and_its_client_are_found(family: socket.AddressFamily, host: str) -> None:
    with socket.create_server((host, 0), family=family) as server:
        port = server.getsockname()[1]
        with socket.create_connection((host, port)) as client:
            found = sockets.internet_sockets(os.getpid())
            listening = found[os.fstat(server.fileno()).st_ino]
            assert (listening.protocol, listening.state, listening.local_port) == ("tcp", "listen", port)
            assert (listening.local_address, listening.waiting) == (host, 1)
            connected = found[os.fstat(client.fileno()).st_ino]
            assert (connected.state, connected.remote_address, connected.remote_port) == ("established", host, port)


def test_the_peer_of_a_unix_socket_is_found(tmp_path: Path) -> None:
    one, other = socket.socketpair()
    with one, other, socket.socket(socket.AF_UNIX) as named:
        named.bind(str(tmp_path / "s"))
        named.listen()
        found = sockets.unix_sockets()
        inode, peer = os.fstat(one.fileno()).st_ino, os.fstat(other.fileno()).st_ino
        assert (found[inode].peer_inode, found[peer].peer_inode) == (peer, inode)
        bound = found[os.fstat(named.fileno()).st_ino]
        assert (bound.name, bound.listening, bound.peer_inode) == (str(tmp_path / "s"), True, 0)


def test_a_refusal_of_the_kernel_is_not_an_empty_list() -> None:
    refused = struct.pack("=IHHIIi", 20, sockets.NLMSG_ERROR, 0, 1, 0, -2)
    with pytest.raises(DefectError, match="error 2"):
        sockets.parse_unix_answer(refused)


@given(st.binary(max_size=200))
def test_no_answer_of_the_kernel_hangs_the_reader(data: bytes) -> None:
    try:
        sockets.parse_unix_answer(data)
    except (DefectError, struct.error):
        pass  # both end the listing with an error
