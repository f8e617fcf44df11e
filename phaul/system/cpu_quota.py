"""A process tree's CPU time, limited through its control group and given back: `migration.throttle.Throttle`.

Made by `agent.wiring`. Works with cgroup v2 (cpu.max) and with v1 (cpu.cfs_quota_us). Where a group holds the tree and
nobody else (a systemd service), that group gets the quota. Where others are in it too (a login session) the tree is
moved into a group of its own beside or below it, and back afterwards. `look` finds out which; what it gives is all that
`put_back` needs, in this agent or a later one.

A quota holds for whatever runs in the group, CRIU's parasite in a frozen task as well: lift it (100 percent) before
tasks are frozen.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from phaul.errors import PreflightError, RolledBackError
from phaul.system import procfs

MEASURED_SECONDS = 0.5
LEAST_CPUS = 0.02  # a workload that hardly runs is not slowed below this
# A short period, so that the workload pauses often and shortly. The kernel takes quotas of 1 ms and more, and periods
# of up to 1 s (kernel/sched/core.c, Linux 6.12).
PERIOD_US = 10_000
LEAST_QUOTA_US = 1_000
LONGEST_PERIOD_US = 1_000_000
MOVES = 20  # passes over a tree that forks, or has yet to end, while it is moved
PASS_SECONDS = 0.005  # more after each pass
REMOVAL_SECONDS = 5.0  # the kernel frees the memory of killed processes first
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
PROC = Path("/proc")

Data = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tree's quota is set, and how it was there before. JSON values only."""

    boot_id: str
    version: int  # of cgroups
    group: str  # directory that gets the quota
    home: str  # where the tasks were, if `group` is made for them; else ""
    enable: tuple[str, ...]  # directories whose children do not have the cpu controller yet, the highest first
    period: str  # v1
    quota: str  # v1: -1 for none; v2: what cpu.max says
    cpus: float  # what the tree took of them, unhindered
    root_pid: int

    @classmethod
    def from_data(cls, data: Data) -> Place:
        """Read what `look` gave, or a journal has kept."""
        return cls(**{**data, "enable": tuple(data["enable"])})


class CpuQuota:
    """See `migration.throttle.Throttle`. Holds nothing: all that must be known is in the data of `look`."""

    async def look(self, root_pid: int) -> Data:
        """See `Throttle.look`."""
        before = await asyncio.to_thread(cpu_seconds, root_pid)
        started = time.monotonic()
        await asyncio.sleep(MEASURED_SECONDS)
        used = await asyncio.to_thread(cpu_seconds, root_pid) - before
        cpus = max(LEAST_CPUS, used / (time.monotonic() - started))
        place = await asyncio.to_thread(find_place, root_pid, cpus)
        return {**asdict(place), "enable": list(place.enable)}

    async def slow_to(self, before: Data, percent: int) -> None:
        """See `Throttle.slow_to`; 100 lifts the quota and leaves all else as it is, for the next time."""
        place = Place.from_data(before)
        try:
            await asyncio.to_thread(_set, place, percent)
        except OSError as error:
            raise RolledBackError(
                f"The workload cannot be slowed down: {error.strerror or error} ({error.filename or place.group})",
                hint="Migrate with `--on-stall freeze`, or with a longer --max-downtime.",
            ) from error

    async def put_back(self, before: Data) -> tuple[str, ...]:
        """See `Throttle.put_back`."""
        return await asyncio.to_thread(_put_back, Place.from_data(before))


def cpu_seconds(root_pid: int) -> float:
    """Give the CPU time that the living processes of a tree have had. 0 where there is none."""
    ticks = 0
    try:
        pids = procfs.walk_tree(root_pid)
    except OSError:
        return 0.0
    for pid in pids:
        try:
            fields = (PROC / str(pid) / "stat").read_text(errors="surrogateescape").rpartition(")")[2].split()
        except OSError:
            continue  # ended meanwhile
        ticks += int(fields[11]) + int(fields[12])  # utime and stime of proc_pid_stat(5)
    return ticks / os.sysconf("SC_CLK_TCK")


def find_place(root_pid: int, cpus: float) -> Place:
    """Say which group has to get the quota, and how it stands there. Changes nothing; raises `PreflightError`."""
    try:
        found = _hierarchy(root_pid)
        if found is None:
            raise PreflightError(
                "The workload's CPU time cannot be limited: this host has no cgroup controller for it",
                hint="Choose another `--on-stall` than throttle.",
            )
        version, mount = found
        groups = {mount / group.lstrip("/") for group in _groups_of_tree(root_pid, version)}
        common = Path(os.path.commonpath(groups))
        if common != mount and not _strangers(common, root_pid):
            return _place(version, mount, common, None, cpus, root_pid)
        if len(groups) > 1:
            raise PreflightError(
                "The workload's CPU time cannot be limited: its processes are in several control groups, "
                "and share them with others",
                hint="Choose another `--on-stall` than throttle.",
            )
        # cgroup v2: a group with processes of its own has no children with controllers, so a sibling is made
        # (Documentation/admin-guide/cgroup-v2.rst, "No Internal Process Constraint"; the root is exempt).
        above = common if version == 1 or common == mount else common.parent
        return _place(version, mount, above / f"phaul-throttle-{root_pid}", common, cpus, root_pid)
    except OSError as error:
        raise PreflightError(
            f"The workload's CPU time cannot be limited: {error.strerror or error}",
            hint="Choose another `--on-stall` than throttle.",
        ) from error


def _place(version: int, mount: Path, group: Path, home: Path | None, cpus: float, root_pid: int) -> Place:
    enable: tuple[str, ...] = ()
    period, quota = "100000", "-1"
    if version == 2:
        above = [each for each in (group.parent, *group.parent.parents) if each.is_relative_to(mount)]
        enable = tuple(str(each) for each in reversed(above) if "cpu" not in _words(each / "cgroup.subtree_control"))
        quota = "max 100000"
    if home is None and (group / _quota_file(version)).exists():
        quota = (group / _quota_file(version)).read_text().strip()
        period = (group / "cpu.cfs_period_us").read_text().strip() if version == 1 else period
    boot_id = BOOT_ID.read_text().strip()
    return Place(boot_id, version, str(group), str(home or ""), enable, period, quota, cpus, root_pid)


def quota_of(cpus: float) -> tuple[int, int]:
    """Give quota and period in microseconds for a number of CPUs."""
    period_us = min(LONGEST_PERIOD_US, max(PERIOD_US, round(LEAST_QUOTA_US / cpus)))
    return max(LEAST_QUOTA_US, round(cpus * period_us)), period_us


def _set(place: Place, percent: int) -> None:
    group = Path(place.group)
    for directory in place.enable:
        (Path(directory) / "cgroup.subtree_control").write_text("+cpu")
    if place.home:
        group.mkdir(exist_ok=True)
    if percent >= 100:
        _write_quota(place, place.quota, place.period)
    else:
        quota_us, period_us = quota_of(place.cpus * percent / 100)
        if place.version == 1:
            _write_quota(place, str(quota_us), str(period_us))
        else:
            _write_quota(place, f"{quota_us} {period_us}", "")
    if place.home:
        _move(lambda: _tree_in(place.root_pid, place.version, Path(place.home)), group)


def _put_back(place: Place) -> tuple[str, ...]:
    group = Path(place.group)
    if place.boot_id != BOOT_ID.read_text().strip() or not group.is_dir():
        return ()
    left: list[str] = []
    try:
        # systemd takes a controller away that none of its units asks for, and the quota goes with it.
        if (group / _quota_file(place.version)).exists():
            _write_quota(place, place.quota, place.period)
        if place.home:
            home = Path(place.home)
            while not home.is_dir():  # whoever made it has removed it meanwhile
                home = home.parent
            _move(lambda: _members(group), home)
            _remove(group)
    except OSError as error:
        if group.is_dir():
            left.append(f"The workload's CPU quota could not be put back: {error.strerror or error} ({group})")
    for directory in reversed(place.enable):
        try:
            (Path(directory) / "cgroup.subtree_control").write_text("-cpu")
        except OSError:
            pass  # somebody uses it by now: a controller that is on takes nothing from anybody
    return tuple(left)


def _write_quota(place: Place, quota: str, period: str) -> None:
    group = Path(place.group)
    if place.version == 2:
        (group / "cpu.max").write_text(quota)
        return
    # Lifted first: in between, the pair must not ask for more than the group above allows.
    (group / "cpu.cfs_quota_us").write_text("-1")
    (group / "cpu.cfs_period_us").write_text(period)
    (group / "cpu.cfs_quota_us").write_text(quota)


def _move(pids: Callable[[], Iterable[int]], group: Path) -> None:
    """Move what `pids` gives until it gives nothing: a tree may fork meanwhile."""
    for attempt in range(MOVES):
        waiting = list(pids())
        if not waiting:
            return
        time.sleep(PASS_SECONDS * attempt)
        for pid in waiting:
            try:
                (group / "cgroup.procs").write_text(str(pid))
            except ProcessLookupError:
                continue  # it is about to end
    raise BlockingIOError(0, "its processes fork too fast to be moved", str(group))


def _remove(group: Path) -> None:
    deadline = time.monotonic() + REMOVAL_SECONDS
    while True:
        try:
            group.rmdir()
            return
        except FileNotFoundError:
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _tree_in(root_pid: int, version: int, home: Path) -> list[int]:
    there = set(_members(home, deep=False))
    return [pid for pid in procfs.walk_tree(root_pid) if pid in there]


def _members(group: Path, *, deep: bool = True) -> Iterator[int]:
    directories = [Path(each) for each, _, _ in os.walk(group)] if deep else [group]
    for directory in directories:
        try:
            yield from map(int, _words(directory / "cgroup.procs"))
        except FileNotFoundError:
            continue  # removed meanwhile


def _hierarchy(pid: int) -> tuple[int, Path] | None:
    """Give the version of cgroups that limits CPU time here, and where its root is mounted."""
    unified: Path | None = None
    for line in (PROC / "self" / "mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        root, point = before.split()[3:5]
        kind, _, options = after.split()[:3]
        if root == "/" and kind == "cgroup" and "cpu" in options.split(","):
            return 1, Path(point)
        if root == "/" and kind == "cgroup2":
            unified = unified or Path(point)
    if unified is not None and "cpu" in _words(unified / "cgroup.controllers"):
        return 2, unified
    return None


def _groups_of_tree(root_pid: int, version: int) -> set[str]:
    groups = {_group_of(root_pid, version)}
    for pid in procfs.walk_tree(root_pid):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # ended meanwhile
            groups.add(_group_of(pid, version))
    return groups


def _strangers(group: Path, root_pid: int) -> set[int]:
    """Give the processes in and below a group that are none of the tree's, which may fork and end meanwhile.

    Looked at twice: a child of the tree may be hidden for a moment (`procfs.walk_tree`), a stranger is there again.
    """
    strangers = set(_members(group)) - set(procfs.walk_tree(root_pid))
    if strangers:
        strangers &= set(_members(group)) - set(procfs.walk_tree(root_pid))
    return strangers


def _group_of(pid: int, version: int) -> str:
    for line in (PROC / str(pid) / "cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if (version == 2 and not controllers) or (version == 1 and "cpu" in controllers.split(",")):
            return path
    raise FileNotFoundError(f"process {pid} is in no control group")


def _quota_file(version: int) -> str:
    return "cpu.max" if version == 2 else "cpu.cfs_quota_us"


def _words(path: Path) -> list[str]:
    return path.read_text().split()
