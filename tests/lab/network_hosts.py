"""Three hosts on a bridge, each a network namespace and nothing else, for test_network.py.

Nothing of it is in the namespace of the machine: every namespace is held by a process that is started and ended here,
and goes with it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

WORKER = Path(__file__).with_name("network_worker.py")
REPOSITORY = WORKER.parents[2]
NAMES = ("a", "b", "client")


class WorkerError(Exception):
    """What a worker raised; `code` is the name of the class."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Namespace:
    """A network namespace. Owns the process that holds it."""

    def __init__(self, stack: ExitStack) -> None:
        # `cat` ends with its stdin, so that no namespace outlives a test process that was killed.
        held = ["unshare", "--net", "sh", "-c", "echo ready; exec cat"]
        holder = subprocess.Popen(held, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        stack.callback(_end, holder)
        assert holder.stdout is not None
        assert holder.stdout.readline() == "ready\n"
        self.pid = holder.pid
        self.run("ip link set lo up")

    def run(self, command: str, stdin: str = "") -> str:
        """Run a command line in the namespace and give its output."""
        return subprocess.run(
            ["nsenter", f"--net=/proc/{self.pid}/ns/net", "sh", "-euc", command],
            input=stdin,
            text=True,
            check=True,
            capture_output=True,
        ).stdout


class Host(Namespace):
    """A namespace with a device eth0 and a worker."""

    def __init__(self, stack: ExitStack, bridge: Namespace, number: int) -> None:
        super().__init__(stack)
        self.mac = f"02:00:00:00:00:{number:02x}"
        self.run("sysctl -qw net.ipv6.conf.default.accept_dad=0 net.ipv4.conf.default.promote_secondaries=0")
        bridge.run(
            f"ip link add port{number} type veth peer name eth0 address {self.mac} netns {self.pid};"
            f" ip link set port{number} master bridge up"
        )
        self.run(
            f"ip addr add 192.0.2.{number}/24 dev eth0; ip addr add 2001:db8::{number}/64 dev eth0 nodad;"
            " ip link set eth0 up"
        )
        self._worker = subprocess.Popen(
            ["nsenter", f"--net=/proc/{self.pid}/ns/net", sys.executable, str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
            env={"PYTHONPATH": str(REPOSITORY), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        )
        stack.callback(_end, self._worker)

    def ask(self, verb: str, *arguments: Any) -> Any:
        """Have the worker do something; raises `WorkerError` with what it raised."""
        self.order(verb, *arguments)
        return self.answer()

    def order(self, verb: str, *arguments: Any) -> None:
        """Have the worker begin; `answer` waits for it."""
        assert self._worker.stdin is not None
        self._worker.stdin.write(json.dumps([verb, *arguments]) + "\n")
        self._worker.stdin.flush()

    def answer(self) -> Any:
        """Wait for what `order` began."""
        assert self._worker.stdout is not None
        answer = json.loads(self._worker.stdout.readline())
        if "error" in answer:
            raise WorkerError(answer["error"], answer["message"])
        return answer["result"]

    def network(self, method: str, *arguments: Any) -> list[str]:
        """Call a method of `HostNetwork` there; addresses as lists of [address, prefix length, device]."""
        value: list[str] = self.ask("network", method, *arguments)["value"]
        return value

    def neighbour(self, address: str) -> tuple[str, str]:
        """Give the MAC and the state by which the kernel there knows an address; ("", "") when it does not."""
        for entry in json.loads(self.run("ip -json neigh show dev eth0") or "[]"):
            if entry["dst"] == address:
                return entry.get("lladdr", ""), entry["state"][0]
        return "", ""

    def addresses(self) -> str:
        """What `ip address` shows of eth0."""
        return self.run("ip -oneline addr show dev eth0 scope global")


@contextmanager
def three_hosts() -> Iterator[dict[str, Host]]:
    """Three hosts named a, b and client, 192.0.2.1 to 3 and 2001:db8::1 to 3, joined by a bridge."""
    with ExitStack() as stack:
        bridge = Namespace(stack)
        # Multicast snooping forgets nobody here, but learns only after a while.
        bridge.run("ip link add bridge type bridge forward_delay 0 mcast_snooping 0; ip link set bridge up")
        yield {name: Host(stack, bridge, number) for number, name in enumerate(NAMES, start=1)}


def _end(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()
