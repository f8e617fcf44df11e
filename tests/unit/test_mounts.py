"""Directories in memory of our own: bounded, private, gone with one unmount."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from phaul.system import mounts
from phaul.system.mounts import MountError, mount_memory, mounted_below, unmount_memory
from phaul.units import MIB

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mount(2) needs root")


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "rooms" / "ab12"
    yield path
    unmount_memory(path)


@needs_root
def test_a_room_is_private_bounded_and_gone_again(room: Path) -> None:
    mount_memory(room, 4 * MIB)
    assert room.is_mount()
    assert room.stat().st_mode & 0o7777 == 0o700
    assert mounted_below(room.parent) == [room]
    assert os.statvfs(room).f_flag & (os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC) == (
        os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC
    )
    with pytest.raises(OSError, match="No space left") as full:
        (room / "pages-1.img").write_bytes(bytes(5 * MIB))
    assert full.value.errno == errno.ENOSPC
    unmount_memory(room)
    assert not room.exists()
    assert mounted_below(room.parent) == []
    unmount_memory(room)


@needs_root
def test_a_room_goes_although_files_in_it_are_open(room: Path) -> None:
    mount_memory(room, MIB)
    with (room / "pages-1.img").open("wb") as image:
        unmount_memory(room)
        assert not room.exists()
        image.write(b"still writable")


@needs_root
def test_a_room_that_was_made_twice_goes_whole(room: Path) -> None:
    mount_memory(room, MIB)
    mount_memory(room, MIB)
    assert len(mounted_below(room.parent)) == 2
    unmount_memory(room)
    assert not room.exists()


@needs_root
def test_a_kernel_without_huge_pages_in_tmpfs_still_gives_a_room(room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mount = mounts._mount
    asked: list[str] = []

    def without_huge(target: Path, options: str) -> int:
        asked.append(options)
        return errno.EINVAL if "huge" in options else mount(target, options)

    monkeypatch.setattr(mounts, "_mount", without_huge)
    mount_memory(room, MIB)
    assert room.is_mount()
    assert ["huge" in options for options in asked] == [True, False]


def test_a_room_that_cannot_be_made_says_why(room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounts, "_mount", lambda *_: errno.EPERM)
    with pytest.raises(MountError, match="Operation not permitted"):
        mount_memory(room, MIB)


def test_only_mounts_right_below_are_listed() -> None:
    below_root = mounted_below(Path("/"))
    assert Path("/proc") in below_root
    assert all(path.parent == Path("/") for path in below_root)


def test_what_is_no_room_is_not_emptied(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    unmount_memory(tmp_path)
    assert (tmp_path / "file").exists()
    unmount_memory(tmp_path / "missing")
