"""A socket that a service manager holds: found by its path, only by whom it is for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CODE = """
import os, socket, sys
from pathlib import Path
from phaul.system.activation import handed_over

path, other, pid = sys.argv[1:]
listener = socket.socket(socket.AF_UNIX)
listener.bind(path)
listener.listen()
listener.set_inheritable(True)
os.dup2(listener.fileno(), 4)
listener.close()
os.environ |= {"LISTEN_FDS": "2", "LISTEN_PID": str(os.getpid()) if pid == "ours" else "1"}
assert handed_over(Path(other)) is None
found = handed_over(Path(path))
if found is None:
    print("none")
else:
    print(found.fileno(), os.get_inheritable(found.fileno()))
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        found.accept()
"""


def run(directory: Path, pid: str) -> str:
    argv = [sys.executable, "-c", CODE, str(directory / "here"), str(directory / "elsewhere"), pid]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, close_fds=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_socket_for_a_path_is_found_and_no_child_gets_it(tmp_path: Path) -> None:
    assert run(tmp_path, "ours") == "4 False"


def test_what_was_handed_to_another_process_is_left_alone(tmp_path: Path) -> None:
    assert run(tmp_path, "another's") == "none"
