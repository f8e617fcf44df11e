"""How bytes travel: the stream of images, the page channel as it is and compressed, and sealed."""

from __future__ import annotations

import hashlib
import itertools
import struct
from collections.abc import Iterator

from phaul.criu.images import encode_pagemap
from phaul.errors import TransferError
from phaul.transfer.compression import Compressor
from phaul.transfer.image_stream import NAME, Chunk, ImageWriter
from phaul.transfer.page_protocol import HEADER, HEADER_BEFORE_4_2, Command, Header, PageFlag, encode, task_image
from phaul.transfer.page_receiver import PageReceiver
from phaul.transfer.page_store import PageStore, Received
from phaul.transfer.page_stream import PROBE_HEADER, PageStream
from phaul.transfer.wire import SealedWire, Sealer, Side, Wire
from phaul.units import KIB, MIB
from tests.fuzz.sandbox import Sandbox
from tests.fuzz.surface import Finding, Reader, part

PAGE_BYTES = 512
LIMIT_BYTES = 256 * KIB
USED_BYTES = LIMIT_BYTES + 1 * MIB  # and pagemaps
TOKEN = bytes(range(32))


class Images:
    """`ImageWriter`: chunks of images, as a peer sends them."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox

    def take(self, data: bytes) -> None:
        """Flags, name and content of one chunk after the other."""
        reader = Reader(data)
        writer = ImageWriter(self._sandbox.images, LIMIT_BYTES)
        try:
            while reader:
                flags = reader.byte()
                name, content = reader.part().decode(errors="replace"), reader.part()
                if flags & 4:
                    content *= 1 + reader.byte() * 16
                size = reader.number() if flags & 2 else len(content)
                digest = reader.take(32) if flags & 2 else hashlib.sha256(content).digest()
                writer.write(Chunk(name, content, bool(flags & 1), digest, size))
            writer.close()
        except TransferError:
            pass
        finally:
            writer.discard()
        for path in self._sandbox.images.iterdir():
            if path.is_symlink() or not path.is_file() or not NAME.fullmatch(path.name.removesuffix(".part")):
                raise Finding(f"{path} was made")
        if self._sandbox.used_bytes() > USED_BYTES:
            raise Finding(f"{self._sandbox.used_bytes()} bytes were written")

    @staticmethod
    def seeds() -> Iterator[bytes]:
        """Good images, and names that lead elsewhere."""
        for name in (
            b"core-1.img",
            b"../x.img",
            b"/etc/x.img",
            b"a/b.img",
            b"x.img.part",
            b"a..img",
            b"\0.img",
            b"i" * 300,
        ):
            yield b"\1" + part(name) + part(b"content")
        yield b"\0" + part(b"a.img") + part(b"12") + b"\1" + part(b"a.img") + part(b"34")
        yield (b"\1" + part(b"a.img") + part(b"12")) * 2
        yield b"\5" + part(b"a.img") + part(b"x" * 1000) + b"\xff"
        yield b"\3" + part(b"a.img") + part(b"x") + struct.pack("<H", 1) + hashlib.sha256(b"x").digest()


class Line:
    """A wire, or a socket, that brings given bytes in pieces of a given size, and forgets what is sent."""

    def __init__(self, content: bytes, step: int) -> None:
        self._content = memoryview(content)
        self._step = step
        self.closed = False

    def recv_into(self, buffer: memoryview, *, flags: int = 0) -> int:
        """Some bytes; 0 at the end."""
        count = min(len(buffer), self._step, len(self._content))
        buffer[:count] = self._content[:count]
        self._content = self._content[count:]
        return count

    def sendall(self, data: bytes | memoryview, /) -> None:
        """Nobody reads it."""

    def shutdown(self, how: int, /) -> None:
        """There is nothing to break."""

    def close(self) -> None:
        """Once."""
        self.closed = True


def plain_wire(line: Line) -> Wire:
    """A wire as it is, on a line."""
    return Wire(line)  # type: ignore[arg-type]  # it reads like a socket


class Pages:
    """`PageStream`, `PageReceiver` and `PageStore`: openings, probes, frames, headers, runs and rounds."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox

    def take(self, data: bytes) -> None:
        """A byte says in what pieces it comes and whether it is packed into good frames; the rest is the channel."""
        reader = Reader(data)
        how = reader.byte()
        content = packed(reader.rest()) if how & 1 else reader.rest()
        self.receive(plain_wire(Line(content, 1 + (how >> 1) ** 3)))

    def receive(self, wire: Wire) -> list[Received]:
        """Have a wire received to its end; give the rounds that were complete."""
        store = PageStore(self._sandbox.images, PAGE_BYTES, LIMIT_BYTES, encode_pagemap)
        stream = PageStream(wire)
        rounds: list[Received] = []

        def on_round(received: Received) -> None:
            stream.end_dump()
            rounds.append(received)

        try:
            PageReceiver(stream, store, PAGE_BYTES, on_round).receive()
        except TransferError:
            pass
        if rounds:
            received = rounds[-1]
            if received.page_bytes > LIMIT_BYTES:
                raise Finding(f"{received.page_bytes} bytes were received")
            if (
                sum(each.pages for image in received.images for each in image.placed) * PAGE_BYTES
                != received.page_bytes
            ):
                raise Finding("it is said to be something else than what lies there")
            arrived = sum(pages for image in received.images for _, pages in image.arrived) * PAGE_BYTES
            if arrived > received.page_bytes:
                raise Finding(f"{arrived} bytes arrived, of which only {received.page_bytes} are there")
        if (used := self._sandbox.used_bytes()) > USED_BYTES:
            raise Finding(f"{used} bytes were written")
        return rounds

    @staticmethod
    def seeds() -> Iterator[bytes]:
        """Dumps of each header, several rounds, with parents and holes; probes; runs that lie."""
        for layout, how in itertools.product((HEADER, HEADER_BEFORE_4_2), (b"\xfe", b"\x08", b"\xff")):
            yield how + b"R" + dump(layout)
            yield how + b"R" + dump(layout) + b"R" + dump(layout, PageFlag.PARENT) + b"R" + dump(layout)
        yield b"\xfeP" + PROBE_HEADER.pack(100) + bytes(100) + b"R" + dump(HEADER)
        yield b"\xfeP" + PROBE_HEADER.pack(1 << 31)
        yield b"\xfeZ" + packed(b"Z" + dump(HEADER))[1:]
        opened = encode(Header(Command.OPEN2, 0, 0, 0, task_image(7)))
        for pages, address in ((1 << 63, 0), (1, 1), (1 << 52, PAGE_BYTES), (0, 0), (3, (1 << 64) - PAGE_BYTES)):
            for flags in (0, PageFlag.PRESENT, PageFlag.PARENT, PageFlag.LAZY):
                yield b"\xfeR" + opened + encode(Header(Command.ADD_F, flags, pages, address, task_image(7)))
        holes = (
            encode(Header(Command.ADD_F, PageFlag.LAZY, 1, 2 * at * PAGE_BYTES, task_image(7))) for at in range(200)
        )
        yield b"\xfeR" + opened + b"".join(holes)
        yield b"\xfeR" + b"".join(encode(Header(Command.OPEN2, 0, 0, 0, task_image(pid))) for pid in range(200))
        close = encode(Header(Command.CLOSE, 0, 0, 0, 0))
        yield b"\xfe" + b"".join(b"R" + opened + run(2 * at) + close for at in range(20))


def run(page: int, flags: int = PageFlag.PRESENT, layout: struct.Struct = HEADER) -> bytes:
    """One page."""
    header = Header(Command.ADD_F, flags, 1, page * PAGE_BYTES, task_image(7))
    return encode(header, layout) + (bytes([page & 0xFF]) * PAGE_BYTES if flags & PageFlag.PRESENT else b"")


def dump(layout: struct.Struct, first: int = PageFlag.PRESENT) -> bytes:
    """One image of three pages."""
    opened = encode(Header(Command.OPEN2, 0, 0, 0, task_image(7)), layout)
    close = encode(Header(Command.CLOSE, 0, 0, 0, 0), layout)
    return (
        opened
        + run(1, first, layout)
        + run(2, PageFlag.LAZY | PageFlag.PRESENT, layout)
        + run(9, layout=layout)
        + close
    )


def packed(content: bytes) -> bytes:
    """The first byte as it is, what follows in good frames."""
    compressor = Compressor()
    frames = (compressor.frame(memoryview(content[at : at + 4096])) for at in range(1, len(content), 4096))
    return b"Z" + b"".join(frames)


class Sealed:
    """`SealedWire` before all of this: records that are good, changed, repeated, cut short or made up."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._pages = Pages(sandbox)

    def take(self, data: bytes) -> None:
        """What an attacker makes of records; then whether only what the source had sealed came through."""
        reader = Reader(data)
        step = 1 + reader.byte() ** 2
        sealer, stranger = Sealer(TOKEN, Side.SOURCE), Sealer(bytes(32), Side.SOURCE)
        sent, wire, last, good = b"", b"", b"", True
        while reader:
            act, content = reader.byte() % 8, reader.part()
            if act in (0, 5, 6, 7) and content:
                last = bytes(sealer.seal(memoryview(content)))
                wire += last
                sent += content if good else b""
            elif act == 1 and content:  # changed
                record = bytearray(sealer.seal(memoryview(content)))
                record[reader.number() % len(record)] ^= 1 << reader.byte() % 8
                wire, good = wire + record, False
            elif act == 2:
                wire, good = wire + last, good and not last
            elif act == 3:
                wire, good = wire + content, good and not content
            elif content:
                wire, good = wire + bytes(stranger.seal(memoryview(content))), False
        heard = _Heard(SealedWire(Line(wire, step), TOKEN, Side.DESTINATION))  # type: ignore[arg-type]
        self._pages.receive(heard.wire)
        if not sent.startswith(heard.content):
            raise Finding("what nobody had sealed came through")

    @staticmethod
    def seeds() -> Iterator[bytes]:
        """A dump in one record, in several, and each of the acts."""
        whole = b"R" + dump(HEADER)
        yield b"\xff\0" + part(whole)
        yield b"\xff" + b"".join(b"\0" + part(whole[at : at + 100]) for at in range(0, len(whole), 100))
        for act in range(1, 5):
            yield b"\xff\0" + part(whole[:100]) + bytes([act]) + part(whole[100:]) + b"\x20\0\1"
        yield b"\1\3" + part(struct.pack("<I", 17) + bytes(17))
        yield b"\1\3" + part(struct.pack("<I", 1 << 31))


class _Heard:
    """A wire, and what was read from it."""

    def __init__(self, wire: SealedWire) -> None:
        self.wire = wire
        self.content = b""
        inner = wire.recv_into

        def recv_into(buffer: memoryview, *, flags: int = 0) -> int:
            count = inner(buffer, flags=flags)
            self.content += bytes(buffer[:count])
            return count

        wire.recv_into = recv_into  # type: ignore[method-assign]
