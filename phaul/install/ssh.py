"""A connection to another host over SSH: commands run there to their end, as root. The only module that uses paramiko.

Used by `install.host_setup` and `install.visit`. Every failure is an `SshError` that says which of the many it was. A
host key is compared with the person's known_hosts; an unknown one is taken only when told so, a changed one never.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import os
import select
import shlex
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import paramiko

from phaul.errors import SshError
from phaul.install.target import DEFAULT_USER, Login, SshTarget

CONNECT_SECONDS = 60.0  # each of: the connection, the server's greeting, the log-in
KEEPALIVE_SECONDS = 10
COMMAND_SECONDS = 900.0  # a package manager on a slow host
LAST_WORDS_SECONDS = 2.0  # for what a command has printed, once its status is there
CHUNK_BYTES = 1 << 18
SSH_PORT = 22
PASSWORD_VARIABLE = "PHAUL_SSH_PASSWORD"
_SYSTEM_KNOWN_HOSTS = Path("/etc/ssh/ssh_known_hosts")


@dataclass(frozen=True, slots=True)
class Done:
    """A command that has ended."""

    status: int
    output: str
    complaints: str


class SshHost:
    """A host that one is logged in to. Owns the connection until the end of the `with`."""

    def __init__(self, target: SshTarget, login: Login) -> None:
        self.target = target
        self._login = login
        self._client = paramiko.SSHClient()
        self._config = _configuration(target.host)
        self.user = target.user or self._config.get("user", DEFAULT_USER)
        self.port = target.port or int(self._config.get("port", SSH_PORT))

    def __enter__(self) -> Self:
        logging.getLogger("paramiko").setLevel(logging.CRITICAL)  # it prints what we raise
        try:
            self._connect()
        except BaseException:
            self._client.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    @property
    def address(self) -> str:
        """The address that the connection goes to; "" where a proxy makes it."""
        transport = self._client.get_transport()
        try:
            return str(transport.getpeername()[0]).partition("%")[0] if transport else ""
        except (OSError, AttributeError):
            return ""

    def run(self, script: str, *, input: bytes = b"", timeout_seconds: float = COMMAND_SECONDS) -> Done:
        """Run a script of /bin/sh as root; a status other than 0 is for the caller. `SshError` where the way broke."""
        command = f"/bin/sh -c {shlex.quote(script)}"
        if self.user != "root":
            command = f"sudo -n {command}"
        try:
            transport = self._client.get_transport()
            if transport is None:
                raise SshError(f"the connection to {self.target} is closed")
            with transport.open_session(timeout=CONNECT_SECONDS) as channel:
                channel.exec_command(command)
                return _converse(channel, input, time.monotonic() + timeout_seconds)
        except TimeoutError as error:
            raise SshError(
                f"a command on {self.target} did not end within {timeout_seconds:g} s",
                detail=shlex.join(["sh", script]),
            ) from error
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise SshError(
                f"the SSH connection to {self.target} broke: {error or type(error).__name__}",
                hint="Type the same again: what is done already is not done twice.",
            ) from error

    def check(self, script: str, what: str, *, input: bytes = b"", hint: str = "") -> str:
        """Run a script that has to succeed; gives what it prints. `what` begins the message of the `SshError`."""
        done = self.run(script, input=input)
        if done.status != 0:
            said = (done.complaints or done.output).strip()
            if self.user != "root" and "sudo" in said:
                hint = f"Log in as root, or let {self.user} use sudo there without a password."
            raise SshError(f"{what} on {self.target} (status {done.status})", hint=hint, detail=said[-4000:])
        return done.output

    def _connect(self) -> None:
        host = self._config.get("hostname", self.target.host)
        known = self._login.known_hosts or Path("~/.ssh/known_hosts").expanduser()
        for file in (known, _SYSTEM_KNOWN_HOSTS):
            if file.is_file():
                try:
                    self._client.load_system_host_keys(str(file))
                except (OSError, paramiko.SSHException) as error:
                    raise SshError(f"{file} cannot be read: {error}") from error
        name = host if self.port == SSH_PORT else f"[{host}]:{self.port}"
        policy = _UnknownKey(name, known if self._login.accept_new_host_key else None)
        self._client.set_missing_host_key_policy(policy)
        password = os.environ.get(PASSWORD_VARIABLE)
        try:
            self._log_in(host, password)
        except SshError as error:
            if password is not None or not _is_refused(error.__cause__):
                raise
            password = self._login.ask(f"Password of {self.user} on {self.target.host}: ")
            if not password:
                raise
            self._log_in(host, password)
        transport = self._client.get_transport()
        if transport is not None:
            transport.set_keepalive(KEEPALIVE_SECONDS)

    def _log_in(self, host: str, password: str | None) -> None:
        target = str(self.target)
        identities = [*self._login.identities, *map(Path, self._config.get("identityfile", []))]
        for file in self._login.identities:
            if not file.is_file():
                raise SshError(f"there is no private key {file}")
        usable = [str(file.expanduser()) for file in identities if file.expanduser().is_file()]
        proxy = self._config.get("proxycommand")
        try:
            self._client.connect(
                host,
                self.port,
                self.user,
                password,
                key_filename=usable or None,  # type: ignore[arg-type]  # a list may be given, paramiko says
                timeout=CONNECT_SECONDS,
                banner_timeout=CONNECT_SECONDS,
                auth_timeout=CONNECT_SECONDS,
                sock=paramiko.ProxyCommand(proxy) if proxy else None,
            )
        except _UnknownHostKeyError as error:
            raise SshError(
                f"the key of {target} is not known here: {error.fingerprint}",
                hint="Compare it with what `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` says on that host; if "
                "they are the same, type this again with --accept-new-host-key.",
            ) from error
        except paramiko.BadHostKeyException as error:
            raise SshError(
                f"{target} has shown another key than the one in known_hosts: somebody may be in between, or it was "
                f"installed anew; it is {_fingerprint(error.key)} now",
                hint=f"If that is right, `ssh-keygen -R {self.target.host}` removes the old key.",
            ) from error
        except paramiko.PasswordRequiredException as error:
            raise SshError(
                f"the private key for {target} is encrypted", hint="Load it into an agent first: ssh-add FILE."
            ) from error
        except socket.gaierror as error:
            raise SshError(f"the name {host!r} has no address here: {error.strerror}") from error
        except (TimeoutError, paramiko.ssh_exception.NoValidConnectionsError, OSError) as error:
            raise SshError(
                f"no SSH server answers at {host} port {self.port}: {_reason(error)}",
                hint="Is sshd running there, and is its port open to this host?",
            ) from error
        except (paramiko.SSHException, EOFError, ValueError) as error:
            if _is_refused(error):
                raise SshError(
                    f"{target} lets nobody in with what was offered: "
                    + ("a password and keys" if password else "keys of the agent, of ~/.ssh and of --identity"),
                    hint=f"Try `ssh {target}`. A password is asked for on a terminal, or taken from the variable "
                    f"{PASSWORD_VARIABLE}; some servers let root in with a key only.",
                    detail=str(error),
                ) from error
            raise SshError(f"SSH with {target} failed: {error or type(error).__name__}") from error


class _UnknownHostKeyError(Exception):
    def __init__(self, fingerprint: str) -> None:
        super().__init__(fingerprint)
        self.fingerprint = fingerprint


class _UnknownKey(paramiko.MissingHostKeyPolicy):
    """What to do with a key that is not known: refuse, or write it down."""

    def __init__(self, name: str, known_hosts: Path | None) -> None:
        self._name = name
        self._known_hosts = known_hosts

    def missing_host_key(self, client: paramiko.SSHClient, hostname: str, key: paramiko.PKey) -> None:
        """Called by paramiko before anything secret is sent."""
        if self._known_hosts is None:
            raise _UnknownHostKeyError(_fingerprint(key))
        self._known_hosts.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._known_hosts.open("a") as file:
            file.write(f"{self._name} {key.get_name()} {key.get_base64()}\n")
        client.get_host_keys().add(self._name, key.get_name(), key)


def _converse(channel: paramiko.Channel, data: bytes, deadline: float) -> Done:
    """Write the input and read both outputs at once, until the command has ended.

    Its status may come before the last of what it printed (RFC 4254, section 6.10, asks for no order). So the end of
    the output is waited for as well; not for long, as a process in the background may keep it open.
    """
    ended_at: float | None = None
    output, complaints = bytearray(), bytearray()
    rest = memoryview(data)
    if not rest:
        channel.shutdown_write()
    channel.setblocking(False)
    while True:
        if ended_at is None and channel.exit_status_ready():
            ended_at = time.monotonic()
        complete = ended_at is not None and (
            channel.eof_received or channel.closed or time.monotonic() > ended_at + LAST_WORDS_SECONDS
        )
        moved = False
        while channel.recv_ready():
            output += channel.recv(CHUNK_BYTES)
            moved = True
        while channel.recv_stderr_ready():
            complaints += channel.recv_stderr(CHUNK_BYTES)
            moved = True
        if rest and channel.send_ready() and not channel.exit_status_ready():
            rest = rest[channel.send(bytes(rest[:CHUNK_BYTES])) :]
            moved = True
            if not rest:
                channel.shutdown_write()
        if moved:
            continue
        if complete:
            status = channel.recv_exit_status()
            if status < 0:  # no status came: the connection went away, or the command was killed by a signal
                raise SshError("the command ended without a status: killed, or the connection broke")
            return Done(status, output.decode(errors="replace"), complaints.decode(errors="replace"))
        if time.monotonic() > deadline:
            raise TimeoutError
        select.select([channel], [], [], 0.02 if rest else 0.2)


def _is_refused(error: BaseException | None) -> bool:
    """Whether we were not let in; with nothing to offer, paramiko has no class of its own for that."""
    return isinstance(error, paramiko.AuthenticationException) or "No authentication methods" in str(error)


def _configuration(host: str) -> dict[str, str]:
    """What ~/.ssh/config says of a host."""
    file = Path("~/.ssh/config").expanduser()
    if not file.is_file():
        return {}
    try:
        found = paramiko.SSHConfig.from_path(str(file)).lookup(host)
    except (OSError, paramiko.ConfigParseError) as error:
        raise SshError(f"{file} cannot be read: {error}") from error
    return dict(found)


def _fingerprint(key: paramiko.PKey) -> str:
    """As ssh-keygen writes it."""
    digest = base64.b64encode(hashlib.sha256(key.asbytes()).digest()).decode().rstrip("=")
    return f"{key.get_name()} SHA256:{digest}"


def _reason(error: Exception) -> str:
    if isinstance(error, paramiko.ssh_exception.NoValidConnectionsError):
        found = sorted({os.strerror(n) for each in error.errors.values() if (n := getattr(each, "errno", 0))})
        return ", ".join(found) or str(error)
    if isinstance(error, TimeoutError):
        return f"no answer within {CONNECT_SECONDS:g} s"
    return getattr(error, "strerror", None) or str(error)
