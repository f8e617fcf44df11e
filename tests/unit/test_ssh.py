"""Logging in to another host: host keys, keys and passwords, and what is said of each failure."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import paramiko
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phaul.errors import SshError, UsageError
from phaul.install import ssh
from phaul.install.ssh import SshHost
from phaul.install.target import Login, SshTarget, parse_target
from tests.unit.ssh_server import PASSWORD, SshServer


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SshServer]:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    monkeypatch.delenv(ssh.PASSWORD_VARIABLE, raising=False)
    with SshServer(tmp_path) as running:
        yield running


@pytest.fixture
def known(server: SshServer, tmp_path: Path) -> Path:
    file = tmp_path / "known_hosts"
    file.write_text(server.known_hosts_line)
    return file


def log_in(server: SshServer, login: Login) -> SshHost:
    return SshHost(SshTarget("127.0.0.1", "root", server.port), login)


def test_commands_run_with_their_input_and_both_outputs(server: SshServer, known: Path) -> None:
    with log_in(server, Login((server.identity,), known_hosts=known)) as host:
        data = bytes(range(256)) * 20_000  # more than a window, both ways
        done = host.run("cat; echo wrong >&2; exit 3", input=data)
        assert (done.status, done.complaints) == (3, "wrong\n")
        assert done.output == data.decode(errors="replace")
        assert host.check("printf '%s' \"it's\"", "it failed") == "it's"
        with pytest.raises(SshError, match=r"it failed on root@127\.0\.0\.1.* \(status 3\)") as failure:
            host.check("echo because >&2; exit 3", "it failed")
        assert failure.value.detail == "because"


def test_what_comes_after_the_status_is_heard_as_well(server: SshServer, known: Path) -> None:
    server.tells_status_first = True
    with log_in(server, Login((server.identity,), known_hosts=known)) as host:
        assert host.check("echo late", "it failed") == "late\n"


def test_a_host_key_that_is_not_known_is_refused_before_anything_secret(server: SshServer, tmp_path: Path) -> None:
    known = tmp_path / "none"
    login = Login((server.identity,), known_hosts=known)
    with pytest.raises(SshError, match=r"is not known here: ssh-rsa SHA256:") as failure, log_in(server, login):
        pass
    assert "--accept-new-host-key" in failure.value.hint
    assert not known.exists()
    with log_in(server, Login((server.identity,), accept_new_host_key=True, known_hosts=known)):
        assert known.read_text() == server.known_hosts_line
    with log_in(server, login) as host:
        assert host.run("true").status == 0


def test_a_changed_host_key_is_never_accepted(server: SshServer, tmp_path: Path) -> None:
    known = tmp_path / "known_hosts"
    other = paramiko.RSAKey.generate(2048)
    known.write_text(f"[127.0.0.1]:{server.port} {other.get_name()} {other.get_base64()}\n")
    before = known.read_text()
    login = Login((server.identity,), accept_new_host_key=True, known_hosts=known)
    with pytest.raises(SshError, match="another key than the one in known_hosts"), log_in(server, login):
        pass
    assert known.read_text() == before


def test_a_password_is_asked_for_where_keys_do_not_do(server: SshServer, known: Path) -> None:
    asked: list[str] = []

    def ask(prompt: str) -> str:
        asked.append(prompt)
        return PASSWORD

    with log_in(server, Login(known_hosts=known, ask=ask)) as host:
        assert host.run("true").status == 0
    assert asked == ["Password of root on 127.0.0.1: "]


def test_a_password_may_be_in_the_environment(server: SshServer, known: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ssh.PASSWORD_VARIABLE, PASSWORD)
    with log_in(server, Login(known_hosts=known)) as host:
        assert host.run("true").status == 0


@pytest.mark.parametrize("answer", [None, "wrong"])
def test_who_is_not_let_in_is_told_what_was_tried(server: SshServer, known: Path, answer: str | None) -> None:
    login = Login(known_hosts=known, ask=lambda prompt: answer)
    with pytest.raises(SshError, match="lets nobody in with what was offered") as failure, log_in(server, login):
        pass
    assert ssh.PASSWORD_VARIABLE in failure.value.hint


def test_nobody_is_asked_for_a_password_where_no_server_answers(known: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    def ask(prompt: str) -> str:
        raise AssertionError(prompt)

    host = SshHost(SshTarget("127.0.0.1", "root", port), Login(known_hosts=known, ask=ask))
    with pytest.raises(SshError, match=f"no SSH server answers at 127.0.0.1 port {port}: Connection refused"), host:
        pass


def test_a_key_that_is_not_there_is_named(server: SshServer, known: Path, tmp_path: Path) -> None:
    with (
        pytest.raises(SshError, match="there is no private key"),
        log_in(server, Login((tmp_path / "no",), known_hosts=known)),
    ):
        pass


def test_a_connection_that_breaks_under_a_command_is_no_success(server: SshServer, known: Path) -> None:
    with log_in(server, Login((server.identity,), known_hosts=known)) as host:
        server.drops_commands = True
        with pytest.raises(SshError):
            host.run("echo 1")


def test_a_command_may_take_only_so_long(server: SshServer, known: Path) -> None:
    with (
        log_in(server, Login((server.identity,), known_hosts=known)) as host,
        pytest.raises(SshError, match="did not end within"),
    ):
        host.run("sleep 5", timeout_seconds=0.3)


def test_who_is_not_root_uses_sudo(server: SshServer, known: Path) -> None:
    with SshHost(SshTarget("127.0.0.1", "admin", server.port), Login((server.identity,), known_hosts=known)) as host:
        host.run("true")
    assert server.commands == ["sudo -n /bin/sh -c true"]


def test_the_person_s_configuration_is_read(server: SshServer, known: Path, tmp_path: Path) -> None:
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh/config").write_text(
        f"Host b\n  HostName 127.0.0.1\n  Port {server.port}\n  User admin\n  IdentityFile {server.identity}\n"
    )
    with SshHost(parse_target("b"), Login(known_hosts=known)) as host:
        assert (host.user, host.port, host.address) == ("admin", server.port, "127.0.0.1")


@pytest.mark.parametrize(
    ("typed", "target"),
    [
        ("b", SshTarget("b")),
        ("root@b.example", SshTarget("b.example", "root")),
        ("ssh://root@10.0.0.2:2222", SshTarget("10.0.0.2", "root", 2222)),
        ("ssh://[fd00::2]:22/", SshTarget("fd00::2", "", 22)),
    ],
)
def test_what_people_type(typed: str, target: SshTarget) -> None:
    assert parse_target(typed) == target


@pytest.mark.parametrize("typed", ["", "root@", "a b", "-oProxyCommand=x", "b:99999", "root@b;reboot", "ssh://"])
def test_what_names_no_host(typed: str) -> None:
    with pytest.raises(UsageError):
        parse_target(typed)


@given(st.text(max_size=30))
def test_nothing_that_is_accepted_can_be_an_option_or_a_command(typed: str) -> None:
    try:
        target = parse_target(typed)
    except UsageError:
        return
    assert not target.host.startswith("-")
    assert not set(str(target)) & set(" ;&|$`'\"\n")
