"""A workload that moves back and forth: nothing of it may add up on either host."""

from __future__ import annotations

from . import remains
from .clients import RedisLoad
from .stage import Stage

SETTLED_AFTER = 12  # an agent has its threads and pools then; in 60 moves more it grew by 3 MiB
MOVES = SETTLED_AFTER + 20
LOOKS = 8  # what an agent holds goes up and down by 5 MiB within a dozen moves
RESIDENT_GROWTH_BYTES = 5 << 20
REDIS_PORT = 6379
LONGEST_GAP_SECONDS = 15.0  # a migration that hangs, not a slow one: machines are shared


def test_twenty_moves_of_redis_leave_nothing_behind(stage: Stage) -> None:
    address = stage.add_address(stage.ip4)
    pid = stage.start_redis(address, REDIS_PORT)
    hosts = [stage.a, stage.b]
    looks: dict[str, list[int]] = {host.name: [] for host in hosts}
    with RedisLoad(stage.client, address, REDIS_PORT) as load:
        before = load.wait_more(50)
        for turn in range(MOVES):
            source = hosts[turn % 2]
            move = stage.move(pid, source, stage.ip4)
            account = load.wait_more(20)
            assert account.error == "", f"move {turn + 1}: {account.error}"
            assert account.lost == 0
            for host in hosts:
                looks[host.name].append(remains.agent_resident_bytes(host))
        for host in hosts:
            # Between two moves an agent may hold what it gives back a moment later: the least look counts.
            grown = min(looks[host.name][-LOOKS:]) - min(looks[host.name][SETTLED_AFTER - LOOKS : SETTLED_AFTER])
            assert grown < RESIDENT_GROWTH_BYTES, f"the agent of {host.name} has grown by {grown} bytes"
            assert remains.migration_directories(host) >= MOVES
        account = load.finish()
        account.check(before.arrivals[-1], move.ended, finished=True)
        assert account.longest_gap(before.arrivals[-1]) < LONGEST_GAP_SECONDS
    # What else could be left is compared when the stage is cleared.
