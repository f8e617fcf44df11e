"""The corpus: a file of lines for each surface, kept with the tests, and a directory of files for libFuzzer."""

from __future__ import annotations

import base64
import hashlib
import zlib
from collections.abc import Iterable
from pathlib import Path

CORPUS = Path(__file__).with_name("corpus")


def load(surface: str) -> list[bytes]:
    """The inputs of one surface. A line is base64 of zlib; one with # says where those after it come from."""
    path = CORPUS / f"{surface}.txt"
    if not path.exists():
        return []
    lines = path.read_text().splitlines()
    return [zlib.decompress(base64.b64decode(line)) for line in lines if line and not line.startswith("#")]


def add(surface: str, title: str, inputs: Iterable[bytes]) -> int:
    """Write inputs behind those that are there; those that are there already, not again. Give how many."""
    known = set(load(surface))
    fresh = [each for each in dict.fromkeys(inputs) if each not in known]
    if fresh:
        with (CORPUS / f"{surface}.txt").open("a") as file:
            file.write(f"# {title}\n")
            file.writelines(f"{base64.b64encode(zlib.compress(each, 9)).decode()}\n" for each in fresh)
    return len(fresh)


def keep(directory: Path, data: bytes) -> Path:
    """Put one input into a file of its own, whose name is its hash."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / hashlib.sha256(data).hexdigest()[:16]
    path.write_bytes(data)
    return path
