"""Two real agents that look at each other's certificates: who may migrate to whom, and what is said where not."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest
from structlog.testing import capture_logs

from phaul.agent import trust_keeper
from phaul.agent.peer_names import peer_host
from phaul.agent.strangers import STRANGERS
from phaul.errors import NotTrustedError, UnreachableError
from phaul.lab.fake_machine import TreeState
from phaul.migration.peer import Reservation
from phaul.rpc.v1 import agent_pb2, facts_pb2
from phaul.trust.authority import Authority
from phaul.trust.store import TrustStore
from tests.component.conftest import ADDRESS, PID, Pair
from tests.component.trusting import LOOPBACK, PORT, Trusts, clock, make_trusts, trusting_pair


@pytest.fixture
def trusts(tmp_path: Path) -> Trusts:
    return make_trusts(tmp_path)


async def test_a_migration_over_tls(trusts: Trusts) -> None:
    async with trusting_pair(trusts) as pair:
        callers = []
        prepare = pair.destination.server._arrivals.prepare

        async def noting(reservation: Reservation) -> bytes:
            callers.append(reservation.source_peer)
            return await prepare(reservation)

        pair.destination.server._arrivals.prepare = noting  # type: ignore[method-assign]
        events = await pair.migrate(ADDRESS)
        assert events[-1].finished.outcome == agent_pb2.OUTCOME_COMPLETED, events[-1].finished.error
        assert pair.destination.machine.state(PID) is TreeState.RUNNING
        assert callers == [pair.source.target]  # where it can be asked how the migration stands
        (arrived,) = await pair.destination.client.list_migrations()
        assert arrived.migration_id == events[-1].migration_id
        async with asyncio.timeout(5):
            while len(pair.source.server._live):  # every connection ends with its migration
                await asyncio.sleep(0.01)


def other_authority(trusts: Trusts, bad: str) -> None:
    trusts.give(bad, authority=trusts.other_authority())


def trusts_all_but_has_another(trusts: Trusts, bad: str) -> None:
    """It trusts the other host; so it is the other that refuses."""
    known = trusts.store(bad).list_file.read_text()
    other_authority(trusts, bad)
    trusts.store(bad).put_list(known)


def expired(trusts: Trusts, bad: str) -> None:
    trusts.give(bad, authority=Authority(TrustStore(trusts.base / "authority"), clock(-10)), days=2)


def not_yet_valid(trusts: Trusts, bad: str) -> None:
    trusts.give(bad, authority=Authority(TrustStore(trusts.base / "authority"), clock(3)))


def revoked(trusts: Trusts, bad: str) -> None:
    trusts.authority.revoke(bad)
    other = "b" if bad == "a" else "a"
    trusts.store(other).put_list((trusts.base / "authority" / "list.json").read_text())


def for_another_host(trusts: Trusts, bad: str) -> None:
    trusts.give("c", ["192.0.2.77"])
    trusts.store(bad).put_host(trusts.store("c").host_file.read_text())


CASES = [
    (other_authority, "another authority", "another authority"),
    (trusts_all_but_has_another, "another authority", "another authority"),
    (expired, "has expired", "has expired"),
    (not_yet_valid, "not yet valid", "not yet valid"),
    (revoked, "was revoked", "was revoked"),
    (for_another_host, "for another host", "for another host"),
]


@pytest.mark.parametrize("bad", ["a", "b"])
@pytest.mark.parametrize(("spoil", "at_source", "at_destination"), CASES)
async def test_refused_by_name_on_both_sides_with_nothing_touched(
    trusts: Trusts, bad: str, spoil: Callable[[Trusts, str], None], at_source: str, at_destination: str
) -> None:
    spoil(trusts, bad)
    async with trusting_pair(trusts) as pair:
        with capture_logs() as logs:
            error = await refused(pair)
            said = await said_by_destination(logs)
        assert at_source in error.message
        assert at_destination in said
        ours = "is not trusted: its certificate" in error.message
        theirs = "does not trust this host: this host's certificate" in error.message
        assert (ours, theirs) in ((True, False), (False, True))
        assert ("is not trusted: its certificate" in said) == theirs  # one side refuses, the other is refused


async def test_without_a_certificate_a_source_is_told_so(trusts: Trusts) -> None:
    for file in trusts.store("a").directory.iterdir():
        file.unlink()
    async with trusting_pair(trusts) as pair:
        with capture_logs() as logs:
            error = await refused(pair)
            assert "does not speak TLS 1.3" in await said_by_destination(logs)
        assert error.message.endswith("speaks TLS only, and this host's agent has no certificate")


async def test_a_destination_without_a_certificate(trusts: Trusts) -> None:
    for file in trusts.store("b").directory.iterdir():
        file.unlink()
    async with trusting_pair(trusts) as pair:
        error = await refused(pair)
        assert error.message.endswith("is not trusted: it does not speak TLS 1.3")
        assert "--insecure" in error.hint


async def test_many_who_say_nothing_keep_nobody_out(trusts: Trusts) -> None:
    async with trusting_pair(trusts) as pair:
        port = pair.destination.server.peer_port
        silent = [await asyncio.open_connection(LOOPBACK, port) for _ in range(STRANGERS + 20)]
        events = await pair.migrate(ADDRESS)
        assert events[-1].finished.outcome == agent_pb2.OUTCOME_COMPLETED, events[-1].finished.error
        assert await silent[0][0].read() == b""  # the first to come were the first to go
        for _, writer in silent:
            writer.close()


async def test_half_of_the_files_is_not_the_same_as_none(trusts: Trusts) -> None:
    trusts.store("a").list_file.unlink()
    with pytest.raises(NotTrustedError, match=r"list\.json cannot be read"):
        async with trusting_pair(trusts):
            pass


async def test_revoked_while_connected_is_cut_and_refused(trusts: Trusts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust_keeper, "CUT_SECONDS", 0.05)
    async with trusting_pair(trusts) as pair:
        peer = pair.source.server._migrations._connect(pair.destination.target)
        try:
            await peer.observe([], [])
            assert len(pair.destination.server._live) == 1
            trusts.authority.revoke("a")
            trusts.store("b").put_list((trusts.base / "authority" / "list.json").read_text())
            async with asyncio.timeout(5):
                while len(pair.destination.server._live):
                    await asyncio.sleep(0.01)
            said = ""
            async with asyncio.timeout(5):
                while "was revoked" not in said:
                    with pytest.raises(UnreachableError) as caught:  # not `refused`: it has answered before
                        await peer.observe([], [])
                    said = caught.value.message
        finally:
            await peer.close()


async def test_certificates_are_read_again_without_a_restart(trusts: Trusts) -> None:
    good = trusts.store("b").host_file.read_text()
    expired(trusts, "b")
    async with trusting_pair(trusts) as pair:
        assert "has expired" in (await refused(pair)).message
        trusts.store("b").put_host(good)
        events = await pair.migrate(ADDRESS)
        assert events[-1].finished.outcome == agent_pb2.OUTCOME_COMPLETED, events[-1].finished.error


async def test_an_agent_renews_at_the_authority(trusts: Trusts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust_keeper, "CUT_SECONDS", 0.05)
    monkeypatch.setattr(trust_keeper, "RETRY_SECONDS", 0.1)
    # Host `b` is the authority's here; `a` has a certificate two thirds of whose life are over.
    authority = Authority(trusts.store("b"))
    for file in trusts.store("b").directory.iterdir():
        file.unlink()
    async with asyncio.timeout(20):
        await _renews(trusts, authority)


async def _renews(trusts: Trusts, authority: Authority) -> None:
    with socket.create_server((LOOPBACK, 0)) as probe:
        port = probe.getsockname()[1]
    authority.create("localhost", port, [LOOPBACK])
    authority.issue("a", PORT, [LOOPBACK])
    late = Authority(trusts.store("b"), clock(-5))
    trusts.give("a", authority=late)
    before = trusts.store("a").current()
    trusts.ports = {"b": port}
    async with trusting_pair(trusts) as pair:
        while (after := trusts.store("a").current()).certificate == before.certificate:
            await asyncio.sleep(0.02)
        assert after.names == before.names
        assert after.ends > before.ends
        assert after.key.private_numbers() != before.key.private_numbers()
        events = await pair.migrate(ADDRESS)
        assert events[-1].finished.outcome == agent_pb2.OUTCOME_COMPLETED
        # And with a new root: it is taken from the list, and the certificate follows.
        authority.rotate()
        peer = pair.source.server._migrations._connect(pair.destination.target)
        await peer.observe([], [])
        await peer.close()
        while trusts.store("a").current().certificate.issuer == after.certificate.issuer:
            await asyncio.sleep(0.02)
        assert not authority.laggards()
        authority.finish_rotation()
        assert len(trusts.store("b").current().list.roots) == 1
        assert await pair.destination.client.describe_host()


async def refused(pair: Pair) -> facts_pb2.ErrorInfo:
    """Try to migrate; give the error, once it is sure that nothing was touched on either host."""
    finished = (await pair.migrate(ADDRESS))[-1].finished
    assert finished.outcome == agent_pb2.OUTCOME_REFUSED
    assert finished.error.code == "NotTrustedError", finished.error
    assert pair.source.machine.state(PID) is TreeState.RUNNING
    assert pair.source.machine.local == [ADDRESS]
    assert pair.destination.machine.trees == {}
    assert not pair.destination.machine.local
    assert not await pair.destination.client.list_migrations()
    assert not list(pair.destination.rooms.glob("*"))
    return finished.error


async def said_by_destination(logs: list) -> str:  # type: ignore[type-arg]
    async with asyncio.timeout(5):
        while True:
            for entry in logs:
                if entry["event"] == "peer.refused":
                    return str(entry["reason"])
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("address", ["192.0.2.1", "[2001:db8::1]"])
def test_a_caller_behind_tls_is_named_as_grpc_names_others(address: str) -> None:
    assert peer_host(f"unix-abstract:{quote(address)}:40000.7") == address
    assert peer_host(f"unix-abstract:{address}:40000.7") == address
