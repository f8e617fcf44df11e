"""`--new-mac` and `--hostname` between two agents: the copy has them however often it is restored, the source never."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from phaul.errors import RestoreError
from phaul.lab.fake_machine import TreeState
from phaul.migration.facts import LinkFacts, NetworkFacts
from phaul.rpc.v1 import agent_pb2, facts_pb2
from tests.component.conftest import PID, Pair

OLD, NEW = "02:00:00:00:00:50", "02:00:00:00:00:51"
MACVLAN = LinkFacts("eth0", "macvlan", OLD, "eth0", addresses=("10.9.9.50/24",), outer_index=2, index=3)


@pytest.fixture
def named(pair: Pair) -> Pair:
    """The tree has a network and a host name of its own."""
    tree = pair.source.machine.trees[PID]
    tree.network, tree.host_name, tree.macs = NetworkFacts((MACVLAN,)), "web", {"eth0": OLD}
    return pair


def renamed(pair: Pair) -> facts_pb2.MigrationRequest:
    request = pair.request()
    request.new_macs.append(facts_pb2.NewMac(mac=NEW))
    request.host_name = "web2"
    return request


async def migrate(pair: Pair) -> agent_pb2.Finished:
    migration_id = await pair.source.client.start(renamed(pair))
    events = [event async for event in pair.source.client.watch(migration_id)]
    return events[-1].finished


def failing(*acts: str) -> Callable[[str], None]:
    """A fault that lets each of these acts fail once."""
    left = list(acts)

    def fault(name: str) -> None:
        if name in left:
            left.remove(name)
            raise RestoreError(f"{name} failed on purpose")

    return fault


@pytest.mark.parametrize("faults", [(), ("copy.run",)], ids=["at once", "restored a second time"])
async def test_the_copy_has_its_new_identity(named: Pair, faults: tuple[str, ...]) -> None:
    fences: list[tuple[str, ...]] = []
    there = named.destination.machine
    fails = failing(*faults)

    def fault(name: str) -> None:
        if name == "engine.restore":  # what stands around the copy from its first moment
            fences.append(tuple(link.mac for links in there.link_fences.values() for link in links))
        fails(name)

    there.fault = fault
    finished = await migrate(named)
    assert finished.outcome == agent_pb2.OUTCOME_COMPLETED, finished.error
    copy = there.trees[PID]
    assert (copy.host_name, copy.macs) == ("web2", {"eth0": NEW})
    assert fences == [(NEW,)] * (1 + len(faults))
    await asyncio.sleep(0.1)
    assert there.link_fences == {}


async def test_a_rollback_leaves_the_source_as_it_was(named: Pair) -> None:
    named.destination.machine.fault = failing("engine.restore")
    finished = await migrate(named)
    assert finished.outcome == agent_pb2.OUTCOME_ROLLED_BACK, finished.error
    tree = named.source.machine.trees[PID]
    assert tree.state is TreeState.RUNNING
    assert (tree.host_name, tree.macs) == ("web", {"eth0": OLD})
    assert named.source.machine.link_fences == {}


async def test_the_copy_has_its_new_address_and_the_source_sees_its_clients_off(named: Pair) -> None:
    here, there = named.source.machine, named.destination.machine
    request = named.request()
    request.new_addresses.append(facts_pb2.NewAddress(old="10.9.9.50", new="10.9.9.51"))
    there.fault = failing("engine.restore")
    migration_id = await named.source.client.start(request)
    events = [event async for event in named.source.client.watch(migration_id)]
    assert events[-1].finished.outcome == agent_pb2.OUTCOME_ROLLED_BACK
    assert here.announced == there.announced == []
    assert "own_networks.drain" not in here.acts
    migration_id = await named.source.client.start(request)
    events = [event async for event in named.source.client.watch(migration_id)]
    assert events[-1].finished.outcome == agent_pb2.OUTCOME_COMPLETED, events[-1].finished.error
    assert set(there.announced) == {"10.9.9.51/24"}
    order = [each for each in here.acts if each in ("own_networks.fence", "own_networks.drain", "own_networks.forget")]
    assert order[-3:] == ["own_networks.fence", "own_networks.drain", "own_networks.forget"]


@pytest.mark.parametrize("host", ["source", "destination"])
async def test_a_mac_that_either_host_has_heard_is_refused(named: Pair, host: str) -> None:
    getattr(named, host).machine.heard_macs.add(NEW)
    report = await named.source.client.check(renamed(named))
    assert [problem.code for problem in report.problems] == ["mac_taken"]
    finished = await migrate(named)
    assert finished.outcome == agent_pb2.OUTCOME_REFUSED
    assert "engine.dump" not in named.source.machine.acts


async def test_the_host_s_own_name_and_network_are_not_changed(pair: Pair) -> None:
    report = await pair.source.client.check(renamed(pair))
    assert {problem.code for problem in report.problems} == {"host_name_of_host", "new_mac_host_network"}
