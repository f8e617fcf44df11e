"""The steps that make a host ready, against a host that answers as told: what each looks at, does, and says."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

import phaul
from phaul.errors import InstallError, UsageError
from phaul.install import host_certificate, host_facts, host_setup, registry
from phaul.install.host_setup import SETTINGS, HostSetup, unit_files
from phaul.install.ssh import Done, SshHost
from phaul.install.steps import State, Step
from phaul.install.target import SshTarget
from phaul.install.visit import Visit
from phaul.trust.authority import Authority
from phaul.trust.store import TrustStore

FACTS = {
    "uid": "0",
    "machine": "x86_64",
    "system": '"Debian GNU/Linux 13 (trixie)"',
    "program.criu": "/usr/sbin/criu",
    "program.nft": "/usr/sbin/nft",
    "program.ip": "/usr/sbin/ip",
    "program.python3": "/usr/bin/python3",
    "program.apt-get": "/usr/bin/apt-get",
    "python": "/usr/bin/python3.13 3 13",
    "libc": "glibc 2.41",
    "systemd": "yes",
    "ip6": "yes",
    "packaged": "",
    "current": "",
    "active": "inactive",
    "enabled": "disabled",
    "end": "yes",
}


class FakeHost:
    """A host by what it says. `answers`: a part of a script to what it gives; all else succeeds silently."""

    def __init__(self, facts: dict[str, str], answers: dict[str, Done] | None = None) -> None:
        self.facts = facts
        self.answers = answers or {}
        self.target = SshTarget("b", "root")
        self.user = "root"
        self.address = "10.0.0.2"
        self.scripts: list[str] = []
        self.written: dict[str, bytes] = {}

    def run(self, script: str, *, input: bytes = b"", **_: Any) -> Done:
        if "echo end=yes" in script:
            return Done(0, "".join(f"{name}={value}\n" for name, value in self.facts.items()), "")
        self.scripts.append(script)
        if "; cat >" in script:
            self.written[script.partition("cat >")[2].partition(".new")[0]] = input
        for part, answer in self.answers.items():
            if part in script:
                return answer
        return Done(0, "", "")

    def check(self, script: str, what: str, *, input: bytes = b"", hint: str = "") -> str:
        done = self.run(script, input=input)
        assert done.status == 0, what
        return done.output

    @property
    def ssh(self) -> SshHost:
        return cast("SshHost", self)


def without(*names: str, **changed: str) -> dict[str, str]:
    return {name: value for name, value in (FACTS | changed).items() if name not in names}


def setup_of(host: FakeHost) -> tuple[HostSetup, list[Step]]:
    told: list[Step] = []
    return HostSetup(host.ssh, told.append), told


def in_place() -> dict[str, str]:
    """The facts of a host that has everything."""
    files = {f"file.{path}": hashlib.sha256(text.encode()).hexdigest() for path, text in unit_files().items()}
    return FACTS | files | {f"file.{SETTINGS}": "of their own", "active": "active", "enabled": "enabled"}


@pytest.mark.parametrize(
    ("facts", "act", "message"),
    [
        (without(uid="1000"), setup_of, "phaul must be root on root@b"),
        (without("end"), setup_of, "phaul must be root"),
        (without("systemd"), setup_of, "does not run systemd"),
        (without(python="/usr/bin/python3.9 3 9"), lambda host: setup_of(host)[0].program(), "has Python 3.9; phaul"),
        (without("python"), lambda host: setup_of(host)[0].program(), "has no Python; phaul needs 3.11"),
        (without(libc="musl 1.2"), lambda host: setup_of(host)[0].program(), "no GNU C library of version 2.28"),
        (without(packaged="installed 9.9+py3.13"), lambda host: setup_of(host)[0].program(), "has phaul 9.9 as a"),
        (without("program.criu", "program.apt-get"), lambda host: setup_of(host)[0].packages(), "lacks criu, and"),
        (without("program.criu"), lambda host: setup_of(host)[0].packages(), "has no package criu"),
        (without("program.criu"), lambda host: Visit(host.ssh).require(), "has no CRIU"),
        (without(active="active"), lambda host: Visit(host.ssh).require(), "has an agent already"),
        (without("systemd"), lambda host: Visit(host.ssh).require(), "does not run systemd"),
    ],
)  # fmt: skip
def test_what_is_in_the_way_is_named_with_what_to_do(
    facts: dict[str, str], act: Callable[[FakeHost], object], message: str
) -> None:
    host = FakeHost(facts, {"apt-cache policy": Done(0, "criu:\n  Candidate: (none)\n", "")})
    with pytest.raises(InstallError) as failure:
        act(host)
    assert message in failure.value.message
    assert failure.value.hint
    assert not any("install -y" in script for script in host.scripts)
    assert not host.written


def test_missing_programs_are_installed_and_looked_for_again() -> None:
    host = FakeHost(without("program.criu", "program.nft"), {"policy": Done(0, "  Candidate: 4.1\n", "")})
    setup, told = setup_of(host)
    with pytest.raises(InstallError, match="criu, nft is still not there"):
        setup.packages()
    assert any("apt-get install -y -q --no-install-recommends criu nftables" in script for script in host.scripts)
    host.facts = dict(FACTS)
    setup.packages()
    assert told[-1] == Step("packages", State.DONE, "installed criu, nftables")
    setup.packages()
    assert told[-1].state is State.UNCHANGED


def test_nothing_is_written_where_everything_is_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "bundle_for", lambda *_: FakeBundle())
    host = FakeHost(in_place() | {"current": FakeBundle.key})
    setup, told = setup_of(host)
    for step in (setup.packages, setup.program, lambda: setup.units(7428), setup.agent):
        step()
    assert [each.state for each in told if each.state is not State.STARTED] == [State.UNCHANGED] * 4
    assert not host.scripts


def test_a_changed_unit_is_replaced_and_the_agent_restarted() -> None:
    unit = "/etc/systemd/system/phaul-agent.service"
    host = FakeHost(in_place() | {f"file.{unit}": "other"})
    setup, told = setup_of(host)
    setup.units(7428)
    setup.agent()
    assert host.written == {unit: unit_files()[unit].encode()}
    assert told[-1] == Step("agent", State.DONE, "restarted")


def test_settings_of_the_host_s_own_stay_and_missing_ones_say_where_to_listen() -> None:
    host = FakeHost(without("ip6"))
    setup_of(host)[0].units(7777)
    assert b"PHAUL_LISTEN=0.0.0.0:7777\n" in host.written[SETTINGS]
    host = FakeHost(in_place())
    setup_of(host)[0].units(7777)
    assert not host.written
    host = FakeHost(FACTS | {"packaged": f"installed {phaul.__version__}+py3.13"})
    setup_of(host)[0].units(7777)
    assert set(host.written) == {SETTINGS}


def test_an_agent_that_does_not_start_says_why() -> None:
    host = FakeHost(dict(FACTS), {"systemctl enable": Done(1, "", "failed"), "journalctl": Done(0, "the reason\n", "")})
    with pytest.raises(InstallError, match="does not start") as failure:
        setup_of(host)[0].agent()
    assert "the reason" in failure.value.detail


def test_a_certificate_is_given_once(tmp_path: Path) -> None:
    store = TrustStore(tmp_path)
    with pytest.raises(UsageError, match="is not the authority's"):
        host_certificate.require_authority(store)
    authority = Authority(store)
    authority.create("a", 7428, ["10.0.0.1"])
    told: list[Step] = []
    host = FakeHost(dict(FACTS))

    def give(*also: str) -> bool:
        return host_certificate.give(host.ssh, store, "b", 7428, also, told.append)

    with pytest.raises(InstallError, match="has no address"):
        give()
    assert give("10.0.0.2")
    pem = host.written[f"{host_setup.TRUST}/host.pem"].decode()
    host.answers = {"sed -n": Done(0, pem, ""), "cat /var": Done(0, store.list_file.read_text(), "")}
    assert not give("10.0.0.2")
    assert told[-1].state is State.UNCHANGED
    host.answers["cat /var"] = Done(0, "an older list", "")
    assert not give("10.0.0.2")
    assert host.written[f"{host_setup.TRUST}/list.json"] == store.list_file.read_bytes()
    assert give("10.0.0.2", "10.0.0.3")
    authority.revoke("b")
    assert give("10.0.0.2")


def test_what_is_asked_for_is_what_is_read(tmp_path: Path) -> None:
    """The script runs on any host, this one too, and its lines are understood."""

    class Here(FakeHost):
        def check(self, script: str, what: str, *, input: bytes = b"", hint: str = "") -> str:
            done = subprocess.run(["/bin/sh", "-c", script], capture_output=True, text=True, check=True)
            return done.stdout.replace("\nuid=", "\nx=").replace("uid=", "uid=0\nx=", 1)

    file = tmp_path / "file"
    file.write_text("content")
    state = host_facts.look(Here({}).ssh, (str(file), str(tmp_path / "absent")))
    assert state.machine
    assert "python3" in state.programs
    assert state.files == {str(file): hashlib.sha256(b"content").hexdigest()}


class FakeBundle:
    """Nothing, under a name."""

    key = f"{phaul.__version__}-abc"
