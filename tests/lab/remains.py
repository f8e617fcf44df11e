"""What a host has that a migration could leave behind; two looks at it are compared, before and after.

Reads the kernel's and the file system's own view of the host. Asks phaul nothing.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Container
from pathlib import Path

from phaul.criu import loader
from phaul.lab.host import Host
from phaul.system import keeper

from .witness import wait_until

# One shell for all, since entering a host takes longer than any of them.
LOOK = """
nft list tables; echo --; iptables-save; ip6tables-save; echo --; ip -o addr show; echo --
ip -o rule; ip -o route; ip -6 -o route; echo --; ip -br link; echo --; ip netns list
"""
ATTENDANTS = (keeper.__name__, loader.__name__)  # one of each stands ready (`phaul.system.attendants`)
TIDY_SECONDS = 10.0  # the destination announces its addresses for 0.8 s
HISTORY = {"summary.json", "journal", "dump.log", "restore.log", "loading", "stats-dump", "stats-restore"}
STATE = "/var/lib/phaul"


def look(host: Host) -> dict[str, list[str]]:
    """Give everything by kind, sorted."""
    agent = host.agent_pid
    assert agent is not None, f"the agent of {host.name} has ended"
    wait_until(lambda: set(ATTENDANTS) <= set(_attendants(host, agent).values()), "no attendants stand ready")
    ready = {name: pid for pid, name in _attendants(host, agent).items()}
    tables, rules, addresses, routes, links, networks = host.exec(["sh", "-c", LOOK]).stdout.split("--\n")
    return {
        "tables of nftables": sorted(tables.splitlines()),
        "rules of iptables": sorted(line for line in rules.splitlines() if line.startswith("-A")),
        "addresses": sorted(" ".join(re.sub(r"valid_lft.*", "", line).split()) for line in addresses.splitlines()),
        "routes and rules": sorted(" ".join(line.split()) for line in routes.splitlines()),
        "network devices": sorted(line.split()[0].partition("@")[0] for line in links.splitlines()),
        "named network namespaces": sorted(line.split()[0] for line in networks.splitlines()),
        "mounts": sorted(line.split()[4] for line in host.path(f"/proc/{agent}/mountinfo").read_text().splitlines()),
        "processes": _processes(host, {agent, *ready.values()}),
        "descriptors of the agent": _descriptors(host, agent),
        "children of the agent": sorted(map(str, {*_children(host, agent)} - {*ready.values()})),
        "files of phaul": [name for name in _files(host, "/run/phaul") if name != "agent.sock"],
        "files beside the history": [name for name in _files(host, STATE) if Path(name).name not in HISTORY],
        "other files": [name for place in ("/tmp", "/run/witness", "/srv") for name in _files(host, place)],
    }


def difference(before: dict[str, list[str]], after: dict[str, list[str]]) -> dict[str, str]:
    """Say what came and what went, by kind; empty where nothing has changed."""
    changes = {}
    for kind, was in before.items():
        came, went = Counter(after[kind]) - Counter(was), Counter(was) - Counter(after[kind])
        if kind == "descriptors of the agent":
            went.clear()  # of an earlier test: what the agent gives back late is not what this one has left behind
        if came or went:
            changes[kind] = f"came {sorted(came.elements())}, went {sorted(went.elements())}"
    return changes


def assert_as_before(host: Host, before: dict[str, list[str]]) -> None:
    """Wait until the host is again as it was; fail with what is left behind."""
    changes: dict[str, str] = {}

    def same() -> bool:
        changes.clear()
        changes.update(difference(before, look(host)))
        return not changes

    try:
        wait_until(same, "", TIDY_SECONDS)
    except AssertionError:
        raise AssertionError(f"left behind on {host.name}: {changes}") from None


def agent_resident_bytes(host: Host) -> int:
    """Say how much memory the agent has."""
    status = host.path(f"/proc/{host.agent_pid}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024


def migration_directories(host: Host) -> int:
    """Say how many migrations the host keeps a history of."""
    return len(list(host.path(STATE).glob("migrations/*/summary.json")))


def _children(host: Host, agent: int) -> list[int]:
    return [*map(int, host.path(f"/proc/{agent}/task/{agent}/children").read_text().split())]


def _attendants(host: Host, agent: int) -> dict[int, str]:
    """Give the attendants that are children of the agent, with what they are: also those that do not stand ready."""
    found = {}
    for pid in _children(host, agent):
        try:
            argv = host.path(f"/proc/{pid}/cmdline").read_text().split("\0")
        except OSError:
            continue  # it has ended meanwhile
        if names := set(ATTENDANTS) & set(argv):
            (found[pid],) = names
    return found


def _processes(host: Host, but: Container[int]) -> list[str]:
    """Give every process but some, zombies as such."""
    found = []
    for entry in host.path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) in but:
            continue
        stat = host.stat(int(entry.name))
        if stat is not None:
            found.append(f"{entry.name} {stat.command} {'zombie' if stat.is_dead else 'alive'}")
    return sorted(found)


def _descriptors(host: Host, agent: int) -> list[str]:
    """Give the kinds of the agent's descriptors, without their inodes, which change."""
    kinds = []
    for entry in host.path(f"/proc/{agent}/fd").iterdir():
        try:
            kinds.append(re.sub(r":\[\d+\]", "", str(entry.readlink())))
        except FileNotFoundError:  # closed meanwhile
            continue
    return sorted(kinds)


def _files(host: Host, directory: str) -> list[str]:
    top = host.path(directory)
    return sorted(str(path.relative_to(top)) for path in top.rglob("*") if not path.is_dir()) if top.is_dir() else []
