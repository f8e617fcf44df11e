"""Compressed pages on the wire, and whether to compress at all.

A frame is a header (content bytes, wire bytes) and a Zstandard frame of at most 256 KiB of content; what does not get
smaller stands as it is, and then both numbers are the same. Frames are independent of each other, so that neither end
keeps anything, and a hostile peer can make the other hold no more than one of them.

Used by `transfer.page_relay`, which writes frames, `transfer.page_stream`, which reads them, and
`transfer.page_channel`, which decides. Does no I/O. Zstandard comes from `backports.zstd`: the standard library's own
module of Python 3.14, on the same libzstd; it lets other threads run while it works.
"""

from __future__ import annotations

import struct
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass

from phaul.errors import TransferError
from phaul.units import KIB, MIB

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

FRAME_BYTES = 256 * KIB  # ratios are those of one long stream (measured), and a context fits into the cache
FRAME_HEADER = struct.Struct("<II")  # bytes of content, bytes that follow
LEVEL = 1  # 3 takes 1.3 to 1.7 times as long for a tenth less (zstd 1.5.7, memory of processes)
WINDOW_LOG = 18  # FRAME_BYTES: no frame needs more to be read, and none may ask for more

FAST_LINK = 600 * MIB  # a second: on a faster link nothing that zstd does with one core gains
RELAY_COPIES = 2000 * MIB  # a second: what CRIU's socket, the relay and the wire's socket cost beside zstd (measured)
WORTH_WHILE = 1.25  # a gain below this is within what the measurements are off


@dataclass(frozen=True, slots=True)
class Compressibility:
    """What zstd makes of a sample: `ratio` is content to frames, at least 1; the speed is of one core, in content."""

    ratio: float
    bytes_per_second: float


class Compressor:
    """Makes frames. For one thread."""

    def __init__(self) -> None:
        parameter = zstd.CompressionParameter
        self._zstd = zstd.ZstdCompressor(
            options={
                parameter.compression_level: LEVEL,
                parameter.window_log: WINDOW_LOG,
                parameter.checksum_flag: 1,  # a flipped bit is an error, not another page
            }
        )

    def frame(self, content: memoryview) -> bytes:
        """Give the frame of 1 to FRAME_BYTES bytes; never longer than they are and a header."""
        packed = self._zstd.compress(content, zstd.ZstdCompressor.FLUSH_FRAME)
        if len(packed) >= len(content):
            return FRAME_HEADER.pack(len(content), len(content)) + content
        return FRAME_HEADER.pack(len(content), len(packed)) + packed


def frame_sizes(header: bytes | memoryview) -> tuple[int, int]:
    """Read a frame's header: bytes of content, bytes that follow. `TransferError` for what no `Compressor` writes."""
    content, packed = FRAME_HEADER.unpack(header)
    if not 0 < packed <= content <= FRAME_BYTES:
        raise TransferError(f"the page channel brought a frame of {content} bytes in {packed}")
    return int(content), int(packed)


def frame_content(packed: bytes | memoryview, content_bytes: int) -> bytes | memoryview:
    """Give the content of a frame whose header said `content_bytes`; `TransferError` where it is damaged."""
    if len(packed) == content_bytes:
        return packed
    decompressor = zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: WINDOW_LOG})
    try:
        # One byte more than announced is enough to see that there is more.
        content = decompressor.decompress(packed, max_length=content_bytes + 1)
    except zstd.ZstdError as error:
        raise TransferError(f"the page channel brought a damaged frame: {error}") from error
    if len(content) != content_bytes or not decompressor.eof or decompressor.unused_data:
        raise TransferError(f"the page channel brought a frame that is not the {content_bytes} bytes it announced")
    return content


def measure(sample: Iterable[bytes]) -> Compressibility | None:
    """Compress a sample of what will be sent; None for an empty one. Blocks for a few milliseconds a MiB."""
    compressor = Compressor()
    content = wire = 0
    before = time.thread_time()  # not the clock on the wall: this core may have others to serve
    for piece in sample:
        for start in range(0, len(piece), FRAME_BYTES):
            part = memoryview(piece)[start : start + FRAME_BYTES]
            wire += len(compressor.frame(part))
            content += len(part)
    seconds = time.thread_time() - before
    if not content:
        return None
    return Compressibility(max(content / wire, 1.0), content / max(seconds, 1e-6))


def choose(link_bytes_per_second: float, sample: Compressibility) -> bool:
    """Say whether compressed content arrives sooner, by enough to trust it.

    The slower a link, the sooner this is true: what is chosen at a rate is chosen at every lower one but 0, which says
    that nobody knows it.
    """
    through_relay = 1 / (1 / sample.bytes_per_second + 1 / RELAY_COPIES)
    compressed = min(through_relay, link_bytes_per_second * sample.ratio)
    return 0 < link_bytes_per_second <= FAST_LINK and compressed >= WORTH_WHILE * link_bytes_per_second
