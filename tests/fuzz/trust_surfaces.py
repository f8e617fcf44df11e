"""What is said between hosts before gRPC: lists of trust, requests for a certificate, and bytes on the ports."""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

from phaul.agent.server import AgentServer
from phaul.agent.trust import trust_directory
from phaul.config import AgentConfig
from phaul.errors import PhaulError
from phaul.lab.fake_machine import FakeMachine
from phaul.lab.fakes import fake_host
from phaul.trust import trust_list
from phaul.trust.authority import Authority
from phaul.trust.certificates import make_key, make_request, names_in, read_certificates, read_request
from phaul.trust.connections import CALLS, dial
from phaul.trust.store import TrustStore
from phaul.trust.tls_stream import TlsStream
from tests.fuzz.sandbox import Sandbox
from tests.fuzz.surface import Finding, Reader, log_nothing

LOOPBACK = "127.0.0.1"
ANSWER_SECONDS = 5.0


class Trust:
    """Texts that a peer may send, where the files of trust are asked."""

    def __init__(self, sandbox: Sandbox) -> None:
        log_nothing()
        self._store = TrustStore(sandbox.beside("trust"))
        Authority(self._store).create("a", 7428, [LOOPBACK])
        self._known = self._store.current().list_text

    def take(self, data: bytes) -> None:
        """A byte says what the text is."""
        reader = Reader(data)
        kind, text = reader.byte() % 4, reader.rest().decode(errors="replace")
        with contextlib.suppress(PhaulError):
            if kind == 0:
                trust_list.read(text)
            elif kind == 1:
                if self._store.offer(text):
                    raise Finding("a list was taken that no root has signed")
            elif kind == 2:
                read_request(text)
            else:
                with contextlib.suppress(ValueError):  # what it says of a text that is none
                    for certificate in read_certificates(text):
                        names_in(certificate)
        if self._store.current().list_text != self._known:
            raise Finding("the list of what is trusted has changed")

    @staticmethod
    def seeds() -> Iterator[bytes]:
        """Real ones."""
        with tempfile.TemporaryDirectory() as directory:
            store = TrustStore(Path(directory))
            Authority(store).create("a", 7428, [LOOPBACK])
            text = store.current().list_text
            for kind in (b"\0", b"\1"):
                yield kind + text.encode()
                yield kind + json.dumps({"body": json.loads(text)["body"], "signatures": {}}).encode()
                yield kind + b"[" * 2000
                yield kind + json.dumps({"body": "[]", "signatures": []}).encode()
                yield kind + json.dumps({"body": json.dumps({"number": 1e400, "authority": 1, "roots": ""})}).encode()
            yield b"\2" + make_request(make_key()).encode()
            yield b"\3" + store.host_file.read_bytes()
            yield b"\3-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"


class Ports:
    """A whole agent: bytes on its two ports, with and without TLS before them, with and without a certificate."""

    def __init__(self, sandbox: Sandbox) -> None:
        log_nothing()
        base = sandbox.beside("agent")
        self._config = AgentConfig(
            socket=base / "agent.sock", listen=f"{LOOPBACK}:0", page_port=0, runtime_dir=base, state_dir=base / "state"
        )
        self._store = TrustStore(trust_directory(self._config))
        Authority(self._store).create("a", 7428, [LOOPBACK])
        self._loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self._loop)  # gRPC asks for it
        self._server = AgentServer(self._config, fake_host(FakeMachine("b"), base / "rooms"))
        self._loop.run_until_complete(self._server.__aenter__())
        self._inputs = 0
        self._unseen: list[str] = []  # what went wrong where nobody looked
        self._loop.set_exception_handler(lambda _, context: self._unseen.append(str(context)))

    def take(self, data: bytes) -> None:
        """A byte says where it goes and how it begins."""
        self._loop.run_until_complete(asyncio.wait_for(self._take(data), 4 * ANSWER_SECONDS))
        if self._unseen:
            raise Finding(self._unseen[0])

    async def _take(self, data: bytes) -> None:
        reader = Reader(data)
        kind, content = reader.byte() % 4, reader.rest()
        if kind == 3:
            await self._after_hello(content)
        elif kind == 2:
            await self._after_handshake(content)
        else:
            await self._raw(self._server.peer_port if kind else self._server._listener.port, content)
        self._inputs += 1
        if self._inputs % 64 == 0:
            connection = await dial(self._store, LOOPBACK, self._server.peer_port)  # it still answers
            await connection.stream.close()

    async def _raw(self, port: int, content: bytes) -> None:
        reader, writer = await asyncio.open_connection(LOOPBACK, port)
        try:
            writer.write(content)
            writer.write_eof()
            async with asyncio.timeout(ANSWER_SECONDS):
                await reader.read()
        except ConnectionError:
            pass
        finally:
            writer.transport.abort()

    async def _after_handshake(self, content: bytes) -> None:
        reader, writer = await asyncio.open_connection(LOOPBACK, self._server.peer_port)
        stream = TlsStream(self._store.current().client, reader, writer, server_side=False)
        try:
            await stream.handshake()
            await stream.write(content or b"\n")
            await stream.close()
        except OSError:
            stream.abort()

    async def _after_hello(self, content: bytes) -> None:
        connection = await dial(self._store, LOOPBACK, self._server.peer_port, CALLS)
        try:
            await connection.stream.write(content or b"\n")
            if content.startswith(b"PRI"):
                async with asyncio.timeout(0.01):  # gRPC says something to what begins well, and then may wait
                    await connection.stream.read()
        except (OSError, TimeoutError):
            pass
        finally:
            await connection.stream.close()

    @staticmethod
    def seeds() -> Iterator[bytes]:
        """Beginnings of what is spoken there, and of what is not."""
        http2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
        for kind in range(4):
            for content in (b"", b"GET / HTTP/1.1\r\n\r\n", http2, bytes(32), bytes(33), b"\x16\x03\x01\x02\0\1\0"):
                yield bytes([kind]) + content
        wants: tuple[object, ...] = ({"list": "", "wants": "calls"}, {"wants": "renewal", "request": "x"})
        for line in (*wants, {}, {"refused": "x"}, [], 1):
            yield b"\2" + json.dumps(line).encode() + b"\n"
        yield b"\2" + b"[" * 3000 + b"\n"
