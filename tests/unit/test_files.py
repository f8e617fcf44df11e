"""Files as CRIU compares them: build IDs of made-up ELF files of every shape, and looks at real paths."""

from __future__ import annotations

import os
import stat
import struct
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phaul.system import files

OTHER_NOTE = (b"stapsdt\0x\0", 1, b"\0" * 13)  # neither name nor value a multiple of four


def note(name: bytes, kind: int, value: bytes, order: str) -> bytes:
    """Lay out one ELF note, padded to four bytes."""
    pad = b"\0" * (-len(value) % 4)
    return struct.pack(order + "III", len(name), len(value), kind) + name + b"\0" * (-len(name) % 4) + value + pad


def elf(notes: list[tuple[bytes, int, bytes]], *, wide: bool, big: bool) -> bytes:
    """Lay out an ELF file with one loadable segment and one of notes."""
    order = ">" if big else "<"
    data = b"".join(note(*each, order) for each in notes)
    header_bytes, entry_bytes = (64, 56) if wide else (52, 32)
    start = header_bytes + 2 * entry_bytes
    ident = files.ELF_MAGIC + bytes([2 if wide else 1, 2 if big else 1, 1]) + bytes(9)
    if wide:
        header = struct.pack(order + "HHIQQQIHHHHHH", 3, 62, 1, 0, 64, 0, 0, 64, entry_bytes, 2, 0, 0, 0)
        load = struct.pack(order + "IIQQQQQQ", 1, 5, 0, 0, 0, start, start, 4096)
        segment = struct.pack(order + "IIQQQQQQ", files.NOTE_SEGMENT, 4, start, start, start, len(data), len(data), 4)
    else:
        header = struct.pack(order + "HHIIIIIHHHHHH", 3, 3, 1, 0, 52, 0, 0, 52, entry_bytes, 2, 0, 0, 0)
        load = struct.pack(order + "IIIIIIII", 1, 0, 0, 0, start, start, 5, 4096)
        segment = struct.pack(order + "IIIIIIII", files.NOTE_SEGMENT, start, start, start, len(data), len(data), 4, 4)
    return ident + header + load + segment + data


@given(build_id=st.binary(min_size=1, max_size=40), wide=st.booleans(), big=st.booleans(), first=st.booleans())
def test_the_build_id_is_found_in_every_kind_of_elf(build_id: bytes, wide: bool, big: bool, first: bool) -> None:
    mine = (b"GNU\0", files.BUILD_ID_NOTE, build_id)
    data = elf([mine, OTHER_NOTE] if first else [OTHER_NOTE, mine], wide=wide, big=big)
    assert files.parse_build_id(data) == build_id.hex()


@given(wide=st.booleans(), big=st.booleans())
def test_an_elf_without_a_build_id_has_none(wide: bool, big: bool) -> None:
    assert files.parse_build_id(elf([OTHER_NOTE, (b"Xen\0", 3, b"1234")], wide=wide, big=big)) == ""


@given(
    cut=st.integers(0, 200),
    flips=st.lists(st.tuples(st.integers(0, 199), st.integers(0, 255)), max_size=8),
    wide=st.booleans(),
)
def test_a_broken_elf_is_read_to_an_end(cut: int, flips: list[tuple[int, int]], wide: bool) -> None:
    data = bytearray(elf([(b"GNU\0", 3, b"x" * 20)], wide=wide, big=False))
    for position, value in flips:
        if position < len(data):
            data[position] = value
    assert isinstance(files.parse_build_id(bytes(data[:cut])), str)
    assert isinstance(files.parse_build_id(bytes(data)), str)


def test_a_build_id_that_criu_would_not_take_is_none() -> None:
    assert files.parse_build_id(elf([(b"GNU\0", 3, b"x" * 513)], wide=True, big=False)) == ""


def test_a_regular_file_is_seen_with_its_size_mode_and_build_id(tmp_path: Path) -> None:
    path = tmp_path / "program"
    path.write_bytes(elf([(b"GNU\0", 3, b"\xab\xcd")], wide=True, big=False))
    path.chmod(0o751)
    seen = files.look_at(path)
    assert seen.exists and seen.size_bytes == path.stat().st_size and seen.build_id == "abcd"
    assert stat.S_ISREG(seen.mode) and stat.S_IMODE(seen.mode) == 0o751


def test_what_cannot_be_reached_does_not_exist(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for path in (tmp_path / "nothing", tmp_path / "loop", "/dev/null/below", "with\0nul"):
        assert not files.look_at(path).exists


@pytest.mark.timeout(10)
def test_a_fifo_is_looked_at_and_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")  # opening it to read would wait for a writer
    seen = files.look_at(tmp_path / "fifo")
    assert stat.S_ISFIFO(seen.mode) and seen.size_bytes == 0
    assert files.read_build_id(tmp_path / "fifo") == ""


def test_devices_and_directories_have_no_size(tmp_path: Path) -> None:
    assert stat.S_ISCHR(files.look_at("/dev/null").mode) and files.look_at("/dev/null").size_bytes == 0
    assert stat.S_ISDIR(files.look_at(tmp_path).mode) and files.look_at(tmp_path).size_bytes == 0


def test_this_interpreter_is_seen() -> None:
    assert files.look_at(sys.executable).size_bytes == Path(sys.executable).stat().st_size
