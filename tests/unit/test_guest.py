"""What is said between this machine and a virtual one, without either: requests, files, errors, commands."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from phaul.lab import guest, guest_client
from phaul.lab.guest_client import GuestChannel
from phaul.lab.guest_path import GuestPath


def served() -> socket.socket:
    """A connection to somebody who does what `guest` does, in this process."""
    ours, theirs = socket.socketpair()
    threading.Thread(target=guest.serve, args=(theirs,), daemon=True).start()
    return ours


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[GuestPath]:
    """A directory as seen through a channel."""
    monkeypatch.setattr(guest_client, "connect", lambda *_: served())
    channel = GuestChannel(0, "nowhere")
    yield GuestPath.of(channel, str(tmp_path))
    channel.close()


def test_files_are_written_and_read(root: GuestPath, tmp_path: Path) -> None:
    file = root / "directory" / "file"
    assert not file.exists()
    file.parent.mkdir()
    assert file.write_bytes(bytes(range(256))) == 256
    assert (tmp_path / "directory" / "file").read_bytes() == bytes(range(256)) == file.read_bytes()
    file.write_text("größer\n")
    assert file.read_text() == "größer\n"
    file.chmod(0o640)
    assert file.stat().st_mode & 0o777 == 0o640
    assert [str(found) for found in root.rglob("*")] == [str(file.parent), str(file)]
    assert [found.read_text() for found in file.parent.iterdir()] == ["größer\n"]
    assert file.is_file()
    assert not file.is_dir()
    file.unlink()
    file.unlink(missing_ok=True)
    file.parent.rmdir()
    assert list(root.iterdir()) == []


def test_a_large_file_comes_whole(root: GuestPath) -> None:
    content = os.urandom(3 << 20)
    (root / "large").write_bytes(content)
    assert (root / "large").read_bytes() == content


def test_links_are_read(root: GuestPath, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/where/to")
    assert (root / "link").is_symlink()
    assert str((root / "link").readlink()) == "/where/to"


def test_errors_are_those_of_the_other_side(root: GuestPath, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        (root / "missing").read_text()
    assert caught.value.filename == str(tmp_path / "missing")
    (root / "there").touch()
    with pytest.raises(FileExistsError):
        (root / "there").mkdir()
    with pytest.raises(ProcessLookupError):
        root.channel.ask("kill", pid=999_999_999, number=0)


def test_what_has_no_counterpart_never_touches_this_machine(root: GuestPath, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("ours")
    with pytest.raises(TypeError, match="virtual machine"):
        (root / "file").open()
    with pytest.raises(OSError, match="no such method"):
        root.channel.ask("file", method="symlink_to", path=str(tmp_path / "x"), arguments=["y"])


def conversation(argv: list[str], *frames: tuple[bytes, bytes], reads: bool = False) -> dict[bytes, bytes]:
    """Run a command, send frames, and give what comes of each kind."""
    request = {"argv": argv, "environment": dict(os.environ), "stdin": reads, "terminal": False}
    told: dict[bytes, bytes] = {}
    with served() as connection:
        connection.settimeout(20)
        guest.send(connection, guest.REQUEST, guest_client.as_request("run", request))
        for kind, data in frames:
            guest.send(connection, kind, data)
        while guest.EXIT not in told:
            kind, data = guest.receive(connection)
            told[kind] = told.get(kind, b"") + data
    return told


def test_a_command_has_streams_and_a_status() -> None:
    told = conversation(["sh", "-c", "echo out; echo err >&2; exit 7"])
    assert told == {guest.STDOUT: b"out\n", guest.STDERR: b"err\n", guest.EXIT: struct.pack(">i", 7)}


def test_a_command_reads_to_the_end_of_its_input() -> None:
    told = conversation(["wc", "-c"], (guest.STDIN, b"x" * 100_000), (guest.STDIN, b""), reads=True)
    assert told[guest.STDOUT].strip() == b"100000"


def test_a_command_is_signalled() -> None:
    told = conversation(["sleep", "1000"], (guest.SIGNAL, struct.pack(">i", 15)))
    assert struct.unpack(">i", told[guest.EXIT])[0] == -15


def test_a_command_that_is_missing_says_so() -> None:
    told = conversation(["/no/such/command"])
    assert struct.unpack(">i", told[guest.EXIT])[0] == 127
    assert b"No such file" in told[guest.STDERR]


def test_a_command_is_ended_when_nobody_listens_any_more(tmp_path: Path) -> None:
    script = f"trap 'touch {tmp_path}/ended; exit' TERM; echo ready; while :; do sleep 0.05; done"
    request = {"argv": ["sh", "-c", script], "environment": dict(os.environ), "stdin": False, "terminal": False}
    with served() as connection:
        guest.send(connection, guest.REQUEST, guest_client.as_request("run", request))
        assert guest.receive(connection) == (guest.STDOUT, b"ready\n")
    for _ in range(400):
        if (tmp_path / "ended").exists():
            return
        threading.Event().wait(0.05)
    raise AssertionError("the command runs on")
