"""A sample of a task's memory: what is there and would be dumped, and nothing that reading would bring into being."""

from __future__ import annotations

import mmap
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from phaul.transfer.compression import measure
from phaul.units import MIB
from phaul.workloads.sample import PIECE_BYTES, SAMPLE_BYTES, sample

HOLDER = """
import mmap, os, sys
kind, size = sys.argv[1], int(sys.argv[2]) << 20
memory = mmap.mmap(-1, size, mmap.MAP_ANONYMOUS | (mmap.MAP_SHARED if kind == "shared" else mmap.MAP_PRIVATE))
if kind != "untouched":
    block = os.urandom(1 << 20) if kind == "random" else bytes(range(256)) * 4096
    for start in range(0, size, 1 << 20):
        memory[start : start + (1 << 20)] = block
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holders() -> Iterator[list[subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.communicate()


def hold(holders: list[subprocess.Popen[str]], kind: str, mib: int) -> int:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, kind, str(mib)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    holders.append(process)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process.pid


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * mmap.PAGESIZE


def ratio_of(pieces: tuple[bytes, ...]) -> float:
    found = measure(pieces)
    assert found is not None
    return found.ratio


@pytest.mark.parametrize("kind", ["text", "random", "shared"])
def test_it_tells_what_the_memory_is_like(holders: list[subprocess.Popen[str]], kind: str) -> None:
    pid = hold(holders, kind, 64)
    pieces = sample([pid], random.Random(1))
    assert SAMPLE_BYTES <= sum(map(len, pieces)) < SAMPLE_BYTES + PIECE_BYTES
    assert all(0 < len(piece) <= PIECE_BYTES for piece in pieces)
    assert (ratio_of(pieces) < 1.5) == (kind == "random")


def test_it_is_of_all_tasks(holders: list[subprocess.Popen[str]]) -> None:
    noise, text = hold(holders, "random", 32), hold(holders, "text", 32)
    assert ratio_of(sample([noise], random.Random(2))) < ratio_of(sample([noise, text], random.Random(2)))


def test_memory_that_is_not_there_stays_so(holders: list[subprocess.Popen[str]]) -> None:
    pid = hold(holders, "untouched", 512)
    before = resident_bytes(pid)
    sample([pid], random.Random(3))
    assert resident_bytes(pid) - before < MIB


def test_a_task_that_has_ended_gives_nothing(holders: list[subprocess.Popen[str]]) -> None:
    pid = hold(holders, "text", 4)
    holders[0].communicate()
    assert sample([pid]) == ()
    assert sample([]) == ()
    assert sample([os.getpid(), pid], random.Random(4))
