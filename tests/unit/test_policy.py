"""Who may do what: the policy file, its mistakes, and what follows from it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from phaul.agent.policy_file import PolicyFile, parse_policy, read_policy
from phaul.errors import UsageError
from phaul.migration.policy import (
    Belonging,
    Limits,
    Person,
    Policy,
    is_named,
    why_peer_may_not,
    why_person_may_not,
    why_too_big,
    why_too_many,
)
from phaul.units import GIB

ALICE = Person(1000, "alice", ("ops", "27"), False)
ROOT = Person(0, "root", (), True)
SHOP = Belonging(10, frozenset({"www-data", "33"}), "/system.slice/shop-a.service", "/usr/bin/shop")
HERS = Belonging(11, frozenset({"alice", "1000"}), "/user.slice/session-1.scope", "/usr/bin/vi")
NOBODYS = Belonging(12, frozenset(), "/user.slice/session-1.scope", "")


def rules(text: str) -> Policy:
    return parse_policy(text.encode(), "it")


def test_without_a_file_root_alone_and_every_peer() -> None:
    policy = Policy()
    assert not why_person_may_not(policy, ROOT, (), ["10.0.0.1"])
    assert why_person_may_not(policy, ALICE, (HERS,), ()) == "the policy has no rule for alice (1000)"
    assert not is_named(policy, ALICE)
    assert not why_peer_may_not(policy.peers.send, ["a.example"])
    assert not why_too_big(policy.limits, 1 << 60)
    assert not why_too_many(policy.limits, 10_000)


@pytest.mark.parametrize(
    ("patterns", "names", "may"),
    [
        (["a.example"], ["a.example", "10.0.0.1"], True),
        (["A.Example."], ["a.example"], True),
        (["*.prod.example"], ["a.prod.example"], True),
        (["*.prod.example"], ["prod.example.evil"], False),
        (["10.0.0.0/24"], ["a.example", "10.0.0.7"], True),
        (["10.0.0.0/24"], ["a.example", "10.0.1.7"], False),
        (["10.0.0.0/24"], ["10.0.0.0"], True),
        (["fd00::/64"], ["10.0.0.1", "fd00::7"], True),
        (["10.0.0.1"], ["10.0.0.1"], True),
        ([], ["a.example"], False),
        (["a.example"], [], False),
    ],
)
def test_peers(patterns: list[str], names: list[str], may: bool) -> None:
    policy = rules(f"[peers]\nsend = {patterns}")
    assert (why_peer_may_not(policy.peers.send, names) == "") is may
    assert not why_peer_may_not(policy.peers.receive, names)


@pytest.mark.parametrize(
    ("rule", "workload", "may"),
    [
        ('groups = ["ops"]\nowners = ["www-data"]', (SHOP,), True),
        ('groups = ["27"]\nowners = ["33"]', (SHOP,), True),
        ('users = ["1000"]\nowners = ["self"]', (HERS,), True),
        ('users = ["alice"]\nowners = ["self"]', (SHOP,), False),
        ('users = ["alice"]\nowners = ["self"]', (HERS, SHOP), False),  # a child of somebody else
        ('users = ["alice"]\nowners = ["self"]', (HERS, NOBODYS), False),  # set-user-ID
        ('users = ["alice"]\nowners = ["*"]', (HERS, SHOP, NOBODYS), True),
        ('users = ["bob"]\nowners = ["*"]', (HERS,), False),
        ('groups = ["ops"]\nunits = ["shop-*.service"]', (SHOP,), True),
        ('groups = ["ops"]\nunits = ["shop-*.service"]', (SHOP, HERS), False),
        ('groups = ["ops"]\nunits = ["system.slice"]', (SHOP,), True),
        ('groups = ["ops"]\ncgroups = ["/system.slice/*"]', (SHOP,), True),
        ('groups = ["ops"]\ncgroups = ["/system.slice/*"]', (HERS,), False),
        ('groups = ["ops"]\nexecutables = ["/usr/bin/shop"]', (SHOP, HERS), True),  # the first process runs it
        ('groups = ["ops"]\nexecutables = ["/usr/bin/shop"]', (HERS, SHOP), False),
        ('groups = ["ops"]\nexecutables = ["*"]', (), False),
        ('groups = ["ops"]\nexecutables = ["/usr/bin/shop"]\nowners = ["alice"]', (SHOP,), False),  # both must hold
    ],
)
def test_users(rule: str, workload: tuple[Belonging, ...], may: bool) -> None:
    try:
        policy = rules(f"[[users]]\n{rule}")
    except UsageError:  # executables = ["*"] is no path
        assert not may
        return
    assert (why_person_may_not(policy, ALICE, workload, ()) == "") is may
    assert not why_person_may_not(policy, ROOT, workload, ())


def test_addresses_are_taken_along_only_where_a_rule_says_so() -> None:
    without = rules('[[users]]\nusers = ["alice"]\nowners = ["self"]')
    assert "move the address 10.0.0.5" in why_person_may_not(without, ALICE, (HERS,), ["10.0.0.5"])
    some = rules('[[users]]\nusers = ["alice"]\nowners = ["self"]\naddresses = ["10.0.0.0/29", "fd00::/64"]')
    assert not why_person_may_not(some, ALICE, (HERS,), ["10.0.0.5", "fd00::1"])
    assert "10.0.0.9" in why_person_may_not(some, ALICE, (HERS,), ["10.0.0.5", "10.0.0.9"])


def test_one_rule_must_allow_all_of_it() -> None:
    two = rules(
        '[[users]]\nusers = ["alice"]\nowners = ["self"]\n'
        '[[users]]\nusers = ["alice"]\nowners = ["www-data"]\naddresses = ["0.0.0.0/0"]'
    )
    assert not why_person_may_not(two, ALICE, (HERS,), ())
    assert why_person_may_not(two, ALICE, (HERS,), ["10.0.0.1"])
    assert why_person_may_not(two, ALICE, (HERS, SHOP), ())


def test_limits() -> None:
    limits = rules('[limits]\nmemory = "2GiB"\nmigrations = 2').limits
    assert limits == Limits(2 * GIB, 2)
    assert not why_too_big(limits, 2 * GIB)
    assert why_too_big(limits, 2 * GIB + 1) == "it has 2.0 GiB of memory, and the policy allows 2.0 GiB"
    assert not why_too_many(limits, 1)
    assert why_too_many(limits, 2) == "2 migrations are under way, and the policy allows 2 at once"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[peers\n", "is no TOML"),
        ("\xff", "is no TOML"),
        ("[peer]\nsend = []", "peer: there is no such entry"),
        ("[peers]\nsend = 'a'", "peers.send: Input should be a valid tuple"),
        ("[peers]\nsend = ['a b']", "peers.send[1]: a name or pattern is needed, without blanks"),
        ("[peers]\nsend = ['10.0.0.1/24']", "peers.send[1]: 10.0.0.1/24 has host bits set"),
        ("[limits]\nmemory = '64'", "limits.memory: '64' is no amount of memory"),
        ("[limits]\nmemory = '0GiB'", "limits.memory: Input should be greater than 0"),
        ("[limits]\nmigrations = -1", "limits.migrations: Input should be greater than or equal to 0"),
        ("[[users]]\nowners = ['self']", "users[1]: it says not for whom"),
        ("[[users]]\nusers = ['a']", "users[1]: it says not which workloads"),
        ("[[users]]\nusers = ['a']\nowners = ['*']\ncgroups = ['x']", "users[1].cgroups[1]: it must begin with /"),
        ("[[users]]\nusers = ['a']\nowner = ['*']", "users[1].owner: there is no such entry"),
        ("[[users]]\nusers = [0]\nowners = ['*']", "users[1].users[1]: Input should be a valid string"),
        ("[[users]]\nusers = ['a']\nowners = ['*']\naddresses = ['x']", "users[1].addresses[1]: 'x' does not appear"),
    ],
)
def test_mistakes_are_named_with_their_place(text: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_policy(text.encode("latin-1"), "it")
    assert said in caught.value.message
    assert caught.value.message.startswith("the policy it is ")


def write(path: Path, text: str) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_text(text)
    fresh.chmod(0o644)
    fresh.rename(path)


def test_a_file_is_read_again_and_a_wrong_one_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    write(path, "[limits]\nmigrations = 1")
    file = PolicyFile(path)
    file.start()
    seen: list[Policy] = []
    file.changed = seen.append
    assert file.current().limits.migrations == 1
    assert not seen
    write(path, "[limits]\nmigrations = 22")
    assert file.current().limits.migrations == 22
    write(path, "[limits]\nmigrations = 'many'")
    assert file.current().limits.migrations == 22
    assert "limits.migrations" in file.problem
    write(path, "[limits]\nmigrations = 3")
    assert file.reload().limits.migrations == 3
    assert not file.problem
    path.unlink()
    assert file.current() == Policy()
    assert not file.exists
    assert [each.limits.migrations for each in seen] == [22, 3, None]


def test_a_wrong_or_missing_file_keeps_an_agent_from_starting(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    with pytest.raises(UsageError, match="cannot be read"):
        PolicyFile(path).start()
    write(path, "[limit]")
    with pytest.raises(UsageError, match="there is no such entry"):
        PolicyFile(path).start()


def test_a_file_that_others_can_write_is_no_policy(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    write(path, "")
    assert read_policy(path) == Policy()
    for mode in (0o664, 0o646):
        path.chmod(mode)
        with pytest.raises(UsageError, match="could be changed by others than root"):
            read_policy(path)
        assert read_policy(path, trusted=False) == Policy()
    path.chmod(0o644)
    if os.geteuid() == 0:
        os.chown(path, 1, 0)
        with pytest.raises(UsageError, match="could be changed by others than root"):
            read_policy(path)
