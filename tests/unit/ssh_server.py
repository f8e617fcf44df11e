"""An SSH server for tests, on loopback, in a thread: it runs what it is told as a child of the test, not as root."""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Self

import paramiko
from paramiko import common

USER = "root"
PASSWORD = "correct"
STATUS_AHEAD_SECONDS = 0.5


class _Policy(paramiko.ServerInterface):
    def __init__(self, server: SshServer) -> None:
        self._server = server

    def get_allowed_auths(self, username: str) -> str:
        return "publickey,password"

    def check_auth_password(self, username: str, password: str) -> int:
        return common.AUTH_SUCCESSFUL if password == PASSWORD else common.AUTH_FAILED

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        return common.AUTH_SUCCESSFUL if key == self._server.allowed else common.AUTH_FAILED

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return common.OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        threading.Thread(target=self._server.execute, args=(channel, command), daemon=True).start()
        return True


class SshServer:
    """Listens until the end of the `with`. `cut_after`: bytes of output after which the connection is dropped."""

    def __init__(self, directory: Path) -> None:
        self.host_key = paramiko.RSAKey.generate(2048)
        self.allowed = paramiko.RSAKey.generate(2048)
        self.identity = directory / "identity"
        self.allowed.write_private_key_file(str(self.identity))
        self.commands: list[str] = []
        self.drops_commands = False
        self.tells_status_first = False  # and what a command has printed a moment later
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._transports: list[paramiko.Transport] = []

    def __enter__(self) -> Self:
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for transport in self._transports:
            transport.close()

    @property
    def known_hosts_line(self) -> str:
        return f"[127.0.0.1]:{self.port} {self.host_key.get_name()} {self.host_key.get_base64()}\n"

    def execute(self, channel: paramiko.Channel, command: bytes) -> None:
        self.commands.append(command.decode())
        if self.drops_commands:
            channel.get_transport().close()
            return
        with subprocess.Popen(
            ["/bin/sh", "-c", command.decode()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as child:
            out, err = child.communicate(channel.makefile("rb").read())
            if self.tells_status_first:
                channel.send_exit_status(child.returncode)
                time.sleep(STATUS_AHEAD_SECONDS)
            channel.sendall(out)
            channel.sendall_stderr(err)
            if not self.tells_status_first:
                channel.send_exit_status(child.returncode)
            channel.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            transport = paramiko.Transport(connection)
            transport.add_server_key(self.host_key)
            self._transports.append(transport)
            try:
                transport.start_server(server=_Policy(self))
            except (paramiko.SSHException, EOFError, OSError):
                transport.close()  # the other side has not liked our key, and may have left by now
