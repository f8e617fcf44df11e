"""A stand-in for CRIU's program that follows a script: it speaks `swrk` on the descriptor that it is given.

Tests make one with `FakeCriu` and read afterwards what it saw. Run as a program it knows nothing of pytest.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

Step = Sequence[Any]


class FakeCriu:
    """An executable below `directory`, and what it noted.

    Steps: ("notify", STAGE[, PID]) sends a NOTIFY and waits for the answer, a refusal is followed by a failure reply;
    ("reply", SUCCESS[, MESSAGE]); ("repeat_reply", COUNT, SUCCESS) sends as many; ("garbage",); ("die",) by SIGKILL;
    ("hang",) whatever happens to the socket; ("channel",) waits for the end of the page channel;
    ("fork_helper",); ("nap", SECONDS); ("note", TEXT). After the last step it ends. Before the first it waits for the
    request.
    """

    def __init__(self, directory: Path, *steps: Step, reads_request: bool = True) -> None:
        self._notes = directory / "notes"
        self.program = directory / "criu"
        scenario = directory / "scenario.json"
        scenario.write_text(json.dumps({"steps": steps, "notes": str(self._notes), "reads_request": reads_request}))
        root = Path(__file__).resolve().parents[2]
        self.program.write_text(
            f"#!{sys.executable}\n"
            f"import sys\nsys.path.insert(0, {str(root)!r})\n"
            f"from tests.unit.fake_criu import main\nmain({str(scenario)!r})\n"
        )
        self.program.chmod(0o755)

    @property
    def path(self) -> str:
        return str(self.program)

    @property
    def notes(self) -> list[str]:
        """What it saw, oldest first; without the line about its PID."""
        return [line for line in self._lines() if not line.startswith("pid ")]

    @property
    def pids(self) -> list[int]:
        """The PIDs of every time it was started."""
        return [int(line.split()[1]) for line in self._lines() if line.startswith("pid ")]

    @property
    def running(self) -> bool:
        """Whether any of them is still there, if only as a zombie."""
        assert self.pids, "it never ran"
        return any(Path(f"/proc/{pid}").exists() for pid in self.pids)

    def _lines(self) -> list[str]:
        return self._notes.read_text().splitlines() if self._notes.exists() else []


class _Script:
    def __init__(self, scenario: str, descriptor: int) -> None:
        plan = json.loads(Path(scenario).read_text())
        self._steps: list[list[Any]] = plan["steps"]
        self._reads_request: bool = plan["reads_request"]
        self._path: str = plan["notes"]
        self._notes = os.open(plan["notes"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._socket = socket.socket(fileno=descriptor)
        self._kind = 0
        self._channel = -1

    def note(self, text: str) -> None:
        os.write(self._notes, f"{text}\n".encode())

    def run(self) -> None:
        from phaul.rpc.criu import rpc_pb2

        self.note(f"pid {os.getpid()}")
        if self._reads_request:
            request = rpc_pb2.Request.FromString(self._receive("the request"))
            self._kind, self._channel = request.type, request.opts.ps.fd
            self.note(f"request {rpc_pb2.RequestType.Name(request.type)}")
        for name, *arguments in self._steps:
            getattr(self, name)(*arguments)

    def _receive(self, waiting_for: str) -> bytes:
        data = self._socket.recv(1 << 20)
        if not data:
            self.note(f"gone at {waiting_for}")
            sys.exit(1)
        return data

    def notify(self, stage: str, pid: int = 0) -> None:
        from phaul.rpc.criu import rpc_pb2

        notify = rpc_pb2.Notify(script=stage, pid=pid)
        message = rpc_pb2.Response(type=rpc_pb2.NOTIFY, success=True, notify=notify)
        self._socket.sendall(message.SerializeToString())
        answer = rpc_pb2.Request.FromString(self._receive(stage))
        assert answer.type == rpc_pb2.NOTIFY
        self.note(f"{stage} {'passed' if answer.notify_success else 'refused'}")
        if not answer.notify_success and stage != "network-unlock":
            self.reply(False)
            sys.exit(1)

    def reply(self, success: bool, message: str = "") -> None:
        from phaul.rpc.criu import rpc_pb2

        response = rpc_pb2.Response(type=rpc_pb2.RequestType.ValueType(self._kind), success=success)
        if message:
            response.cr_errmsg = message
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        self._socket.sendall(response.SerializeToString())
        self.note(f"replied {success}")

    def repeat_reply(self, count: int, success: bool) -> None:
        for _ in range(count):
            self.reply(success)

    def garbage(self) -> None:
        self._socket.sendall(b"\xff" * 10)

    def die(self) -> NoReturn:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    def nap(self, seconds: float) -> None:
        time.sleep(seconds)

    def fork_helper(self) -> None:
        """A child that sleeps and has all that this one has open, as CRIU's tests of the kernel do."""
        if os.fork() == 0:
            self.note(f"helper {os.getpid()}")
            time.sleep(3600)
            os._exit(0)
        while not any(line.startswith("helper ") for line in Path(self._path).read_text().splitlines()):
            time.sleep(0.01)

    def hang(self) -> NoReturn:
        self.note("hangs")
        while True:
            time.sleep(3600)

    def channel(self) -> None:
        """Like a dump in the middle of the memory: only the end of the channel makes it fail."""
        self.note("sends pages")
        with socket.socket(fileno=os.dup(self._channel)) as channel:
            if not channel.recv(1):
                self.note("channel ended")


def main(scenario: str) -> None:
    """What the executable does: `criu swrk FD`."""
    assert sys.argv[1] == "swrk", sys.argv
    script = _Script(scenario, int(sys.argv[2]))
    try:
        script.run()
    except ConnectionError:
        script.note("broken")
        sys.exit(1)
