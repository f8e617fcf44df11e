"""What no committed file may hold: a path of the machine it was written on, a registry's host, more than 400 lines."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LONGEST_LINES = 400

REGISTRY_HOST = re.compile(r"://[a-z0-9.-]*(debian|pypi|npmjs)")

# A checkout directly below one of these says nothing about the machine.
PLACES_EVERYWHERE = {
    Path(name) for name in ("/", "/home", "/mnt", "/opt", "/root", "/srv", "/tmp", "/usr/src", "/var/tmp")
}


def committed() -> list[Path]:
    """The files that git knows, below the root; in an unpacked archive, all that are not caches."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True)
    if listed.returncode == 0:
        paths = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
        return [path for path in paths if path.is_file()]
    return [
        path
        for path in ROOT.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
    ]


def texts() -> Iterator[tuple[str, str]]:
    for path in committed():
        try:
            yield path.relative_to(ROOT).as_posix(), path.read_text()
        except UnicodeDecodeError:
            continue  # a picture


def paths_of_this_machine() -> set[str]:
    return {f"{place}/" for place in (ROOT, ROOT.parent) if place not in PLACES_EVERYWHERE}


def lines_with(pattern: re.Pattern[str]) -> list[str]:
    return [
        f"{name}:{number}: {line.strip()[:100]}"
        for name, text in texts()
        for number, line in enumerate(text.splitlines(), 1)
        if pattern.search(line)
    ]


def test_no_file_holds_a_path_of_this_machine() -> None:
    places = paths_of_this_machine()
    if places:
        assert not lines_with(re.compile("|".join(re.escape(place) for place in sorted(places))))


def test_no_file_holds_the_host_of_a_registry() -> None:
    assert not lines_with(REGISTRY_HOST)


@pytest.mark.parametrize(
    "host", ["deb.debian.org/debian", "pypi.org/simple", "registry.npmjs.org", "files.pypi.example"]
)
def test_a_registry_is_recognised(host: str) -> None:
    assert REGISTRY_HOST.search(f"https://{host}")


def test_no_file_is_too_long() -> None:
    long = {
        path.relative_to(ROOT).as_posix(): count
        for package in ("phaul", "tests")
        for path in (ROOT / package).rglob("*.py")
        if not path.is_relative_to(ROOT / "phaul/rpc") and (count := len(path.read_text().splitlines())) > LONGEST_LINES
    }
    assert not long, f"a file of more than {LONGEST_LINES} lines is usually two files"
