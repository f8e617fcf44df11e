"""The server of most tests: numbered blocks both ways with every client, ticks, and memory of a chosen size.

Runs on a host, in one thread. On the `--listen` addresses it speaks blocks (`numbering.py`), on the `--greet` ones it
says back what it is told (`knocker.py`). At 127.0.0.1:`--ask` it takes one command a connection and answers with a
line.
"""

from __future__ import annotations

import argparse
import json
import os
import selectors
import socket
import time
from pathlib import Path

from .blocks import Blocks, BrokenStreamError
from .content import Content
from .ticker import Ticker, new_instance

TICK_SECONDS = 0.005
PUSH_SECONDS = 0.004
READ_BYTES = 1 << 16
HIGH_WATER_BYTES = 1 << 16  # no further block is made for a client that does not take this much
CHANGED_PAGES = 512  # between two looks at the sockets


class Peer:
    """A client that exchanges blocks."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.blocks = Blocks("server", "client")
        self.out = b""
        self.end = ""

    def push(self, count: int) -> None:
        """Send as many blocks, as far as the connection takes them."""
        for _ in range(count):
            if len(self.out) > HIGH_WATER_BYTES:
                break
            self.out += self.blocks.next()
        try:
            self.out = self.out[self.connection.send(self.out) :]
        except BlockingIOError:
            pass

    def read(self) -> bool:
        """Take in what came; False when the client has closed."""
        data = self.connection.recv(READ_BYTES)
        self.blocks.feed(data)
        return bool(data)


class Server:
    """Everything in one loop."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self._ticker = Ticker(arguments.client, arguments.tick_port, new_instance())
        self._content = Content(arguments.memory, arguments.compressible)
        self._held = [os.open(path, os.O_RDONLY) for path in arguments.open]
        self._held += [os.open(path, os.O_RDWR) for path in arguments.write]
        self._selector = selectors.DefaultSelector()
        self._peers: list[Peer] = []
        self._accepting = not arguments.accept_when
        self._waiting_listeners: list[tuple[socket.socket, str]] = []
        self._errors = 0
        self._greeted = 0
        for kind, addresses in (("blocks", arguments.listen), ("greet", arguments.greet)):
            for address, port in addresses:
                self._listen(address, int(port), kind)
        self._listen("127.0.0.1", arguments.ask, "ask")

    def _listen(self, address: str, port: int, kind: str) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        both = self._arguments.dual_stack and family == socket.AF_INET6
        listener = socket.create_server(
            (address, port), family=family, backlog=self._arguments.backlog, dualstack_ipv6=both
        )
        listener.setblocking(False)
        if self._accepting or kind == "ask":
            self._selector.register(listener, selectors.EVENT_READ, kind)
        else:
            self._waiting_listeners.append((listener, kind))

    def run(self) -> None:
        """Serve for ever."""
        print("ready", flush=True)
        tick_at = push_at = time.monotonic()
        while True:
            now = time.monotonic()
            if now >= tick_at:
                tick_at = max(tick_at + TICK_SECONDS, now)
                self._ticker.tick(self._content.passes, self._errors)
                self._accept_at_last()
            if now >= push_at:
                push_at = max(push_at + PUSH_SECONDS, now)
                for peer in list(self._peers):
                    self._try(peer, self._arguments.flood)
            if self._arguments.change:
                self._content.change(CHANGED_PAGES)
            time.sleep(self._arguments.nap)
            pause = 0.0 if self._arguments.change else max(0.0, min(tick_at, push_at) - time.monotonic())
            for key, _ in self._selector.select(pause):
                self._handle(key)

    def _accept_at_last(self) -> None:
        if self._waiting_listeners and Path(self._arguments.accept_when).exists():
            for listener, kind in self._waiting_listeners:
                self._selector.register(listener, selectors.EVENT_READ, kind)
            self._waiting_listeners.clear()

    def _handle(self, key: selectors.SelectorKey) -> None:
        if isinstance(key.data, Peer):
            self._try(key.data, 0)
            return
        assert isinstance(key.fileobj, socket.socket)
        if key.data == "guest":
            self._greet(key.fileobj)
            return
        connection, _ = key.fileobj.accept()
        if key.data == "blocks":
            connection.setblocking(False)
            peer = Peer(connection)
            self._peers.append(peer)
            self._selector.register(connection, selectors.EVENT_READ, peer)
        elif key.data == "greet":
            connection.setblocking(False)
            self._selector.register(connection, selectors.EVENT_READ, "guest")
        else:
            with connection:
                command = connection.recv(READ_BYTES).decode().strip()
                connection.sendall(json.dumps(self._answer(command)).encode() + b"\n")

    def _try(self, peer: Peer, push: int) -> None:
        try:
            if push:
                peer.push(push)
                return
            if peer.read():
                return
            peer.end = "closed"
        except BlockingIOError:
            return
        except (OSError, BrokenStreamError) as error:
            self._errors += 1
            peer.end = str(error)
            print(f"connection {self._peers.index(peer)}: {error}", flush=True)
        self._selector.unregister(peer.connection)
        peer.connection.close()
        self._peers.remove(peer)

    def _greet(self, guest: socket.socket) -> None:
        """Say back what a guest says; with `--hang-up` end the connection then, as a server of HTTP/1.0 does."""
        try:
            said = guest.recv(READ_BYTES)
            if said:
                guest.sendall(said)
                self._greeted += 1
                if not self._arguments.hang_up:
                    return
        except OSError as error:
            self._errors += 1
            print(f"greeting: {error}", flush=True)
        self._selector.unregister(guest)
        guest.close()

    def _answer(self, command: str) -> object:
        if command == "checksum":
            return self._content.checksum()
        if command == "wrong_pages":
            return self._content.wrong_pages()
        if command == "held":
            return [os.pread(file, READ_BYTES, 0).decode() for file in self._held]
        if command == "counts":
            return {"errors": self._errors, "peers": len(self._peers), "greeted": self._greeted}
        return f"unknown command {command}"


def main() -> None:
    """Read the command line and serve."""
    parser = argparse.ArgumentParser()
    parser.add_argument("client")
    parser.add_argument("tick_port", type=int)
    parser.add_argument("--listen", nargs=2, action="append", default=[], metavar=("ADDRESS", "PORT"))
    parser.add_argument("--dual-stack", action="store_true", help="--listen :: takes IPv4 as well")
    parser.add_argument("--greet", nargs=2, action="append", default=[], metavar=("ADDRESS", "PORT"))
    parser.add_argument("--hang-up", action="store_true", help="do so first on the --greet addresses")
    parser.add_argument("--ask", type=int, default=7900)
    parser.add_argument("--memory", type=int, default=0, help="MiB of random content")
    parser.add_argument("--compressible", action="store_true", help="three quarters of it are zeros")
    parser.add_argument("--change", action="store_true", help="change all of the memory, constantly")
    parser.add_argument("--nap", type=float, default=0.0, help="seconds between two looks at the sockets")
    parser.add_argument("--flood", type=int, default=1, help="blocks a client is sent at a time")
    parser.add_argument("--open", action="append", default=[], metavar="FILE", help="hold it open for reading")
    parser.add_argument("--write", action="append", default=[], metavar="FILE", help="hold it open for writing, too")
    parser.add_argument("--backlog", type=int, default=128)
    parser.add_argument("--accept-when", default="", metavar="FILE", help="accept nobody before FILE is there")
    Server(parser.parse_args()).run()


if __name__ == "__main__":
    main()
