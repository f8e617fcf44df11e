"""Two hosts that look at each other's certificate on loopback: who is let in, and what each side says where not."""

from __future__ import annotations

import asyncio
import datetime
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from phaul.errors import NotTrustedError, PhaulError, UnreachableError
from phaul.trust.authority import Authority
from phaul.trust.connections import RENEWAL, TrustedConnection, dial, receive, utc_now
from phaul.trust.store import TrustStore

HOST = "127.0.0.1"
PORT = 7428


@dataclass
class Hosts:
    """An authority's host `a`, and `b` with a certificate of that authority."""

    root: Path
    a: TrustStore
    b: TrustStore
    authority: Authority

    def give(self, name: str, also: list[str], *, authority: Authority | None = None, days: float = 7) -> TrustStore:
        store = TrustStore(self.root / name)
        pem, trust_list = (authority or self.authority).issue(name, PORT, also, days)
        store.put_host(pem)
        store.put_list(trust_list)
        return store

    def other_authority(self, when: datetime.timedelta = datetime.timedelta()) -> Authority:
        """One that nobody else trusts, or whose clock differs."""
        store = TrustStore(self.root / "other")
        authority = Authority(store, lambda: utc_now() + when)
        authority.create("other", PORT, ["198.51.100.1"])
        return authority


@pytest.fixture
def hosts(tmp_path: Path) -> Hosts:
    a = TrustStore(tmp_path / "a")
    authority = Authority(a)
    authority.create("a.example", PORT, [HOST, "::1"])
    made = Hosts(tmp_path, a, a, authority)
    made.b = made.give("b.example", [HOST, "::1"])
    return made


@dataclass
class Met:
    """What came of one connection, on both sides."""

    dialled: TrustedConnection | PhaulError
    received: TrustedConnection | PhaulError

    def errors(self) -> tuple[str, str]:
        assert isinstance(self.dialled, PhaulError), self.dialled
        assert isinstance(self.received, PhaulError), self.received
        return self.dialled.message, self.received.message


def clock(days: float) -> Callable[[], datetime.datetime]:
    return lambda: utc_now() + datetime.timedelta(days=days)


async def attempt(work: Awaitable[TrustedConnection]) -> TrustedConnection | PhaulError:
    try:
        return await work
    except PhaulError as error:
        return error


Meet = Callable[..., Awaitable[Met]]


@pytest.fixture
async def meet() -> AsyncIterator[Meet]:
    """Have one host dial the other."""
    ends: list[TrustedConnection] = []

    async def both(caller: TrustStore, called: TrustStore, host: str = HOST, *wanted: str) -> Met:
        loop = asyncio.get_running_loop()
        received: asyncio.Future[TrustedConnection | PhaulError] = loop.create_future()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            received.set_result(await attempt(receive(called, reader, writer)))

        server = await asyncio.start_server(serve, HOST, 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            dialled = await attempt(dial(caller, host, port, *wanted))
            async with asyncio.timeout(5):
                met = Met(dialled, await received)
            ends.extend(each for each in (met.dialled, met.received) if isinstance(each, TrustedConnection))
            return met

    yield both
    for end in ends:
        end.stream.abort()


async def test_two_hosts_of_one_authority_speak(hosts: Hosts, meet: Meet) -> None:
    met = await meet(hosts.b, hosts.a, HOST, RENEWAL, "x")
    assert isinstance(met.dialled, TrustedConnection), met.dialled
    assert isinstance(met.received, TrustedConnection), met.received
    assert (met.received.wants, met.received.request) == (RENEWAL, "x")
    assert met.received.names.hosts == ("b.example",)
    assert met.dialled.names.hosts == ("a.example",)
    sent = bytes(range(256)) * 4096
    writing = asyncio.create_task(met.dialled.stream.write(sent))
    got = b""
    while len(got) < len(sent):
        got += await met.received.stream.read()
    await writing
    assert got == sent
    assert met.dialled.stream._tls.version() == "TLSv1.3"


async def test_another_authority(hosts: Hosts, meet: Meet) -> None:
    stranger = hosts.give("c.example", [HOST], authority=hosts.other_authority())
    there, here = (await meet(stranger, hosts.a)).errors()
    assert there == f"the agent of {there.split()[3]} is not trusted: its certificate is from another authority"
    assert (
        here == "the caller from 127.0.0.1 does not trust this host: this host's certificate is from another "
        "authority than it trusts"
    )


async def test_a_caller_of_another_authority_that_trusts_everyone(hosts: Hosts, meet: Meet) -> None:
    """The same seen from the other end: here it is the server that refuses."""
    stranger = hosts.give("c.example", [HOST], authority=hosts.other_authority())
    stranger.put_list(hosts.a.list_file.read_text())
    there, here = (await meet(stranger, hosts.a)).errors()
    assert "does not trust this host: this host's certificate is from another authority" in there
    assert here == "the caller from 127.0.0.1 is not trusted: its certificate is from another authority"


@pytest.mark.parametrize("bad_calls", [True, False])
async def test_expired_and_not_yet_valid(hosts: Hosts, meet: Meet, bad_calls: bool) -> None:
    for days, word in ((-1.0, "has expired"), (1.0, "not yet valid")):
        late = Authority(hosts.a, clock(days))
        bad = TrustStore(hosts.root / f"bad{days}")
        pem, trust_list = late.issue("b.example", PORT, [HOST], days=0.5)
        bad.put_host(pem)
        bad.put_list(trust_list)
        met = await (meet(bad, hosts.a) if bad_calls else meet(hosts.a, bad))
        there, here = met.errors()
        ours, theirs = (there, here) if bad_calls else (here, there)
        assert "does not trust this host: this host's certificate" in ours
        assert word in ours
        assert "is not trusted: its certificate" in theirs
        assert word in theirs


@pytest.mark.parametrize("bad_calls", [True, False])
async def test_revoked(hosts: Hosts, meet: Meet, bad_calls: bool) -> None:
    hosts.authority.revoke("b.example")
    met = await (meet(hosts.b, hosts.a) if bad_calls else meet(hosts.a, hosts.b))
    there, here = met.errors()
    ours, theirs = (there, here) if bad_calls else (here, there)
    assert "does not trust this host: this host's certificate was revoked" in ours
    assert "is not trusted: its certificate was revoked" in theirs


@pytest.mark.parametrize("bad_calls", [True, False])
async def test_for_another_host(hosts: Hosts, meet: Meet, bad_calls: bool) -> None:
    wrong = hosts.give("c.example", ["192.0.2.3"])
    met = await (meet(wrong, hosts.a) if bad_calls else meet(hosts.a, wrong))
    there, here = met.errors()
    ours, theirs = (there, here) if bad_calls else (here, there)
    assert "does not trust this host: this host's certificate is for another host" in ours
    assert "is not trusted: its certificate is for another host" in theirs


async def test_a_name_is_compared_too(hosts: Hosts, meet: Meet) -> None:
    named = hosts.give("localhost", [])
    assert "for another host" in (await meet(hosts.a, hosts.b, host="localhost")).errors()[0]
    met = await meet(hosts.a, named, host="localhost")
    assert isinstance(met.dialled, TrustedConnection), met.dialled


async def test_without_a_certificate(hosts: Hosts, meet: Meet) -> None:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["phaul-trust/1"])
    bare = TrustStore(hosts.root / "b.example")
    bare.current()
    object.__setattr__(bare.current(), "client", context)
    there, here = (await meet(bare, hosts.a)).errors()
    assert there.endswith("does not trust this host: this host showed it no certificate")
    assert here == "the caller from 127.0.0.1 is not trusted: it showed no certificate"


async def test_what_is_no_tls(hosts: Hosts) -> None:
    errors: asyncio.Queue[object] = asyncio.Queue()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await errors.put(await attempt(receive(hosts.a, reader, writer)))

    async with await asyncio.start_server(serve, HOST, 0) as server:
        for garbage in (
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"GET / HTTP/1.0\r\n\r\n",
            bytes(range(256)),
            b"\x16\x03\x01",
        ):
            _, writer = await asyncio.open_connection(HOST, server.sockets[0].getsockname()[1])
            writer.write(garbage)
            writer.write_eof()
            error = await asyncio.wait_for(errors.get(), 5)
            assert isinstance(error, NotTrustedError | UnreachableError), error
            assert isinstance(error, UnreachableError) or error.message.endswith("it does not speak TLS 1.3"), (
                error.detail
            )
            writer.close()


async def test_older_tls_is_refused(hosts: Hosts, meet: Meet) -> None:
    hosts.b.current().client.minimum_version = ssl.TLSVersion.TLSv1_2
    hosts.b.current().client.maximum_version = ssl.TLSVersion.TLSv1_2
    there, here = (await meet(hosts.b, hosts.a)).errors()
    assert "does not speak TLS 1.3" in there
    assert "does not speak TLS 1.3" in here


async def test_a_connection_carries_the_newer_list(hosts: Hosts, meet: Meet) -> None:
    c = hosts.give("c.example", [HOST])
    hosts.give("d.example", ["192.0.2.4"])
    hosts.authority.revoke("d.example")
    newer = hosts.a.current().list.number
    assert hosts.b.current().list.number < newer
    await meet(hosts.b, hosts.a)  # the caller learns
    assert hosts.b.current().list.number == newer
    await meet(hosts.b, c)  # the called learns
    assert c.current().list.number == newer


async def test_whoever_brings_the_news_of_its_own_end_is_refused(hosts: Hosts, meet: Meet) -> None:
    """b was revoked; c does not know yet, and b, honest or not, hands it the list that says so."""
    c = hosts.give("c.example", [HOST])
    hosts.authority.revoke("b.example")
    hosts.b.put_list(hosts.a.list_file.read_text())
    met = await meet(hosts.b, c)
    assert isinstance(met.received, NotTrustedError), met.received
    assert "revoked" in met.received.message
