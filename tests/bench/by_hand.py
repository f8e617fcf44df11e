"""The same move by hand, with bare CRIU: what a person who knows CRIU well would type, with no pause between commands.

Called by `tests.bench.__main__`, and by `tests.bench.machines` with rounds of pre-copy before the dump. The page server
writes into a tmpfs of huge pages, the small images follow as a tar stream while the addresses move, and the commands
are run by helpers that are on the hosts already.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from phaul.lab import network
from tests.bench.criu_statistics import read_all
from tests.bench.moves import Move, Step
from tests.bench.scene import PREFIX, Helper, Scene

PAGE_PORT = 9101
IMAGE_PORT = 9102
IMAGES = "/run/by-hand"
# huge=always: the stock page server grows its files write by write, for which within_size gives no huge pages.
MAKE_ROOM = f"mkdir -p {IMAGES} && mount -t tmpfs -o mode=0700,huge=always by-hand {IMAGES} && mkdir"

REMOVE_LOCKS = """nft list tables | while read -r _ family name; do
    case $name in CRIU-*) nft delete table "$family" "$name" ;; esac
done"""


class Stopwatch:
    """Times steps; in nanoseconds since 1970, as the client stamps its ticks."""

    def __init__(self) -> None:
        self.start_ns = time.time_ns()
        self.steps: list[Step] = []

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time what is done inside."""
        start_ns = time.time_ns()
        yield
        self.steps.append(Step(name, (start_ns - self.start_ns) / 1000, (time.time_ns() - start_ns) / 1000))

    def elapsed_us(self) -> float:
        """Since the beginning."""
        return (time.time_ns() - self.start_ns) / 1000


def move(scene: Scene, pid: int, source: str, destination: str, *, pre_dumps: int = 0) -> Move:
    """Move the workload, its memory in so many rounds while it runs and what is left in the dump."""
    here, there = scene.helpers[source], scene.helpers[destination]
    address = scene.lab.host(destination).ip4
    directories = [f"{IMAGES}/{number}" for number in range(pre_dumps + 1)]
    scene.mark()
    sent_before = [scene.sent_bytes(name) for name in (source, destination)]
    watch = Stopwatch()
    with watch.step("room"):
        here_room = here.start(["mkdir", "-p", "-m", "700", *directories])
        there_room = there.start(["sh", "-c", f"{MAKE_ROOM} {' '.join(directories)}"])
        here.wait(here_room, "mkdir")
        there.wait(there_room, "mount")
    images = directories[-1]
    for number, directory in enumerate(directories):
        parent = ["--track-mem", "--prev-images-dir", f"../{number - 1}"] if number else []
        argv = ["-t", str(pid), "-D", directory, *parent]
        argv += ["--page-server", "--address", address, "--port", str(PAGE_PORT)]
        with watch.step("page server"):
            page_server = _page_server(there, directory, parent[1:])
            if directory == images:
                unpacking = there.receive(images, IMAGE_PORT)
        if directory != images:
            with watch.step(f"pre-dump {number + 1}"):
                track = [] if parent else ["--track-mem"]
                here.run(["criu", "pre-dump", "-o", "pre-dump.log", *argv, *track], "criu pre-dump")
                there.wait(page_server, "criu page-server")
        else:
            with watch.step("dump"):
                kept = ["--tcp-established", "--network-lock", "nftables"]
                here.run(["criu", "dump", "-o", "dump.log", *argv, *kept], "criu dump")
    with watch.step("copy, address"):
        packing = here.send(images, address, IMAGE_PORT)
        leaving = here.start(["ip", "address", "del", PREFIX, "dev", network.INTERFACE])
        there.wait(page_server, "criu page-server")
        here.wait(leaving, "ip address del")
        there.run(["ip", "address", "add", PREFIX, "dev", network.INTERFACE], "ip address add")
        here.wait(packing, "tar -c")
        there.wait(unpacking, "tar -x")
    with watch.step("restore"):
        argv = ["criu", "restore", "-D", images, "-o", "restore.log", "--tcp-established", "--restore-detached"]
        there.run(argv, "criu restore")
    ended_us = watch.elapsed_us()
    sent_after = [scene.sent_bytes(name) for name in (source, destination)]
    silence = scene.silence()
    statistics = read_all(scene.lab.host(name).path(images) for name in (source, destination))
    _clean_up(scene, source, destination)
    return Move(
        method="by hand",
        source=source,
        destination=destination,
        downtime_us=silence.gap_ns / 1000,
        total_us=max(ended_us, (silence.first_after_ns - watch.start_ns) / 1000),
        sent_bytes=sum(sent_after) - sum(sent_before),
        steps=tuple(watch.steps),
        statistics=statistics,
    )


def _page_server(there: Helper, directory: str, parent: Sequence[str]) -> str:
    argv = ["criu", "page-server", "-D", directory, "-o", "page-server.log", "--port", str(PAGE_PORT), *parent]
    return there.start([*argv, "--status-fd", "READY_FD"], ready=True)


def _clean_up(scene: Scene, source: str, destination: str) -> None:
    """What phaul tidies up itself; not counted."""
    # CRIU leaves its lock in the host's network namespace after a dump that succeeded (CRIU 4.2).
    scene.helpers[source].run(["sh", "-ec", REMOVE_LOCKS], "nft delete table")
    scene.helpers[source].run(["rm", "-r", IMAGES], "rm")
    scene.helpers[destination].run(["umount", IMAGES], "umount")
