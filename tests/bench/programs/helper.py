"""Runs commands on a host at once, so that entering the host is not billed to what is measured.

Run on the lab's hosts; each line on standard input is a JSON object with `op`, and is answered with one:

- `start` (`id`, `argv`, `ready`): start a command; with `ready` wait until it has written to the descriptor whose
  number replaces `READY_FD` in `argv`.
- `wait` (`id`): wait for it: `status`, `output`, `start_ns` and `end_ns` (nanoseconds since 1970).
- `receive` (`id`, `directory`, `port`): listen, and unpack the tar stream of the first connection.
- `send` (`id`, `directory`, `host`, `port`): pack a directory into such a connection.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from typing import IO, Any


class Job:
    """One command; a thread waits for it, so that its end is stamped when it happens."""

    def __init__(self, argv: list[str], stdin: int | None = None, stdout: int | None = None, **options: Any) -> None:
        self._output: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 # closed in `wait`
        self.start_ns = time.time_ns()
        self.end_ns = 0
        self._process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL if stdin is None else stdin,
            stdout=self._output if stdout is None else stdout,
            stderr=self._output,
            **options,
        )
        self._waiter = threading.Thread(target=self._wait, daemon=True)
        self._waiter.start()

    def _wait(self) -> None:
        self._process.wait()
        self.end_ns = time.time_ns()

    def wait(self) -> dict[str, object]:
        """Wait for the end and tell how it went."""
        self._waiter.join()
        with self._output as output:
            output.seek(0)
            text = output.read().decode(errors="replace")
        return {
            "status": self._process.returncode,
            "output": text,
            "start_ns": self.start_ns,
            "end_ns": self.end_ns,
        }


class Unpacking:
    """Waits for a connection in a thread and unpacks what comes over it."""

    def __init__(self, directory: str, port: int) -> None:
        self._listening = socket.create_server(("0.0.0.0", port))
        self._result: dict[str, object] = {}
        self._thread = threading.Thread(target=self._receive, args=(directory,), daemon=True)
        self._thread.start()

    def _receive(self, directory: str) -> None:
        connection, _ = self._listening.accept()
        with self._listening, connection:
            self._result = Job(["tar", "-xf", "-", "-C", directory], stdin=connection.fileno()).wait()

    def wait(self) -> dict[str, object]:
        """Wait until all is unpacked."""
        self._thread.join()
        return self._result


def start(argv: list[str], ready: bool) -> Job:
    """Start a command and, if wanted, wait until it says through a descriptor that it is ready."""
    if not ready:
        return Job(argv)
    reader, writer = os.pipe()
    try:
        job = Job([word.replace("READY_FD", str(writer)) for word in argv], pass_fds=(writer,))
    finally:
        os.close(writer)
    os.read(reader, 1)
    os.close(reader)
    return job


def send(directory: str, host: str, port: int) -> Job:
    """Pack a directory into a connection."""
    with socket.create_connection((host, port)) as connection:
        return Job(["tar", "-cf", "-", "-C", directory, "."], stdout=connection.fileno())


def main() -> None:
    """Serve until standard input ends."""
    jobs: dict[str, Job | Unpacking] = {}
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, object] = {}
        match request["op"]:
            case "start":
                jobs[request["id"]] = start(request["argv"], request["ready"])
            case "receive":
                jobs[request["id"]] = Unpacking(request["directory"], request["port"])
            case "send":
                jobs[request["id"]] = send(request["directory"], request["host"], request["port"])
            case "wait":
                answer = jobs.pop(request["id"]).wait()
        print(json.dumps(answer), flush=True)


main()
