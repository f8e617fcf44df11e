"""A connection between two hosts that have looked at each other's certificate; then it carries what the caller wants.

Over TLS 1.3 with both certificates, each side says one line of JSON before anything else: the server first, so that
it costs no round trip. A line holds what the side knows to be trusted (a signed list: whoever has the older one takes
the newer) and, if it would not have the other, why not. docs/protocol.md has the fields.

Called by `agent` on both ends, and by `phaul trust` to carry a list about. Raises `NotTrustedError` where one side
refuses the other, and `UnreachableError` where nobody listens.
"""

from __future__ import annotations

import asyncio
import datetime
import json
import socket
import ssl
from dataclasses import dataclass
from typing import Any

from cryptography import x509

from phaul.errors import NotTrustedError, UnreachableError
from phaul.trust.certificates import Names, is_loopback_address, names_in, plain_address
from phaul.trust.refusals import Reason, Refusal, complaint, refusal_of
from phaul.trust.store import PROTOCOL, TrustStore
from phaul.trust.tls_stream import TlsStream
from phaul.trust.trust_list import LONGEST_BYTES

CONNECT_SECONDS = 3.0  # a SYN that is lost is sent again after one second: two more may be
HELLO_SECONDS = 10.0
SILENCE_SECONDS = 3  # a link that was cut says nothing: what is not acknowledged for so long breaks the connection
LINE_BYTES = 2 * LONGEST_BYTES  # a list is escaped twice

CALLS = "calls"  # what is wanted: gRPC
RENEWAL = "renewal"
NOTHING = ""  # the list alone


@dataclass(slots=True, eq=False)
class TrustedConnection:
    """Both sides trust each other. `wants` and `request` say what the caller wants. Owns the stream."""

    stream: TlsStream
    certificate: x509.Certificate
    host: str
    wants: str = NOTHING
    request: str = ""

    @property
    def names(self) -> Names:
        """Who the other side is."""
        return names_in(self.certificate)


def utc_now() -> datetime.datetime:
    """The time, as certificates have it."""
    return datetime.datetime.now(datetime.UTC)


async def dial(store: TrustStore, host: str, port: int, wants: str = NOTHING, request: str = "") -> TrustedConnection:
    """Connect to another agent, which must have a certificate for `host`."""
    peer = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    trust = store.current()
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            reader, writer = await _connect(trust.names, host, port)
        _watch_for_silence(writer.get_extra_info("socket"))
    except (OSError, TimeoutError) as error:
        raise UnreachableError(
            f"the phaul agent of {peer} cannot be reached",
            hint="Is `phaul agent` running there, and does it listen on an address that is reachable from here "
            "(--listen)? Are ports closed between the hosts?",
            detail=str(error) or "no answer",
        ) from error
    stream = TlsStream(trust.client, reader, writer, server_side=False)
    try:
        async with asyncio.timeout(HELLO_SECONDS):
            await _shake_hands(stream)
            heard = await _heard(stream)  # TLS 1.3: it is here that a server refuses our certificate
            certificate = x509.load_der_x509_certificate(stream.peer_certificate)
            store.offer(str(heard.get("list", "")))
            refusal = complaint(certificate, store.current().list, host, utc_now())
            await _say(stream, store, refusal, wants=wants, request=request)
            if refusal:
                raise _RefusedError(refusal)
    except _RefusedError as refused:
        await stream.close()
        raise refused.refusal.error(f"the agent of {peer}") from None
    except (OSError, EOFError, ValueError, TimeoutError) as error:
        stream.abort()
        raise UnreachableError(
            f"the agent of {peer} hung up before both had shown their certificates",
            hint="Does it run with --insecure, or without files of trust? `phaul trust show` there tells.",
            detail=str(error) or type(error).__name__,
        ) from error
    except BaseException:
        stream.abort()
        raise
    return TrustedConnection(stream, certificate, host, wants)


async def receive(store: TrustStore, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> TrustedConnection:
    """Take a connection that has come in; the caller's certificate must be for the address it comes from.

    The stream is closed when this raises: `NotTrustedError` with the reason, `UnreachableError` where it broke.
    """
    host = str(writer.get_extra_info("peername")[0])
    _watch_for_silence(writer.get_extra_info("socket"))
    stream = TlsStream(store.current().server, reader, writer, server_side=True)
    try:
        async with asyncio.timeout(HELLO_SECONDS):
            await _shake_hands(stream)
            certificate = x509.load_der_x509_certificate(stream.peer_certificate)
            refusal = complaint(certificate, store.current().list, host, utc_now())
            await _say(stream, store, refusal)
            if refusal:
                raise _RefusedError(refusal)
            heard = await _heard(stream)
            if store.offer(str(heard.get("list", ""))):
                refusal = complaint(certificate, store.current().list, host, utc_now())
                if refusal:
                    raise _RefusedError(refusal)
    except _RefusedError as refused:
        await stream.close()
        raise refused.refusal.error(f"the caller from {host}") from None
    except (OSError, EOFError, ValueError, TimeoutError) as error:
        stream.abort()
        raise UnreachableError(f"the caller from {host} hung up: {str(error) or type(error).__name__}") from error
    except BaseException:
        stream.abort()
        raise
    return TrustedConnection(stream, certificate, host, str(heard.get("wants", "")), str(heard.get("request", "")))


async def _connect(own: Names, host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect from an address that our certificate names, as the other side will look at that.

    A host may have others, floating ones for example, and the kernel may prefer them.
    """
    failure: OSError | None = None
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    for family, _, _, _, address in found:
        usual = _usual_address(family, address)
        local = next((each for each in own.addresses if (":" in each) == (family == socket.AF_INET6)), None)
        choices = [(local, 0), None] if local and usual not in own.addresses else [None]
        if is_loopback_address(usual):
            choices = [None]
        for choice in choices:
            try:
                return await asyncio.open_connection(str(address[0]), port, family=family, local_addr=choice)
            except OSError as error:
                failure = error
    raise failure or OSError("it has no address")


def _watch_for_silence(connection: socket.socket) -> None:
    """Have the kernel break a connection to a host that is gone, also while nothing is to be sent (tcp(7)).

    gRPC's own pings do not: it knows of nothing but the Unix socket before the tunnel.
    """
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SILENCE_SECONDS * 1000)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, SILENCE_SECONDS)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)


def _usual_address(family: int, address: tuple[str, int] | tuple[str, int, int, int] | tuple[int, bytes]) -> str:
    """What the kernel would call from; "" where there is no way. Sends nothing."""
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(address)
        except OSError:
            return ""
        return plain_address(str(probe.getsockname()[0]))


class _RefusedError(Exception):
    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.reason)
        self.refusal = refusal


async def _shake_hands(stream: TlsStream) -> None:
    try:
        await stream.handshake()
    except ssl.SSLError as error:
        raise _RefusedError(refusal_of(error)) from error
    if stream.protocol != PROTOCOL:
        raise _RefusedError(Refusal(Reason.NOT_TLS, True, f"it does not speak {PROTOCOL}"))


async def _say(
    stream: TlsStream, store: TrustStore, refusal: Refusal | None, *, wants: str = NOTHING, request: str = ""
) -> None:
    line: dict[str, str] = {"list": store.current().list_text, "wants": wants, "request": request}
    if refusal:
        line = {"refused": str(refusal.reason), "detail": refusal.detail}
    await stream.write(json.dumps(line).encode() + b"\n")


async def _heard(stream: TlsStream) -> dict[str, Any]:
    try:
        line = _parsed(await stream.read_line(LINE_BYTES))
    except ssl.SSLError as error:
        raise _RefusedError(refusal_of(error)) from error
    if not isinstance(line, dict):
        raise ValueError("what was said is no object")
    if refused := line.get("refused"):
        reason = Reason(refused) if refused in set(Reason) else Reason.BROKEN
        raise _RefusedError(Refusal(reason, False, str(line.get("detail", ""))))
    return line


async def renew(connection: TrustedConnection) -> str:
    """Read the authority's answer to a request: the chain, PEM. Closes the connection."""
    try:
        async with asyncio.timeout(HELLO_SECONDS):
            answer = _parsed(await connection.stream.read_line(LINE_BYTES))
            if error := answer.get("error"):
                raise NotTrustedError(f"the authority did not renew this host's certificate: {error}")
            return str(answer["chain"])
    except (OSError, EOFError, ValueError, KeyError, AttributeError, TimeoutError) as error:
        raise UnreachableError("the authority's agent broke off a renewal", detail=str(error)) from error
    finally:
        await connection.stream.close()


def _parsed(line: bytes) -> Any:
    """Read JSON; ValueError for what is none, or is nested as nobody means it."""
    try:
        return json.loads(line)
    except RecursionError as error:
        raise ValueError("what was said is nested too deeply") from error


async def asks_for_tls(host: str, port: int) -> bool:
    """Whether what listens there speaks TLS: for an agent without certificates that was not understood."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # nothing is sent, and nothing that it says is used
    context.set_alpn_protocols([PROTOCOL])
    try:
        async with asyncio.timeout(HELLO_SECONDS):
            stream = TlsStream(context, *await asyncio.open_connection(host, port), server_side=False)
            try:
                await stream.handshake()
            finally:
                stream.abort()
    except (OSError, EOFError, TimeoutError):  # ssl.SSLError is an OSError
        return False
    return True
