"""The source's end of the page channel: a TCP connection that opens with the token the destination gave out.

Used by `agent.peer_client`. CRIU's dump writes into this very socket, so nothing of ours stands between it and the
wire; unless a dump goes compressed or sealed, when `page_relay` does.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable, Sequence

import structlog

from phaul.errors import TransferError, UnreachableError
from phaul.migration.facts import Compression
from phaul.transfer.compression import FAST_LINK, choose, measure
from phaul.transfer.link_probe import probe_link
from phaul.transfer.pacing import link_speed, pace_for, set_pace
from phaul.transfer.page_relay import PageRelay
from phaul.transfer.page_stream import Opening
from phaul.transfer.tcp_info import TcpInfo, tcp_info, unacknowledged_bytes
from phaul.transfer.wire import SealedWire, Side, Wire, channel_name
from phaul.units import MIB

log = structlog.get_logger(__name__)

TOKEN_BYTES = 32
ACCEPTED = b"\1"
SILENCE_MS = 10_000  # a link that was cut says nothing: data unacknowledged for so long breaks the channel (tcp(7))
CONNECT_TIMEOUT_SECONDS = 10.0
PROBE_TIMEOUT_SECONDS = 10.0
ENOUGH_BYTES = 8 * MIB  # of a dump to judge the link by
SLOW_LINK = 150 * MIB  # a second: what is known to be slower, 1 Gbit/s for one, need not be probed
RESET_AT_CLOSE = struct.pack("ii", 1, 0)  # socket(7): what was not sent is thrown away, the other end told at once


class TcpPageChannel:
    """`PageChannel` on one TCP socket, which it owns until `close`, with what relays a dump that goes compressed."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._socket = wire.socket
        self._relay: PageRelay | None = None
        self._sent_before = 0  # content of the dumps before the one under way
        self._begun: TcpInfo | None = None  # the connection as the dump under way began
        self._delivered = 0  # once it is closed
        self._link: float | None = None  # bytes a second, as measured last
        self._pace: int | None = None

    def fileno(self) -> int:
        """The descriptor that CRIU is given for the dump that was begun last."""
        return self._relay.fileno() if self._relay else self._socket.fileno()

    def delivered_bytes(self) -> int:
        """What the kernel knows to have arrived; headers and the token count as well."""
        return tcp_info(self._socket).acked_bytes or self._delivered

    def sent_bytes(self) -> int:
        """What CRIU has sent, before compression."""
        return self._sent_before + self._sent_now()

    def pace(self, bytes_per_second: int | None) -> None:
        """Hold the connection to a rate from now on; None lifts it."""
        self._pace = bytes_per_second
        try:
            set_pace(self._socket, bytes_per_second)
        except OSError:
            pass  # closed: nothing is sent any more

    async def begin_dump(
        self,
        *,
        bandwidth_bytes_per_second: int,
        compress: Compression,
        device: str,
        frozen: bool,
        sample: Callable[[], Awaitable[Sequence[bytes]]],
    ) -> bool:
        """Tell the receiver how the next dump comes, and make `fileno` the socket for it. See `PageChannel`."""
        self._end_dump()
        link = link_speed(device) if device else None
        try:
            self._socket.setblocking(False)
            self.pace(pace_for(bandwidth_bytes_per_second, link, frozen=frozen))
            compressed = compress is Compression.ZSTD or (
                compress is Compression.AUTO and await self._is_worth_it(link, sample)
            )
            opening = Opening.ZSTD if compressed else Opening.RAW
            await self._wire.send(opening.value)
            self._socket.setblocking(True)  # as CRIU expects it: it knows no EAGAIN
        except (OSError, TimeoutError) as error:
            raise TransferError(f"the page channel broke: {str(error) or 'the destination does not answer'}") from error
        if compressed or self._wire.sealed:
            self._relay = PageRelay(self._wire, compress=compressed)
        self._begun = tcp_info(self._socket)
        return compressed

    def close(self) -> None:
        """Shut down and close, so that also a copy of the descriptor in CRIU's hands is dead."""
        if self._socket.fileno() < 0:
            return
        self._delivered = self.delivered_bytes()  # the report asks later
        try:
            if unacknowledged_bytes(self._socket):  # megabytes perhaps, that a slow link need not carry any more
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # closed or never connected through
        self._end_dump()
        self._socket.close()

    async def _is_worth_it(self, link: int | None, sample: Callable[[], Awaitable[Sequence[bytes]]]) -> bool:
        """Whether this dump arrives sooner when it is compressed, as far as that can be told before it."""
        known = [rate for rate in (link, self._pace, self._link) if rate is not None]
        if self._link is None and min(known, default=FAST_LINK) >= SLOW_LINK:
            self._link = await self._probe()
            known.append(self._link)
        rate = min(known)
        if rate > FAST_LINK:
            return False
        pieces = await sample()
        found = await asyncio.to_thread(measure, pieces)
        worth = found is not None and choose(rate, found)
        log.debug("page_channel.measured", link_bytes_per_second=round(rate), sample=found, compress=worth)
        return worth

    async def _probe(self) -> float:
        async with asyncio.timeout(PROBE_TIMEOUT_SECONDS):
            return await probe_link(self._wire)

    def _end_dump(self) -> None:
        """The dump that was begun last is over: learn from it how fast the link is, and give its relay back."""
        if self._begun is None:
            return
        self._sent_before += self._sent_now()
        now = tcp_info(self._socket)
        acked, busy_us = now.acked_bytes - self._begun.acked_bytes, now.busy_us - self._begun.busy_us
        if acked >= ENOUGH_BYTES and busy_us > 0:
            rate = acked * 1e6 / busy_us
            # Of a compressed dump this is only a lower bound: the link may have waited for the compression.
            self._link = max(rate, self._link or 0) if self._relay else rate
        self._begun = None
        if self._relay is not None:
            self._relay.end()
            self._relay = None

    def _sent_now(self) -> int:
        if self._relay is not None:
            return self._relay.sent_bytes
        return max(self.delivered_bytes() - self._begun.acked_bytes, 0) if self._begun else 0


async def open_page_channel(host: str, port: int, token: bytes, *, sealed: bool = False) -> TcpPageChannel:
    """Connect and present the token; for a sealed channel, a name made of it.

    Raises `UnreachableError` when that does not succeed in time.

    The socket is blocking when it is returned: CRIU expects one that is (it knows no EAGAIN).
    """
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_SECONDS):
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            family, kind, protocol, _, address = found[0]
            connection = socket.socket(family, kind | socket.SOCK_CLOEXEC, protocol)
            try:
                connection.setblocking(False)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SILENCE_MS)
                await loop.sock_connect(connection, address)
                await loop.sock_sendall(connection, channel_name(token) if sealed else token)
                wire = SealedWire(connection, token, Side.SOURCE) if sealed else Wire(connection)
                answer = await wire.recv(1)
            except BaseException:
                connection.close()
                raise
    except (OSError, TimeoutError, TransferError) as error:
        raise UnreachableError(
            f"the page channel to {host}:{port} could not be opened: {str(error) or 'no answer'}",
            hint="The destination's page port must be reachable from here, as its agent's port is; look at firewalls.",
        ) from error
    if answer != ACCEPTED:
        connection.close()
        raise UnreachableError(f"{host}:{port} refused the page channel")
    connection.setblocking(True)
    return TcpPageChannel(wire)
