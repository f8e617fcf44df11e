"""Dumps in directories: whole or not, damaged, somebody else's, and removed without harm to anything else."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phaul.errors import PreflightError, TransferError
from phaul.store import directory as store

ID = "0badcafe"
FACTS = {"phaul": "1.2.3", "workload": {"root_pid": 4711}}


def make(path: Path, **images: bytes) -> store.Manifest:
    store.begin(path, ID)
    for name, content in images.items():
        (path / f"{name}.img").write_bytes(content)
    return store.seal(path, FACTS)


def copied(path: Path, to: Path) -> int:
    counts: list[int] = []
    store.copy_out(path, store.read(path), to, counts.append)
    return sum(counts)


def test_what_is_sealed_is_read_and_copied(tmp_path: Path) -> None:
    path, room = tmp_path / "dump", tmp_path / "room"
    room.mkdir()
    big = os.urandom(store.CHUNK_BYTES + 5)
    made = make(path, core=b"core", pages=big, empty=b"")
    assert path.stat().st_mode & 0o777 == 0o700
    found = store.read(path)
    assert found == made
    assert (found.migration_id, found.facts, found.bytes) == (ID, FACTS, len(big) + 4)
    assert copied(path, room) == len(big) + 4
    assert {each.name: each.read_bytes() for each in room.iterdir()} == {
        "core.img": b"core",
        "pages.img": big,
        "empty.img": b"",
    }


@given(st.data())
def test_any_flipped_bit_is_found(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    base = tmp_path_factory.mktemp("flip")
    path, room = base / "dump", base / "room"
    room.mkdir()
    make(path, core=b"core", pages=bytes(5000))
    victim = path / data.draw(st.sampled_from(["core.img", "pages.img", store.MANIFEST]))
    content = bytearray(victim.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= 1 << data.draw(st.integers(0, 7))
    victim.write_bytes(content)
    if victim.name == store.MANIFEST and _same(bytes(content), path):
        return  # white space, or a digit that says the same
    with pytest.raises(PreflightError, match=rf"{victim.name}|of the dump|format"):
        copied(path, room)


def _same(content: bytes, path: Path) -> bool:
    try:
        return bool(store.encode(store.read(path)).split() == content.split())
    except PreflightError:
        return False


@pytest.mark.parametrize("change", ["cut", "longer", "gone", "another's", "writable"])
def test_an_image_that_is_not_as_it_was_is_refused(tmp_path: Path, change: str) -> None:
    path, room = tmp_path / "dump", tmp_path / "room"
    room.mkdir()
    make(path, core=b"core")
    image = path / "core.img"
    match change:
        case "cut":
            image.write_bytes(b"cor")
        case "longer":
            image.write_bytes(b"cores")
        case "gone":
            image.unlink()
        case "writable":
            image.chmod(0o666)
        case _:
            if os.geteuid():
                pytest.xfail("only root can give a file away")
            os.chown(image, 4711, 4711)
    with pytest.raises(PreflightError, match=r"core\.img"):
        copied(path, room)


def test_what_was_not_finished_is_no_dump(tmp_path: Path) -> None:
    path = tmp_path / "dump"
    with pytest.raises(PreflightError, match="there is no dump"):
        store.read(path)
    store.begin(path, ID)
    (path / "core.img").write_bytes(b"core")
    with pytest.raises(PreflightError, match="not a whole dump"):
        store.read(path)
    assert store.holds(path, ID) is False
    assert store.holds(path, "another") is None
    store.seal(path, FACTS)
    assert store.holds(path, ID) is True


def test_a_directory_that_others_can_write_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "dump"
    make(path)
    path.chmod(0o770)
    with pytest.raises(PreflightError, match="others than root"):
        store.read(path)


def test_another_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "dump"
    make(path)
    manifest = path / store.MANIFEST
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format": 2}))
    with pytest.raises(PreflightError, match="has the format 2"):
        store.read(path)


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("sealed", [False, True])
def test_removing_leaves_what_was_there(tmp_path: Path, there: bool, sealed: bool) -> None:
    path = tmp_path / "dump"
    if there:
        path.mkdir()
    store.begin(path, ID)
    (path / "core.img").write_bytes(b"core")
    if sealed:
        store.seal(path, FACTS)
    store.remove(path, "another")
    assert (path / "core.img").exists()
    store.remove(path, ID)
    assert path.exists() is there
    assert not there or list(path.iterdir()) == []
    store.remove(path, ID)  # again is no harm


def test_room_and_emptiness_are_looked_at_first(tmp_path: Path) -> None:
    path = tmp_path / "dump"
    store.require_room(path, 1, "1 B")
    with pytest.raises(PreflightError, match="not enough room"):
        store.require_room(path, 1 << 60, "1 EiB")
    (tmp_path / "file").touch()
    with pytest.raises(PreflightError, match="no directory"):
        store.require_room(tmp_path / "file", 1, "1 B")
    with pytest.raises(PreflightError, match="not empty"):
        store.require_room(tmp_path, 1, "1 B")
    with pytest.raises(PreflightError, match="cannot be used"):
        store.require_room(tmp_path / "no" / "dump", 1, "1 B")
    (path).mkdir()
    (path / "late").touch()
    with pytest.raises(TransferError, match="not empty any more"):
        store.begin(path, ID)
