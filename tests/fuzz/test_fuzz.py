"""A short run of every surface without coverage: the corpus, and seconds of mutations. `make fuzz` is the long run.

In a process of its own each: the sandbox watches a whole process, and what hangs or eats memory ends with it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.__main__ import ROOT, SURFACES
from tests.fuzz.sandbox import DIRECTORY

SECONDS = 4


@pytest.mark.parametrize("surface", SURFACES)
def test_nothing_is_found(surface: str, tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "tests.fuzz", "--one", "--plain", "--seconds", str(SECONDS), surface]
    environment = {**os.environ, DIRECTORY: str(tmp_path)}
    done = subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr[-6000:]
    assert "no finding" in done.stdout


@pytest.mark.parametrize(
    "act",
    [
        "open('/tmp/phaul-fuzz-must-not-be', 'w')",
        "pathlib.Path(box.images, '../../x').mkdir()",
        "(box.work / 'a').symlink_to('b'); (box.work / 'a').rename('/tmp/phaul-fuzz-must-not-be')",
        "os.posix_spawn('/bin/true', ['true'], {})",
        "sockets.extend(socket.socket() for _ in range(64)); [take() for _ in range(600)]",
    ],
)
def test_the_sandbox_sees(act: str, tmp_path: Path) -> None:
    """In a process of its own, since an audit hook stays."""
    program = f"""
import os, pathlib, socket
from tests.fuzz.sandbox import OutsideError, Sandbox
box, sockets = Sandbox(), []
def take():
    box.begin(); box.end()
for _ in range(256): take()
box.begin()
try:
    {act}
    box.end()
except OutsideError as error:
    print("seen:", error)
"""
    environment = {**os.environ, DIRECTORY: str(tmp_path)}
    argv = [sys.executable, "-c", program]
    done = subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("seen:"), done.stdout + done.stderr
