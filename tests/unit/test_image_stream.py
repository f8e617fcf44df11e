"""Images on their way: what arrives is what was sent, and nothing else ever gets a final name."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phaul.errors import TransferError
from phaul.transfer import image_stream
from phaul.transfer.image_stream import Chunk, ImageWriter, chunks
from tests.unit.test_criu_session import open_descriptors

LIMIT_BYTES = 1 << 20
CONTENTS = st.dictionaries(
    st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,30}\.img", fullmatch=True), st.binary(max_size=5000), max_size=4
)


def cut(directory: Path, images: dict[str, bytes], chunk_bytes: int) -> list[Chunk]:
    """The chunks of images, as the source sends them."""
    directory.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_stream, "CHUNK_BYTES", chunk_bytes)
        sent: list[Chunk] = []
        for name, content in images.items():
            (directory / name).write_bytes(content)
            sent += chunks(directory / name)
        return sent


def write(directory: Path, sent: Iterable[Chunk], limit_bytes: int = LIMIT_BYTES) -> ImageWriter:
    writer = ImageWriter(directory, limit_bytes)
    try:
        for chunk in sent:
            writer.write(chunk)
        writer.close()
    finally:
        writer.discard()
    return writer


def fresh(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    base = tmp_path_factory.mktemp("images")
    (base / "received").mkdir()
    return base / "sent", base / "received"


@given(images=CONTENTS, chunk_bytes=st.integers(1, 6000))
def test_images_arrive_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, images: dict[str, bytes], chunk_bytes: int
) -> None:
    source, received = fresh(tmp_path_factory)
    sent = cut(source, images, chunk_bytes)
    assert all(len(chunk.data) <= chunk_bytes for chunk in sent)
    writer = write(received, sent)
    assert {path.name: path.read_bytes() for path in received.iterdir()} == images
    assert (writer.images, writer.bytes) == (len(images), sum(map(len, images.values())))
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in received.iterdir())


Damage = Callable[[st.DataObject, list[Chunk]], list[Chunk]]


def flip_a_bit(data: st.DataObject, sent: list[Chunk]) -> list[Chunk]:
    index = data.draw(st.sampled_from([index for index, chunk in enumerate(sent) if chunk.data]))
    content = bytearray(sent[index].data)
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    return [*sent[:index], dataclasses.replace(sent[index], data=bytes(content)), *sent[index + 1 :]]


def lose_a_chunk(data: st.DataObject, sent: list[Chunk]) -> list[Chunk]:
    index = data.draw(st.integers(0, len(sent) - 1))
    return sent[:index] + sent[index + 1 :]


def send_a_chunk_twice(data: st.DataObject, sent: list[Chunk]) -> list[Chunk]:
    index = data.draw(st.integers(0, len(sent) - 1))
    return sent[: index + 1] + sent[index:]


@pytest.mark.parametrize("damage", [flip_a_bit, lose_a_chunk, send_a_chunk_twice])
@given(data=st.data(), content=st.binary(min_size=1, max_size=500), chunk_bytes=st.integers(1, 200))
def test_damage_is_seen(
    tmp_path_factory: pytest.TempPathFactory, damage: Damage, data: st.DataObject, content: bytes, chunk_bytes: int
) -> None:
    source, received = fresh(tmp_path_factory)
    sent = damage(data, cut(source, {"a.img": content}, chunk_bytes))
    if not sent:
        return  # of the only chunk there was nothing came: nothing was promised
    before = open_descriptors()
    with pytest.raises(TransferError):
        write(received, sent)
    if damage is not send_a_chunk_twice:
        assert [path.name for path in received.iterdir() if path.suffix == ".img"] == []
    elif (received / "a.img").exists():
        assert (received / "a.img").read_bytes() == content
    assert open_descriptors() == before


@pytest.mark.parametrize(
    "name",
    [
        "../x.img",
        "/tmp/x.img",
        "a/b.img",
        "a\0.img",
        "",
        ".img",
        "..img",
        "x",
        "x.img.part",
        "x.img\n",
        "é.img",
        "x" * 250 + ".img",
    ],
)
def test_a_bad_name_is_refused(tmp_path: Path, name: str) -> None:
    received = tmp_path / "received"
    received.mkdir()
    with pytest.raises(TransferError, match="with the name"):
        write(received, [Chunk(name, b"", True, b"", 0)])
    assert list(received.iterdir()) == []
    assert [path.name for path in tmp_path.iterdir()] == ["received"]


@given(name=st.text(max_size=40))
def test_no_name_leads_out_of_the_directory(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    source, received = fresh(tmp_path_factory)
    (whole,) = cut(source, {"a.img": b"content"}, 100)
    try:
        write(received, [dataclasses.replace(whole, name=name)])
    except TransferError:
        assert list(received.iterdir()) == []
    else:
        assert [path.name for path in received.iterdir()] == [name]
    assert sorted(path.name for path in received.parent.iterdir()) == ["received", "sent"]


def test_images_of_more_than_was_reserved_are_refused(tmp_path: Path) -> None:
    sent = cut(tmp_path / "sent", {"a.img": b"x" * 60, "b.img": b"x" * 40}, 7)
    (tmp_path / "1").mkdir()
    write(tmp_path / "1", sent, limit_bytes=100)
    (tmp_path / "2").mkdir()
    with pytest.raises(TransferError, match="99 bytes reserved"):
        write(tmp_path / "2", sent, limit_bytes=99)


def test_an_image_is_not_written_over(tmp_path: Path) -> None:
    sent = cut(tmp_path / "sent", {"a.img": b"new"}, 100)
    (tmp_path / "received").mkdir()
    (tmp_path / "received/a.img").write_bytes(b"old")
    with pytest.raises(TransferError, match="sent twice"):
        write(tmp_path / "received", sent)
    assert (tmp_path / "received/a.img").read_bytes() == b"old"


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    sent = cut(tmp_path / "sent", {"a.img": b"new"}, 100)
    (tmp_path / "received").mkdir()
    (tmp_path / "received/a.img.part").symlink_to(tmp_path / "victim")
    with pytest.raises(TransferError, match="could not be written"):
        write(tmp_path / "received", sent)
    assert not (tmp_path / "victim").exists()


def test_what_the_kernel_takes_in_parts_arrives_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """write(2) may take less than it is given, as on a tmpfs that is about to be full."""
    sent = cut(tmp_path / "sent", {"a.img": bytes(range(256)) * 10}, 1000)
    (tmp_path / "received").mkdir()
    whole_write = os.write

    def partly(descriptor: int, data: Any) -> int:
        return whole_write(descriptor, bytes(data)[: len(data) // 2 + 1])

    monkeypatch.setattr("phaul.transfer.image_stream.os.write", partly)
    write(tmp_path / "received", sent)
    assert (tmp_path / "received/a.img").read_bytes() == bytes(range(256)) * 10


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    sent = cut(tmp_path / "sent", {"a.img": b"x"}, 100)
    (tmp_path / "received").mkdir()
    (tmp_path / "received/a.img.part").symlink_to("/dev/full")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("phaul.transfer.image_stream.os.O_NOFOLLOW", 0)
        with pytest.raises(TransferError, match="No space left on device"):
            write(tmp_path / "received", sent)
