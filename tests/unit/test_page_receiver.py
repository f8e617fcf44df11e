"""The receiving end of the page channel: any dump, cut anywhere, arrives; anything else is a TransferError, soon."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import xxhash
from hypothesis import example, given
from hypothesis import strategies as st

from phaul.criu.images import COMMON_MAGIC, PAGEMAP_MAGIC, decode_records, encode_pagemap
from phaul.errors import TransferError
from phaul.rpc.criu import images_pb2
from phaul.system.mounts import mount_memory, unmount_memory
from phaul.transfer.page_protocol import HEADER, HEADER_BEFORE_4_2, Command, Header, PageFlag, encode, task_image
from phaul.transfer.page_receiver import PageReceiver
from phaul.transfer.page_store import PageStore, Received
from phaul.transfer.spare_room import NAME, SpareRoom
from tests.unit.page_sender import PAGE_BYTES, Dump, Run, dumps
from tests.unit.test_criu_session import open_descriptors

LAYOUTS = pytest.mark.parametrize("layout", [HEADER, HEADER_BEFORE_4_2], ids=["4.2", "before 4.2"])
LIMIT_BYTES = 1 << 30
IMAGE = task_image(7)
SOON_SECONDS = 10.0


class Channel:
    """A receiver in a thread, and our end of its socket."""

    def __init__(
        self, directory: Path, limit_bytes: int = LIMIT_BYTES, *, tcp: bool = False, spare: SpareRoom | None = None
    ) -> None:
        self.directory = directory
        self.socket, theirs = tcp_pair() if tcp else socket.socketpair()
        self.socket.settimeout(SOON_SECONDS)
        store = PageStore(directory, PAGE_BYTES, limit_bytes, encode_pagemap, spare)
        self.rounds: list[Received] = []
        self.receiver = PageReceiver(theirs, store, PAGE_BYTES, self.rounds.append)
        self.outcome: int | BaseException | None = None
        self._thread = threading.Thread(target=self._receive, daemon=True)
        self._thread.start()

    def _receive(self) -> None:
        try:
            self.receiver.receive()
            self.outcome = self.rounds[-1].page_bytes
        except BaseException as error:  # noqa: BLE001 - it is what the test looks at
            self.outcome = error

    def send(self, data: bytes, sizes: Sequence[int] = (1 << 20,)) -> None:
        """Send in pieces of these sizes, over and over; a receiver that has given up is no error."""
        position = index = 0
        with contextlib.suppress(ConnectionError):
            while position < len(data):
                size = sizes[index % len(sizes)]
                self.socket.sendall(data[position : position + size])
                position, index = position + size, index + 1

    def answers(self, count: int) -> bytes:
        """Read that many bytes, fewer where the receiver closes before."""
        data = b""
        with contextlib.suppress(ConnectionError):
            while len(data) < count and (more := self.socket.recv(count - len(data))):
                data += more
        return data

    def end(self) -> int | BaseException | None:
        """Say that there is no more, wait for the receiver, close our end."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)
        self._thread.join(SOON_SECONDS)
        assert not self._thread.is_alive(), "the receiver hangs"
        self.socket.close()
        return self.outcome


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    return ours, theirs


def pagemap(path: Path) -> tuple[int, list[tuple[int, int, int]]]:
    """pages_id and the runs of a pagemap image."""
    head, *entries = decode_records(path.read_bytes(), (COMMON_MAGIC, PAGEMAP_MAGIC))
    read = [images_pb2.PagemapEntry.FromString(entry) for entry in entries]
    return images_pb2.PagemapHead.FromString(head).pages_id, [
        (entry.vaddr, entry.nr_pages, entry.flags) for entry in read
    ]


def joined(runs: Iterable[Run]) -> list[tuple[int, int, int]]:
    """What a pagemap shall say of these runs: those that go on from each other alike are one."""
    entries: list[tuple[int, int, int]] = []
    for run in runs:
        if entries and (entries[-1][0] + entries[-1][1] * PAGE_BYTES, entries[-1][2]) == (run.address, run.flags):
            entries[-1] = (entries[-1][0], entries[-1][1] + run.pages, run.flags)
        else:
            entries.append((run.address, run.pages, run.flags))
    return entries


def check_received(directory: Path, dump: Dump) -> None:
    """The directory holds the dump, to the byte, and nothing else."""
    expected: set[str] = set()
    for image in dump.images:
        name = Header(0, 0, 0, 0, image).pagemap_name
        pages_id, runs = pagemap(directory / name)
        assert runs == joined(dump.runs(image))
        assert (directory / f"pages-{pages_id}.img").read_bytes() == dump.pages(image)
        expected |= {name, f"pages-{pages_id}.img"}
    assert {path.name for path in directory.iterdir()} == expected
    assert all(path.stat().st_mode & 0o077 == 0 for path in directory.glob("pages-*"))


@LAYOUTS
@given(dump=dumps(), sizes=st.lists(st.integers(1, 3000), min_size=1, max_size=5))
@example(dump=Dump((task_image(1),)), sizes=[1])
def test_any_dump_arrives_however_it_is_cut(
    tmp_path_factory: pytest.TempPathFactory, layout: struct.Struct, dump: Dump, sizes: list[int]
) -> None:
    directory = tmp_path_factory.mktemp("pages")
    before = open_descriptors()
    channel = Channel(directory)
    channel.send(dump.stream(layout), sizes)
    assert channel.answers(len(dump.answer)) == dump.answer
    assert channel.end() == sum(len(dump.pages(image)) for image in dump.images)
    check_received(directory, dump)
    assert open_descriptors() == before


def test_much_memory_arrives_over_tcp(tmp_path: Path) -> None:
    image = task_image(7)
    runs = [
        Run(image, index << 30, pages, int(PageFlag.PRESENT), os.urandom(pages * PAGE_BYTES))
        for index, pages in enumerate([1, 2047, 8191, 2, 4096])
    ]
    dump = Dump((image, *runs))
    channel = Channel(tmp_path, tcp=True)
    channel.send(dump.stream())
    assert channel.answers(len(dump.answer)) == dump.answer
    assert channel.end() == len(dump.pages(image))
    check_received(tmp_path, dump)


def wait_filled(spare: SpareRoom, count: int) -> None:
    deadline = time.monotonic() + SOON_SECONDS
    while spare.window(0, count) is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.parametrize("expected_mib", [1, 32])
@pytest.mark.parametrize("sizes", [[1 << 20], [100_001]])
def test_it_arrives_in_room_that_was_got_before(tmp_path: Path, expected_mib: int, sizes: list[int]) -> None:
    """Where there is some, and where it is not worth it; the small image before has none."""
    spare = SpareRoom(tmp_path, expected_mib << 20)
    small, large = task_image(6), task_image(7)
    pages = [1, (24 << 20) // PAGE_BYTES, 8191, 2, 4096]
    runs = [
        Run(large, index << 30, count, int(PageFlag.PRESENT), os.urandom(count * PAGE_BYTES))
        for index, count in enumerate(pages)
    ]
    first = Run(small, 0, 3, int(PageFlag.PRESENT), os.urandom(3 * PAGE_BYTES))
    dump = Dump((small, first, large, *runs), Command.FORCE_CLOSE)
    if expected_mib == 32:
        wait_filled(spare, 16 << 20)
    channel = Channel(tmp_path, tcp=True, spare=spare)
    channel.send(dump.stream(), sizes)
    assert channel.answers(len(dump.answer)) == dump.answer
    (received,) = channel.rounds
    hashed = [xxhash.xxh64_digest(first.content)]
    assert list(received.images[0].digests) == hashed
    assert channel.end() == len(dump.pages(small)) + len(dump.pages(large))
    check_received(tmp_path, dump)
    assert not (tmp_path / NAME).exists()


def test_room_that_nobody_took_is_given_back(tmp_path: Path) -> None:
    before = open_descriptors()
    spare = SpareRoom(tmp_path, 32 << 20)
    assert (tmp_path / NAME).stat().st_size == 32 << 20
    wait_filled(spare, 1)
    spare.close()
    spare.close()
    assert (list(tmp_path.iterdir()), spare.ready, spare.window(0, 1)) == ([], False, None)
    assert open_descriptors() == before


def test_whether_there_is_a_parent_is_answered(tmp_path: Path) -> None:
    image = task_image(7)
    opening = encode(Header(Command.OPEN2, 0, 0, 0, image))
    asking = encode(Header(Command.PARENT, 0, 0, 0, image))
    closing = encode(Header(Command.CLOSE, 0, 0, 0, 0))
    channel = Channel(tmp_path)
    channel.send(asking + opening + asking + closing)
    assert channel.answers(13) == b"\0" * (4 + 1 + 4 + 4)
    assert channel.end() == 0


def test_a_round_may_refer_to_the_one_before(tmp_path: Path) -> None:
    channel = Channel(tmp_path)
    first = Dump((IMAGE, Run(IMAGE, 0, 3, int(PageFlag.PRESENT), b"abc".ljust(3 * PAGE_BYTES))), Command.FORCE_CLOSE)
    channel.send(first.stream())
    assert channel.answers(len(first.answer)) == first.answer
    second = Dump(
        (
            IMAGE,
            Run(IMAGE, 0, 1, int(PageFlag.PARENT), b""),
            Run(IMAGE, PAGE_BYTES, 1, int(PageFlag.PRESENT), b"new".ljust(PAGE_BYTES)),
        ),
        Command.FORCE_CLOSE,
    )
    channel.send(second.stream())
    assert channel.answers(5) == b"\1" + bytes(4)
    assert channel.end() == 2 * PAGE_BYTES
    assert [each.page_bytes for each in channel.rounds] == [3 * PAGE_BYTES, 2 * PAGE_BYTES]


def test_a_source_that_goes_between_two_rounds_is_no_error(tmp_path: Path) -> None:
    channel = Channel(tmp_path)
    channel.send(Dump((IMAGE,), Command.FORCE_CLOSE).stream())
    channel.answers(5)
    assert channel.end() == 0


@given(dump=dumps(most_pages=4), data=st.data())
def test_a_dump_that_is_cut_off_is_an_error(
    tmp_path_factory: pytest.TempPathFactory, dump: Dump, data: st.DataObject
) -> None:
    stream = dump.stream()
    end = data.draw(st.integers(0, len(stream) - 1))
    before = open_descriptors()
    channel = Channel(tmp_path_factory.mktemp("pages"))
    channel.send(stream[:end])
    channel.socket.shutdown(socket.SHUT_WR)
    outcome = channel.end()
    assert isinstance(outcome, TransferError)
    assert "the page channel was closed" in outcome.message
    assert not channel.rounds
    assert open_descriptors() == before


@given(dump=dumps(most_pages=4), junk=st.binary(min_size=1, max_size=200), data=st.data())
def test_any_bytes_end_in_a_transfer_error_and_write_nothing_outside(
    tmp_path_factory: pytest.TempPathFactory, dump: Dump, junk: bytes, data: st.DataObject
) -> None:
    base = tmp_path_factory.mktemp("pages")
    (base / "images").mkdir()
    stream = bytearray(dump.stream())
    position = data.draw(st.integers(0, len(stream) - 1))
    stream[position : position + len(junk)] = junk
    channel = Channel(base / "images", limit_bytes=1 << 20)
    channel.send(bytes(stream))
    with contextlib.suppress(OSError):
        channel.socket.shutdown(socket.SHUT_WR)
    outcome = channel.end()
    assert isinstance(outcome, TransferError | int)  # junk may fall into the pages, which are anything
    assert [path.name for path in base.iterdir()] == ["images"]
    for path in (base / "images").iterdir():
        assert path.is_file()
        assert path.name.startswith(("pages-", "pagemap-"))


OPENING = encode(Header(Command.OPEN2, 0, 0, 0, IMAGE))
MALFORMED = {
    "pages of no image": OPENING + encode(Header(Command.ADD_F, PageFlag.PRESENT, 1, 0, IMAGE + 256)),
    "twice the same image": OPENING + OPENING,
    "a kind that is none": OPENING + encode(Header(Command.OPEN2, 0, 0, 0, 7 << 8 | 9)),
    "first a kind that is none": encode(Header(Command.OPEN2, 0, 0, 0, 7 << 8 | 9)),
    "an unknown command": OPENING + encode(Header(77, 0, 0, 0, IMAGE)),
    "more than there is room for": OPENING + encode(Header(Command.ADD_F, PageFlag.PRESENT, 2**63, 0, IMAGE)),
}


@pytest.mark.parametrize("stream", MALFORMED.values(), ids=MALFORMED.keys())
def test_what_no_dump_says_is_refused_at_once(tmp_path: Path, stream: bytes) -> None:
    """Our end stays open: the receiver must not wait for more."""
    before = open_descriptors()
    channel = Channel(tmp_path)
    channel.send(stream)
    channel._thread.join(SOON_SECONDS)
    assert isinstance(channel.end(), TransferError)
    assert open_descriptors() == before


@pytest.mark.parametrize("room_pages", [2, 3])
def test_no_more_than_was_reserved_is_taken(tmp_path: Path, room_pages: int) -> None:
    run = Run(IMAGE, 0, 1, int(PageFlag.PRESENT), b"x" * PAGE_BYTES)
    dump = Dump((IMAGE, *(replace(run, address=number * PAGE_BYTES) for number in range(3))))
    channel = Channel(tmp_path, limit_bytes=room_pages * PAGE_BYTES)
    channel.send(dump.stream())
    outcome = channel.end()
    if room_pages == 3:
        assert outcome == 3 * PAGE_BYTES
    else:
        assert isinstance(outcome, TransferError)
        assert f"larger than the {2 * PAGE_BYTES} bytes reserved" in outcome.message


@pytest.mark.parametrize(
    "sent",
    [b"", OPENING, OPENING + encode(Header(Command.ADD_F, PageFlag.PRESENT, 9, 0, IMAGE))],
    ids=["its first header", "a header", "pages"],
)
def test_a_receiver_that_waits_can_be_aborted(tmp_path: Path, sent: bytes) -> None:
    channel = Channel(tmp_path, tcp=True)
    channel.send(sent)
    time.sleep(0.05)
    channel.receiver.abort()
    assert isinstance(channel.end(), TransferError)
    channel.receiver.abort()  # again, and late: nothing


def test_files_that_are_there_are_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "pages-1.img").symlink_to(tmp_path / "victim")
    channel = Channel(tmp_path)
    channel.send(OPENING)
    outcome = channel.end()
    assert isinstance(outcome, TransferError)
    assert "File exists" in outcome.message
    assert not (tmp_path / "victim").exists()


@contextlib.contextmanager
def nearly_full(directory: Path) -> Iterator[None]:
    mount_memory(directory, 256 * 1024)
    try:
        yield
    finally:
        unmount_memory(directory)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a tmpfs needs root; the test after this one needs none")
def test_a_full_tmpfs_is_an_error(tmp_path: Path) -> None:
    dump = Dump((IMAGE, Run(IMAGE, 0, 1024, int(PageFlag.PRESENT), b"x" * 1024 * PAGE_BYTES)))
    with nearly_full(tmp_path / "room"):
        channel = Channel(tmp_path / "room")
        channel.send(dump.stream())
        outcome = channel.end()
        assert isinstance(outcome, TransferError)
        assert "No space left on device" in outcome.message


def test_a_write_that_fails_is_an_error_and_one_in_parts_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dump = Dump((IMAGE, Run(IMAGE, 0, 300, int(PageFlag.PRESENT), os.urandom(300 * PAGE_BYTES))))
    whole_write = os.pwrite

    def partly(descriptor: int, data: memoryview, offset: int) -> int:
        return whole_write(descriptor, data[: len(data) // 2 + 1], offset)

    def full(descriptor: int, data: memoryview, offset: int) -> int:
        raise OSError(28, "No space left on device")

    outcomes: list[Callable[[int, memoryview, int], int]] = [partly, full]
    for number, behaviour in enumerate(outcomes):
        monkeypatch.setattr("phaul.transfer.page_receiver.os.pwrite", behaviour)
        (tmp_path / str(number)).mkdir()
        channel = Channel(tmp_path / str(number))
        channel.send(dump.stream())
        outcome = channel.end()
        if behaviour is partly:
            check_received(tmp_path / str(number), dump)
        else:
            assert isinstance(outcome, TransferError)
            assert "No space left" in outcome.message
