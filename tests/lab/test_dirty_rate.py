"""How fast a process writes, measured from outside: against programs whose rate is known."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from phaul.errors import PreflightError
from phaul.migration.dirty_rate import DirtyMethod, MemoryKind
from phaul.units import MIB
from phaul.workloads.dirty_rate import measure

WRITER = Path(__file__).parent / "programs" / "writer.py"
# The writer keeps its pace against its own clock; it is late by what this machine keeps it waiting.
NEAR = 0.25

Writing = Callable[..., int]


@pytest.fixture
def writing() -> Iterator[Writing]:
    """Start writers; each is ended with the test."""
    running: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> int:
        child = subprocess.Popen(
            [sys.executable, str(WRITER), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        running.append(child)
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        time.sleep(0.1)
        return child.pid

    yield start
    for child in running:
        os.killpg(child.pid, signal.SIGKILL)  # its own child as well
        child.wait()
        assert child.stdout is not None
        child.stdout.close()


@pytest.mark.parametrize(("mib", "mib_a_second"), [(64, 8), (256, 40)])
async def test_the_rate_of_a_steady_writer(writing: Writing, mib: int, mib_a_second: int) -> None:
    pid = writing(str(mib), str(mib_a_second))
    found = await measure(pid, 1.5, method=DirtyMethod.SAMPLING)
    assert found.method is DirtyMethod.SAMPLING
    uncertainty = found.uncertainty_bytes * 1e6 / found.interval_us
    expected = mib_a_second * MIB
    assert found.dirty_bytes_per_second == pytest.approx(expected, abs=expected * NEAR + 2 * uncertainty)
    assert found.mappings[0].kind is MemoryKind.ANONYMOUS
    assert found.memory_bytes > mib * MIB


async def test_a_small_working_set_saturates(writing: Writing) -> None:
    """4 MiB written through in a tenth of a second: no more gets dirty after that."""
    found = await measure(writing("4", "40"), 1.5, method=DirtyMethod.SAMPLING)
    assert found.dirty_bytes == pytest.approx(4 * MIB, rel=0.2)
    assert found.curve[1].dirty_bytes == pytest.approx(found.curve[2].dirty_bytes, rel=0.1)


async def test_shared_memory_and_files_are_told_apart(writing: Writing, tmp_path: Path) -> None:
    shared = await measure(writing("32", "8", "--shared"), 1.0, method=DirtyMethod.SAMPLING)
    assert shared.mappings[0].kind is MemoryKind.SHARED
    assert shared.mappings[0].dirty_bytes > 2 * MIB
    path = tmp_path / "data"
    in_file = await measure(writing("32", "8", "--file", str(path)), 1.0, method=DirtyMethod.SAMPLING)
    (mapping,) = [each for each in in_file.mappings if each.path == str(path)]
    assert mapping.kind is MemoryKind.SHARED_FILE
    assert mapping.dirty_bytes > 2 * MIB
    assert in_file.dirty_bytes < mapping.dirty_bytes, "what is written to a shared file does not travel"


async def test_all_of_the_tree_counts(writing: Writing) -> None:
    found = await measure(writing("32", "8", "--child"), 1.5, method=DirtyMethod.SAMPLING)
    assert found.processes == 2
    assert found.dirty_bytes_per_second == pytest.approx(16 * MIB, rel=2 * NEAR)


async def test_memory_that_grows_counts(writing: Writing) -> None:
    found = await measure(writing("1", "1", "--grow", "20"), 1.0, method=DirtyMethod.SAMPLING)
    assert found.dirty_bytes > 8 * MIB


async def test_watching_stops_nobody_and_adds_nothing(writing: Writing) -> None:
    pid = writing("64", "4")
    before = _resident_kib(pid)
    await measure(pid, 1.0, method=DirtyMethod.SAMPLING)
    assert _resident_kib(pid) - before < 1024


async def test_a_process_that_is_not_there_is_refused() -> None:
    with pytest.raises(PreflightError, match="no process"):
        await measure(2**22 - 1, 0.2)


def _resident_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
