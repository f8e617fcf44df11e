"""Where a thread waits says whether a copy still stands in CRIU's restorer; tried on processes that look like it."""

from __future__ import annotations

import os
import platform
import time

import pytest

from phaul.migration.recovery import Tree
from phaul.system import procfs
from phaul.workloads import identity, restorer
from phaul.workloads.restorer import is_nobodys_code, stands_in_restorer, waits_at
from tests.unit.process_trees import Start

WAIT_SECONDS = 10.0

# ppoll(2) without descriptors and timeout, for ever: number into its register, the call, return.
WAIT_FOR_EVER = {
    "x86_64": "48 31 ff 48 31 f6 48 31 d2 4d 31 d2 b8 0f 01 00 00 0f 05 c3",
    "aarch64": "00 00 80 d2 01 00 80 d2 02 00 80 d2 03 00 80 d2 28 09 80 d2 01 00 00 d4 c0 03 5f d6",
}
RT_SIGPROCMASK = {"x86_64": 14, "aarch64": 135}

RESTORER = f"""
import ctypes, mmap
libc = ctypes.CDLL(None)
everything = ctypes.c_uint64((1 << 64) - 1 - {{but}})
if {{blocks}}:
    libc.syscall({RT_SIGPROCMASK[platform.machine()]}, 0, ctypes.byref(everything), None, 8)
code = mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=7)
code.write(bytes.fromhex("{WAIT_FOR_EVER[platform.machine()]}"))
where = ctypes.addressof(ctypes.c_char.from_buffer(code))
wait = ctypes.CFUNCTYPE(None)(where if {{own}} else ctypes.cast(libc.pause, ctypes.c_void_p).value)
open(sys.argv[1], "w").close()
wait()
"""


def waiting(start: Start, *, blocks: bool, own: bool, but: int = 0) -> int:
    """Start a process that waits with all signals blocked or not, in code of its own or its C library's."""
    child = start(RESTORER.format(blocks=blocks, own=own, but=but))
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        counter = waits_at(procfs.read_syscall(child.pid, child.pid))
        if counter is not None and is_nobodys_code(counter, procfs.read_maps(child.pid)) is own:
            mapping = [each for each in procfs.read_maps(child.pid) if each.start <= counter < each.end]
            if own or "libc" in mapping[0].path:
                time.sleep(0.05)
                return child.pid
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("but", [0, restorer.SIGTRAP_BIT])
def test_a_copy_in_the_restorer_has_not_run(start: Start, but: int) -> None:
    """In its last stage, when its connections are out of repair mode, it waits for a trap."""
    pid = waiting(start, blocks=True, own=True, but=but)
    assert stands_in_restorer(pid)
    assert identity.look(identity.identify(pid)) == (Tree.UNFINISHED, True)


def test_a_copy_whose_criu_lives_is_held(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    pid = waiting(start, blocks=True, own=True)
    monkeypatch.setattr(restorer, "CRIU_NAME", procfs.read_stat(os.getpid()).command)
    assert identity.look(identity.identify(pid)) == (Tree.HELD, True)


@pytest.mark.parametrize(("blocks", "own"), [(True, False), (False, True), (False, False)])
def test_a_program_that_waits_by_itself_runs(start: Start, blocks: bool, own: bool) -> None:
    """Also one that compiles its own code, and one that blocks what it can."""
    pid = waiting(start, blocks=blocks, own=own)
    assert not stands_in_restorer(pid)
    assert identity.look(identity.identify(pid)) == (Tree.ALIVE, False)


def test_the_counter_of_a_thread_that_waits() -> None:
    assert waits_at("202 0x47010 0x0 0x4 0x0 0x0 0x0 0x25ec8 0x18369\n") == 0x18369
    assert waits_at("running\n") is None
    assert waits_at("-1 0x7ffd2ab1c0e8 0x7f2e8c9a1d5a\n") is None


def test_nobodys_code_lies_in_no_file() -> None:
    mappings = procfs.parse_smaps(
        "00010000-0001e000 rwxp 00000000 00:00 0 \n"
        "00047000-00049000 rwxs 00000000 00:01 1050   /dev/zero (deleted)\n"
        "00420000-00740000 r-xp 00020000 00:2d 144    /usr/bin/python3.13\n"
        "00800000-00801000 rw-p 00000000 00:00 0 \n"
    )
    told = {address: is_nobodys_code(address, mappings) for address in (0xFFFF, 0x18369, 0x1E000, 0x47010, 0x420000)}
    assert told == {0xFFFF: False, 0x18369: True, 0x1E000: False, 0x47010: False, 0x420000: False}
    assert not is_nobodys_code(0x800000, mappings)


def test_a_process_that_has_ended_stands_nowhere(start: Start) -> None:
    child = start("")
    child.kill()
    child.wait()
    with pytest.raises(OSError, match=str(child.pid)):
        stands_in_restorer(child.pid)
    assert not restorer.is_criu(child.pid)
