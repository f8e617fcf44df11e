"""TLS over asyncio's streams, with the errors of the handshake in our hands and the alert on the wire.

asyncio's own TLS (3.11 to 3.13) drops the alert with which OpenSSL tells the other side what was wrong, and tells a
server nothing of a handshake that failed. Here the SSL object works on memory, as Python's documentation proposes for
protocols of one's own. Called by `connections`.
"""

from __future__ import annotations

import asyncio
import ssl

CHUNK_BYTES = 256 * 1024
GOODBYE_SECONDS = 1.0
RECORD_BYTES = 16 * 1024  # what one record of TLS holds


class TlsStream:
    """One TLS connection over a pair of streams, which it owns until `close`."""

    def __init__(
        self,
        context: ssl.SSLContext,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        server_side: bool,
    ) -> None:
        self._reader, self._writer = reader, writer
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=server_side)
        self._line = b""

    async def handshake(self) -> None:
        """Shake hands. Raises ssl.SSLError, after the other side was sent the alert; ConnectionError, EOFError."""
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
                await self._fill()
            except ssl.SSLError:
                await self._flush()
                raise
            else:
                await self._flush()
                return

    @property
    def peer_certificate(self) -> bytes:
        """DER; only after the handshake."""
        found = self._tls.getpeercert(binary_form=True)
        assert found is not None  # CERT_REQUIRED
        return found

    @property
    def protocol(self) -> str:
        """What ALPN has settled on; "" for nothing."""
        return self._tls.selected_alpn_protocol() or ""

    async def read(self) -> bytes:
        """Some bytes; b"" at the end. Raises ssl.SSLError for an alert, ConnectionError."""
        if self._line:
            rest, self._line = self._line, b""
            return rest
        while True:
            pieces: list[bytes] = []
            try:
                while len(pieces) * RECORD_BYTES < CHUNK_BYTES:
                    piece = self._tls.read(RECORD_BYTES)
                    if not piece:
                        return b"".join(pieces)  # the other side has said goodbye
                    pieces.append(piece)
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLZeroReturnError:
                return b"".join(pieces)
            if pieces:
                return b"".join(pieces)
            await self._flush()  # what TLS itself has to say
            try:
                await self._fill()
            except EOFError:
                return b""

    async def read_line(self, longest: int) -> bytes:
        """Up to a newline, which is left out. Raises ValueError where it is too long, EOFError where it never comes."""
        line = b""
        while b"\n" not in line:
            if len(line) > longest:
                raise ValueError(f"a line of more than {longest} bytes")
            if not (data := await self.read()):
                raise EOFError
            line += data
        line, _, self._line = line.partition(b"\n")
        return line

    async def write(self, data: bytes) -> None:
        """Send; returns when the kernel has taken enough of it."""
        self._tls.write(data)
        await self._flush()

    def abort(self) -> None:
        """Break it off at once."""
        self._writer.transport.abort()

    async def close(self) -> None:
        """Say goodbye as far as that goes, and close."""
        try:
            self._tls.unwrap()
        except (ssl.SSLError, ValueError):
            pass  # the answer to our goodbye is not waited for
        try:
            if data := self._outgoing.read():
                self._writer.write(data)
            self._writer.close()
            async with asyncio.timeout(GOODBYE_SECONDS):
                await self._writer.wait_closed()
        except TimeoutError:
            self.abort()  # the link was cut, or nobody reads
        except OSError:
            pass  # it is closed all the same

    async def _fill(self) -> None:
        data = await self._reader.read(CHUNK_BYTES)
        if not data:
            self._incoming.write_eof()
            raise EOFError
        self._incoming.write(data)

    async def _flush(self) -> None:
        if data := self._outgoing.read():
            self._writer.write(data)
            await self._writer.drain()
