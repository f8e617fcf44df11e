"""The policy of two real agents: who is denied what, in which words on both sides, and what the audit logs say."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from phaul.agent import server
from phaul.agent.client import AgentClient
from phaul.errors import PhaulError, PolicyError, UsageError
from phaul.lab.fake_machine import TreeState
from phaul.migration.peer import Reservation
from phaul.migration.policy import Belonging
from phaul.rpc.v1 import agent_pb2, facts_pb2
from phaul.system import credentials
from phaul.system.credentials import Credentials
from tests.component.conftest import ADDRESS, PID, Pair
from tests.component.trusting import LOOPBACK, Trusts, make_trusts, trusting_pair

ALICE, BOB = 4711, 4712  # no user database has them
OTHERS = Belonging(PID, frozenset({"0", "root"}), "/system.slice/x.service", "/usr/bin/x")
HERS = Belonging(PID, frozenset({str(ALICE)}), "/user.slice/x.scope", "/usr/bin/x")
RULE = f'[[users]]\nusers = ["{ALICE}", "{BOB}"]\nowners = ["{ALICE}"]\n'


@pytest.fixture
def trusts(tmp_path: Path) -> Trusts:
    return make_trusts(tmp_path)


@pytest.fixture
def whose(monkeypatch: pytest.MonkeyPatch) -> list[Belonging]:
    """What the workload belongs to, as the agents see it."""
    found = [HERS]

    async def look(root_pid: int) -> list[Belonging]:
        assert root_pid == PID
        return found

    monkeypatch.setattr(server, "look_at_belongings", look)
    return found


@pytest.fixture
def become(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Every connection from now on is of this user, as the kernel tells."""

    def user(user_id: int) -> None:
        def of_peer(connection: socket.socket) -> Credentials:
            return Credentials(1, user_id, (user_id,))

        monkeypatch.setattr(credentials, "of_peer", of_peer)

    return user


def policy(trusts: Trusts, host: str, text: str) -> None:
    path = trusts.base / host / "policy.toml"
    path.parent.mkdir(exist_ok=True)
    fresh = path.with_suffix(".new")
    fresh.write_text(text)
    fresh.chmod(0o644)
    fresh.rename(path)


def audited(trusts: Trusts, host: str, **wanted: object) -> list[dict[str, object]]:
    """The records that have all of this."""
    path = trusts.base / host / "state" / "audit.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [each for each in records if wanted.items() <= each.items()]


async def soon(trusts: Trusts, host: str, **wanted: object) -> dict[str, object]:
    async with asyncio.timeout(10):
        while not (found := audited(trusts, host, **wanted)):
            await asyncio.sleep(0.02)
    return found[-1]


async def denied(pair: Pair) -> facts_pb2.ErrorInfo:
    """Try to migrate; give the error, once it is sure that nothing was touched."""
    finished = (await pair.migrate(ADDRESS))[-1].finished
    assert finished.outcome == agent_pb2.OUTCOME_REFUSED
    untouched(pair)
    return finished.error


def untouched(pair: Pair) -> None:
    assert pair.source.machine.state(PID) is TreeState.RUNNING
    assert pair.source.machine.local == [ADDRESS]
    assert pair.destination.machine.trees == {}
    assert not list(pair.destination.rooms.glob("*"))


async def test_what_is_done_is_written_down_on_both_hosts(trusts: Trusts) -> None:
    async with trusting_pair(trusts) as pair:
        events = await pair.migrate(ADDRESS)
        migration_id = events[-1].migration_id
        (left,) = await pair.source.client.list_migrations()
        (arrived,) = await pair.destination.client.list_migrations()
    assert left.asked_by == f"{credentials.user_name(os.geteuid()) or 'user'} ({os.geteuid()})"
    assert arrived.asked_by == f"a at {pair.source.target}"
    for host, role, who in (("a", "source", left.asked_by), ("b", "destination", arrived.asked_by)):
        for event, outcome in (("migration.asked", "allowed"), ("migration.ended", "completed")):
            (record,) = audited(trusts, host, event=event)
            assert (record["migration_id"], record["role"], record["who"]) == (migration_id, role, who)
            assert record["outcome"] == outcome
    assert audited(trusts, "a", event="migration.asked")[0]["addresses"] == ["10.9.9.9/24"]


async def test_without_a_rule_a_user_may_nothing(
    trusts: Trusts, become: Callable[[int], None], whose: list[Belonging]
) -> None:
    async with trusting_pair(trusts) as pair:
        path = trusts.base / "a" / "agent.sock"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        become(BOB)
        async with AgentClient(path) as bob:
            for call in (
                bob.start(pair.request()),
                bob.check(pair.request()),
                bob.list_migrations(),
                bob.describe_host(),
                bob.describe_policy(),
                bob.describe_doubt("x"),
                bob.resolve("x", agent_pb2.CHOICE_RESUME_HERE, force=True),
            ):
                with pytest.raises(PolicyError) as caught:
                    await call
                assert f"user ({BOB})" in caught.value.message
                assert caught.value.exit_status == 13
        untouched(pair)
        record = await soon(trusts, "a", event="migration.asked", outcome="denied")
        assert (record["who"], record["user_id"], record["root_pid"]) == (f"user ({BOB})", BOB, PID)
        assert record["reason"] == f"the policy has no rule for user ({BOB})"
        await soon(trusts, "a", event="migration.resolve", outcome="denied")


async def test_a_rule_lets_users_do_what_it_says_and_no_more(
    trusts: Trusts, become: Callable[[int], None], whose: list[Belonging]
) -> None:
    policy(trusts, "a", RULE)
    async with trusting_pair(trusts) as pair:
        path = trusts.base / "a" / "agent.sock"
        assert stat.S_IMODE(path.stat().st_mode) == 0o666
        assert stat.S_IMODE(path.parent.stat().st_mode) & 0o011 == 0o011
        become(ALICE)
        async with AgentClient(path) as alice:
            with pytest.raises(PolicyError, match=r"move the address 10\.9\.9\.9"):
                await alice.start(pair.request(ADDRESS))
            hooked = pair.request()
            hooked.hooks.append("/usr/sbin/reboot")
            with pytest.raises(PolicyError, match="hooks are named by root"):
                await alice.start(hooked)
            whose[:] = [HERS, OTHERS]
            with pytest.raises(PolicyError, match=r"does not let .* migrate processes of 0/root"):
                await alice.start(pair.request())
            with pytest.raises(PolicyError):
                await alice.check(pair.request())
            whose[:] = [HERS]
            assert (await alice.check(pair.request())).workload.root_pid == PID
            untouched(pair)
            migration_id = await alice.start(pair.request())
            events = [event async for event in alice.watch(migration_id)]
            assert events[-1].finished.outcome == agent_pb2.OUTCOME_COMPLETED, events[-1].finished.error
            assert not (await alice.cancel(migration_id)).accepted
            (mine,) = await alice.list_migrations()
            assert mine.asked_by == f"user ({ALICE})"
        become(BOB)
        async with AgentClient(path) as bob:  # gRPC would share a connection with a client that is still open
            assert len(await bob.list_migrations()) == 1
            with pytest.raises(PolicyError, match="was not asked for by"):
                await bob.cancel(migration_id)
        await soon(trusts, "a", event="migration.cancel", outcome="denied", who=f"user ({BOB})")
        await soon(trusts, "a", event="migration.cancel", outcome="too late", who=f"user ({ALICE})")


async def test_a_workload_that_changes_hands_after_it_was_asked_for(
    trusts: Trusts, become: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the call and preflight a process may become another user's: it is looked at again."""
    looks = iter([[HERS], [OTHERS]])

    async def look(_: int) -> list[Belonging]:
        return next(looks)

    monkeypatch.setattr(server, "look_at_belongings", look)
    policy(trusts, "a", RULE)
    async with trusting_pair(trusts) as pair:
        become(ALICE)
        async with AgentClient(trusts.base / "a" / "agent.sock") as alice:
            migration_id = await alice.start(pair.request())
            finished = [event async for event in alice.watch(migration_id)][-1].finished
        assert finished.error.code == "PolicyError"
        untouched(pair)


@pytest.mark.parametrize(
    ("host", "text", "said", "at_other"),
    [
        ("a", '[peers]\nreceive = ["c"]', "this host may not send workloads to b: the policy does not name b", False),
        ("b", '[peers]\nsend = ["c", "192.0.2.0/24"]', "that host may not send workloads to this one", True),
        ("b", "[peers]\nsend = []", "that host may not send workloads to this one", True),
        ("b", '[limits]\nmemory = "1KiB"', "the policy of b allows 1.0 KiB", False),
        ("a", '[limits]\nmemory = "1KiB"', "the policy allows 1.0 KiB", False),
        ("b", "[limits]\nmigrations = 0", "the policy allows 0 at once", True),
    ],
)
async def test_denied_in_clear_words_and_nothing_was_touched(
    trusts: Trusts, host: str, text: str, said: str, at_other: bool
) -> None:
    policy(trusts, host, text)
    async with trusting_pair(trusts) as pair:
        error = await denied(pair)
        assert error.code == "PolicyError"
        assert said in error.message
        assert error.hint
        ended = await soon(trusts, "a", event="migration.ended", outcome="refused")
        assert ended["error"] == "PolicyError"
        if at_other:
            record = await soon(trusts, "b", event="migration.asked" if "limits" in text else "check", outcome="denied")
            assert str(record["who"]).startswith("a at ")
            assert said in str(record["reason"])


async def test_a_host_that_may_not_receive_hears_nothing(trusts: Trusts) -> None:
    policy(trusts, "a", '[peers]\nreceive = ["c"]')
    async with trusting_pair(trusts) as pair:
        heard: list[object] = []
        pair.destination.server._peer_service.Observe = heard.append  # type: ignore[method-assign, assignment]
        with pytest.raises(PolicyError):
            await pair.source.client.check(pair.request())
        assert not heard
        # How a migration stands may be asked all the same: what was begun is brought to its end.
        peer = pair.source.server._settlers._connect(pair.destination.target)
        assert str(await peer.word("0badcafe")) == "unknown"
        await peer.close()


async def test_a_source_that_lies_of_its_size_is_denied_by_the_destination(trusts: Trusts) -> None:
    policy(trusts, "b", '[limits]\nmemory = "1MiB"\nmigrations = 1')
    async with trusting_pair(trusts) as pair:
        peer = pair.source.server._settlers._connect(pair.destination.target)

        def reservation(migration_id: str, memory_bytes: int, root_pid: int) -> Reservation:
            return Reservation(migration_id, "a", 1, "", root_pid, "c", memory_bytes, (), False, False)

        with pytest.raises(PolicyError, match=r"allows 1\.0 MiB"):
            await peer.prepare(reservation("0badcafe", (1 << 20) + 1, 1))
        (await peer.prepare(reservation("0badcafe", 1 << 20, 1))).close()
        with pytest.raises(PolicyError, match="allows 1 at once"):
            await peer.prepare(reservation("0badcaff", 1 << 20, 2))
        await peer.abort("0badcafe", "over")
        (await peer.prepare(reservation("0badcaff", 1 << 20, 2))).close()
        await peer.abort("0badcaff", "over")
        await peer.close()
        assert len(audited(trusts, "b", event="migration.asked", outcome="denied")) == 2
        assert len(audited(trusts, "b", event="migration.asked", outcome="allowed")) == 2


async def test_too_many_at_once_on_the_source(trusts: Trusts) -> None:
    policy(trusts, "a", "[limits]\nmigrations = 0")
    async with trusting_pair(trusts) as pair:
        with pytest.raises(PolicyError, match="allows 0 at once"):
            await pair.source.client.start(pair.request())
        untouched(pair)


async def test_a_policy_that_changes_is_taken_up_and_a_wrong_one_is_not(
    trusts: Trusts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "POLICY_SECONDS", 0.05)
    policy(trusts, "a", "")
    async with trusting_pair(trusts) as pair:
        path = trusts.base / "a" / "agent.sock"
        policy(trusts, "a", RULE)
        async with asyncio.timeout(10):  # nobody asks anything meanwhile
            while stat.S_IMODE(path.stat().st_mode) != 0o666:
                await asyncio.sleep(0.02)
        policy(trusts, "a", "[users]")
        async with asyncio.timeout(10):
            while not (report := await pair.source.client.describe_policy()).problem:
                await asyncio.sleep(0.02)
        assert "users: " in report.problem
        assert json.loads(report.policy)["users"][0]["owners"] == [str(ALICE)]
        policy(trusts, "a", "[peers]\nreceive = []")
        pair.source.server.reload_policy()
        assert (await denied(pair)).code == "PolicyError"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_a_wrong_policy_keeps_an_agent_from_starting(trusts: Trusts) -> None:
    policy(trusts, "b", "[limits]\nmemory = 'much'")
    with pytest.raises(UsageError, match=r"limits\.memory: 'much' is no amount of memory"):
        async with trusting_pair(trusts):
            pass


async def test_no_audit_log_no_migration(trusts: Trusts) -> None:
    async with trusting_pair(trusts) as pair:
        (trusts.base / "a" / "state" / "audit.jsonl").unlink(missing_ok=True)
        (trusts.base / "a" / "state" / "audit.jsonl").mkdir()
        with pytest.raises(PhaulError, match=r"the audit log .* could not be written"):
            await pair.source.client.start(pair.request())
        untouched(pair)


async def test_refused_certificates_are_written_down(trusts: Trusts) -> None:
    trusts.authority.revoke("a")
    trusts.store("b").put_list((trusts.base / "authority" / "list.json").read_text())
    async with trusting_pair(trusts) as pair:
        for _ in range(3):
            assert (await denied(pair)).code == "NotTrustedError"
        record = await soon(trusts, "b", event="connection", outcome="refused")
        assert record["who"] == LOOPBACK
        assert "was revoked" in str(record["reason"])
        assert len(audited(trusts, "b", event="connection")) == 1  # the others are counted
