"""Which control group gets the quota, and what is written into it: cgroup v2, on directories that look like it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phaul.errors import PreflightError
from phaul.system import cpu_quota
from phaul.system.cpu_quota import LEAST_QUOTA_US, LONGEST_PERIOD_US, CpuQuota, find_place, quota_of

TREE = [100, 101]
Groups = Callable[[dict[str, list[int]]], Path]


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Groups:
    """A cgroup v2 hierarchy with these groups and the processes in them; only the root hands out the controller."""

    def make(members: dict[str, list[int]]) -> Path:
        for name in ["", *members]:
            directory = tmp_path / name
            for each in (directory, *directory.parents):
                if each.is_relative_to(tmp_path):
                    each.mkdir(parents=True, exist_ok=True)
                    for file in ("cgroup.procs", "cgroup.subtree_control"):
                        (each / file).touch()
        for name, pids in members.items():
            (tmp_path / name / "cgroup.procs").write_text("".join(f"{pid}\n" for pid in pids))
        (tmp_path / "cgroup.subtree_control").write_text("cpu memory\n")
        where = {pid: f"/{name}" for name, pids in members.items() for pid in pids}
        monkeypatch.setattr(cpu_quota, "_hierarchy", lambda pid: (2, tmp_path))
        monkeypatch.setattr(cpu_quota, "_group_of", lambda pid, version: where[pid])
        monkeypatch.setattr("phaul.system.procfs.walk_tree", lambda pid: TREE)
        return tmp_path

    return make


@given(st.floats(0.0001, 256))
def test_the_kernel_takes_every_quota(cpus: float) -> None:
    quota_us, period_us = quota_of(cpus)
    assert quota_us >= LEAST_QUOTA_US
    assert period_us <= LONGEST_PERIOD_US
    if cpus >= LEAST_QUOTA_US / LONGEST_PERIOD_US:
        assert quota_us / period_us == pytest.approx(cpus, rel=0.06)


async def test_a_service_gets_the_quota_in_its_own_group(groups: Groups) -> None:
    top = groups({"system.slice/redis.service": TREE, "system.slice/ssh.service": [7]})
    service = top / "system.slice/redis.service"
    (service / "cpu.max").write_text("200000 100000\n")
    place = find_place(100, 0.8)
    assert (place.group, place.home, place.quota) == (str(service), "", "200000 100000")
    assert place.enable == (str(top / "system.slice"),)
    quota = CpuQuota()
    await quota.slow_to(asdict(place), 50)
    assert (service / "cpu.max").read_text() == "4000 10000"
    assert (top / "system.slice/cgroup.subtree_control").read_text() == "+cpu"
    await quota.slow_to(asdict(place), 100)
    assert (service / "cpu.max").read_text() == "200000 100000"
    await quota.slow_to(asdict(place), 10)
    assert await quota.put_back(asdict(place)) == ()
    assert (service / "cpu.max").read_text() == "200000 100000"
    assert (top / "system.slice/cgroup.subtree_control").read_text() == "-cpu"


async def test_a_controller_that_is_gone_has_taken_the_quota_with_it(groups: Groups) -> None:
    top = groups({"system.slice/redis.service": TREE})
    place = find_place(100, 0.8)
    assert await CpuQuota().put_back(asdict(place)) == ()
    assert not (top / "system.slice/redis.service/cpu.max").exists()


def test_a_service_with_groups_below_it_is_limited_as_a_whole(groups: Groups) -> None:
    top = groups({"system.slice/web.service/main": [100], "system.slice/web.service/worker": [101]})
    assert find_place(100, 1).group == str(top / "system.slice/web.service")


def test_a_tree_in_a_session_gets_a_group_beside_it(groups: Groups) -> None:
    top = groups({"user.slice/session-3.scope": [*TREE, 55]})
    place = find_place(100, 1)
    assert place.group == str(top / "user.slice/phaul-throttle-100")
    assert place.home == str(top / "user.slice/session-3.scope")


def test_a_tree_in_no_group_gets_one(groups: Groups) -> None:
    top = groups({"": [*TREE, 1]})
    place = find_place(100, 1)
    assert (place.group, place.home) == (str(top / "phaul-throttle-100"), str(top))
    assert place.enable == ()


def test_a_process_that_this_host_cannot_see_is_a_stranger(groups: Groups) -> None:
    groups({"system.slice/redis.service": TREE})
    assert find_place(100, 1).home == ""
    top = groups({"system.slice/redis.service": TREE, "system.slice/redis.service/inner": [0]})
    assert find_place(100, 1).home == str(top / "system.slice/redis.service")


def test_several_groups_shared_with_others_are_refused(groups: Groups) -> None:
    groups({"a": [100, 1], "b": [101]})
    with pytest.raises(PreflightError, match="several control groups"):
        find_place(100, 1)


def test_a_host_without_the_controller_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("phaul.system.procfs.walk_tree", lambda pid: TREE)
    monkeypatch.setattr(cpu_quota, "_hierarchy", lambda pid: None)
    with pytest.raises(PreflightError, match="no cgroup controller"):
        find_place(100, 1)
