"""What repair mode does for the connections of a copy, on real sockets; root only, as the mode is."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from phaul.system.standing_still import TCP_REPAIR, silence, tell_clients

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="TCP_REPAIR needs CAP_NET_ADMIN: run as root")

WAIT_SECONDS = 10.0
QUIET_SECONDS = 0.3
SEGMENTS_IN = slice(140, 144)  # tcpi_segs_in of struct tcp_info, linux/tcp.h

SERVER = """
import socket, sys, time
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
connection, _ = listener.accept()
print("accepted", flush=True)
time.sleep(600)
"""


@pytest.fixture
def server() -> Iterator[tuple[subprocess.Popen[str], socket.socket]]:
    """A process that has one connection and one that it listens on, and the client's end."""
    with subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        try:
            with socket.create_connection(("127.0.0.1", int(child.stdout.readline())), WAIT_SECONDS) as client:
                assert child.stdout.readline() == "accepted\n"
                yield child, client
        finally:
            child.kill()


def kill(child: subprocess.Popen[str]) -> None:
    child.send_signal(signal.SIGKILL)
    child.wait()


def hears_of_an_end(client: socket.socket) -> bool:
    readable, _, _ = select.select([client], [], [], QUIET_SECONDS)
    return bool(readable)


def test_a_silenced_copy_ends_without_a_word(server: tuple[subprocess.Popen[str], socket.socket]) -> None:
    child, client = server
    pidfd = os.pidfd_open(child.pid)
    try:
        assert silence(pidfd, child.pid) == 1, "not the one that listens"
    finally:
        os.close(pidfd)
    here, there = client.getsockname(), client.getpeername()
    kill(child)
    assert not hears_of_an_end(client)
    with socket.socket() as again:  # nothing lingers that would keep the same connection from being made again
        again.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
        again.bind(there)
        again.connect(here)


def test_one_that_was_not_silenced_is_heard(server: tuple[subprocess.Popen[str], socket.socket]) -> None:
    child, client = server
    kill(child)
    assert hears_of_an_end(client)


def test_clients_are_told(server: tuple[subprocess.Popen[str], socket.socket]) -> None:
    child, client = server
    before = segments_in(client)
    pidfd = os.pidfd_open(child.pid)
    try:
        assert tell_clients(pidfd, child.pid) == 0, "its own calls would fail meanwhile"
        assert segments_in(client) == before
        child.send_signal(signal.SIGSTOP)
        os.waitpid(child.pid, os.WUNTRACED)
        assert tell_clients(pidfd, child.pid) == 1
    finally:
        os.close(pidfd)
    assert segments_in(client) > before
    child.send_signal(signal.SIGCONT)
    client.sendall(b"it goes on")
    assert not hears_of_an_end(client)


def segments_in(connection: socket.socket) -> int:
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, SEGMENTS_IN.stop)
    return int.from_bytes(info[SEGMENTS_IN], sys.byteorder)
