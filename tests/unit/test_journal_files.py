"""A record is on the disk before the step that it announces: told by what a power failure would leave."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from phaul.system.journal_files import JournalError, JournalFile, encode_line

RECORDS: tuple[tuple[str, dict[str, object]], ...] = (("planned", {"pid": 7}), ("commit", {}), ("resumed", {}))


class Disk:
    """What the disk has: of a file what was synchronized last, of a directory the names that it had then."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.contents: dict[Path, bytes] = {}
        self.names: set[Path] = set()
        self.fails = False
        for name in ("fsync", "fdatasync"):
            monkeypatch.setattr(os, name, self._synchronize)

    def _synchronize(self, fd: int) -> None:
        if self.fails:
            raise OSError(5, "Input/output error")
        path = Path(f"/proc/self/fd/{fd}").readlink()
        if path.is_dir():
            self.names |= set(path.iterdir())
        else:
            self.contents[path] = path.read_bytes()

    def after_a_power_failure(self, path: Path) -> bytes:
        """What the file holds then: nothing where its name, or that of its directory, is not on the disk."""
        there = {path, path.parent} <= self.names
        return self.contents.get(path, b"") if there else b""


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


async def test_a_record_outlives_a_power_failure_once_it_is_written(disk: Disk, tmp_path: Path) -> None:
    path = tmp_path / "m1" / "journal"
    journal = JournalFile(path)
    for count, (mark, data) in enumerate(RECORDS, 1):
        await journal.append(mark, data)
        left = disk.after_a_power_failure(path)
        assert left == b"".join(encode_line(*record) for record in RECORDS[:count])
    journal.close()
    path.write_bytes(disk.after_a_power_failure(path))
    assert tuple(JournalFile(path).lines) == RECORDS


async def test_a_disk_that_fails_is_an_error_and_the_record_is_not_taken_for_written(
    disk: Disk, tmp_path: Path
) -> None:
    journal = JournalFile(tmp_path / "m1" / "journal")
    await journal.append(*RECORDS[0])
    disk.fails = True
    with pytest.raises(JournalError, match="Input/output error"):
        await journal.append(*RECORDS[1])
    assert journal.lines == [RECORDS[0]]
    disk.fails = False
    await journal.append(*RECORDS[2])
    journal.close()
    assert JournalFile(tmp_path / "m1" / "journal").lines == [RECORDS[0], RECORDS[2]]


async def test_what_was_cut_short_or_damaged_is_dropped_and_written_over(tmp_path: Path) -> None:
    path = tmp_path / "m1" / "journal"
    journal = JournalFile(path)
    for record in RECORDS:
        await journal.append(*record)
    journal.close()
    whole = path.read_bytes()
    for cut in range(len(encode_line(*RECORDS[0])), len(whole)):
        path.write_bytes(whole[:cut])
        again = JournalFile(path)
        assert again.lines == list(RECORDS[: whole[:cut].count(b"\n")])
        await again.append("ended", {})
        again.close()
        assert JournalFile(path).lines == [*again.lines]
    flipped = bytearray(whole)
    flipped[len(encode_line(*RECORDS[0])) + 12] ^= 1
    path.write_bytes(flipped)
    assert JournalFile(path).lines == [RECORDS[0]]
