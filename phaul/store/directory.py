"""A dump in a directory: begun, sealed, looked into, copied out, removed. Called by `agent`; everything here blocks.

While it is made, the directory has a mark with the migration's ID in it. Sealing makes every file durable and writes
the manifest last, under its final name at one stroke: a directory with a manifest and without the mark is a whole dump.
The manifest names every image with its size and SHA-256, and itself by a digest of the rest of it. What it says of host
and workload is the caller's. None of this is a signature: who can write there as root can put any program there.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

from phaul.errors import PreflightError, TransferError
from phaul.units import MIB

MANIFEST = "manifest.json"
MARK = "incomplete.json"
FORMAT = 1
DIGEST = "manifest_sha256"
CHUNK_BYTES = 1 * MIB
NOT_WHOLE = "Dump it again; this directory can be removed."
DAMAGED = "Copy it again from where it came from, or dump the workload again. Nothing was restored."


@dataclass(frozen=True, slots=True)
class Image:
    """One file of a dump."""

    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a whole dump says of itself. `facts` are the caller's, JSON values only."""

    migration_id: str
    made_directory: bool
    facts: Mapping[str, Any]
    images: Mapping[str, Image]

    @property
    def bytes(self) -> int:
        """All images."""
        return sum(image.size_bytes for image in self.images.values())


def require_room(directory: Path, needed_bytes: int, needed: str) -> None:
    """Raise `PreflightError` where no dump of this size can be put into a directory, which need not be there yet."""
    parent = directory.parent
    try:
        if directory.is_dir():
            if next(directory.iterdir(), None) is not None:
                raise PreflightError(
                    f"the directory {directory} is not empty",
                    hint="Name one that is empty, or not there yet: each dump has one of its own.",
                )
            parent = directory
        elif directory.exists() or directory.is_symlink():
            raise PreflightError(f"{directory} is no directory", hint="Name one that is empty, or not there yet.")
        free = shutil.disk_usage(parent).free
    except OSError as error:
        raise PreflightError(
            f"the directory {directory} cannot be used: {error.strerror}: {error.filename}",
            hint="The directory above it has to be there.",
        ) from error
    if free < needed_bytes:
        raise PreflightError(
            f"there is not enough room for the dump in {parent}: it may take {needed}, and {free // MIB} MiB are free",
            hint="Free some, or name a directory on another file system.",
        )


def begin(directory: Path, migration_id: str) -> None:
    """Make the directory where there is none, for root alone, and mark it. Raises `TransferError`."""
    try:
        made = not directory.exists()
        if made:
            directory.mkdir(mode=0o700)
        directory.chmod(0o700)
        if next(directory.iterdir(), None) is not None:
            raise TransferError(f"the directory {directory} is not empty any more")
        _write(directory / MARK, json.dumps({"migration_id": migration_id, "made_directory": made}).encode())
        _sync_directory(directory)
        _sync_directory(directory.parent)
    except OSError as error:
        raise TransferError(f"the directory {directory} cannot be written: {error.strerror}") from error


def seal(directory: Path, facts: Mapping[str, Any]) -> Manifest:
    """Make what is in the directory durable, and whole. Raises `TransferError` with it not whole."""
    try:
        mark = json.loads((directory / MARK).read_bytes())
        images: dict[str, Image] = {}
        for path in sorted(directory.glob("*.img")):
            images[path.name] = _settle(path)
        manifest = Manifest(str(mark["migration_id"]), bool(mark["made_directory"]), facts, images)
        part = directory / f"{MANIFEST}.part"
        _write(part, encode(manifest))
        part.rename(directory / MANIFEST)
        _sync_directory(directory)
        (directory / MARK).unlink()
        _sync_directory(directory)
    except OSError as error:
        raise TransferError(
            f"the dump in {directory} could not be made durable: {error.strerror or error}",
            hint="Look at that file system: is it full?",
        ) from error
    return manifest


def encode(manifest: Manifest) -> bytes:
    """The content of the manifest's file."""
    fields = {
        "format": FORMAT,
        "migration_id": manifest.migration_id,
        "made_directory": manifest.made_directory,
        **manifest.facts,
        "images": {name: {"bytes": each.size_bytes, "sha256": each.sha256} for name, each in manifest.images.items()},
    }
    return json.dumps({**fields, DIGEST: _digest_of(fields)}, indent=1).encode() + b"\n"


def read(directory: Path) -> Manifest:
    """Read what a whole dump says of itself. Raises `PreflightError` where there is none, or others could have put it.

    The content of the images is not looked at: see `copy_out`.
    """
    try:
        _require_roots(directory)
        if (directory / MARK).exists():
            raise PreflightError(f"{directory} is not a whole dump: it was not finished", hint=NOT_WHOLE)
        data = (directory / MANIFEST).read_bytes()
    except FileNotFoundError as error:
        raise PreflightError(
            f"there is no dump in {directory}", hint="Name a directory that `phaul dump` has made, or a copy of one."
        ) from error
    except OSError as error:
        raise PreflightError(f"the dump in {directory} cannot be read: {error.strerror}") from error
    try:
        fields = json.loads(data)
        if fields["format"] != FORMAT:
            raise PreflightError(
                f"the dump in {directory} has the format {fields['format']}, and this phaul knows {FORMAT}",
                hint="Restore it by the version of phaul that has made it: `phaul` in its manifest.json names that.",
            )
        digest = fields.pop(DIGEST)
        images = {name: Image(int(each["bytes"]), str(each["sha256"])) for name, each in fields["images"].items()}
        known = ("format", "migration_id", "made_directory", "images")
        facts = {name: value for name, value in fields.items() if name not in known}
        manifest = Manifest(str(fields["migration_id"]), bool(fields["made_directory"]), facts, images)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PreflightError(f"{directory / MANIFEST} is damaged", hint=DAMAGED, detail=str(error)) from error
    if digest != _digest_of(fields):
        raise PreflightError(f"{directory / MANIFEST} is damaged: its checksum does not agree", hint=DAMAGED)
    if odd := next((name for name in images if "/" in name or not name.endswith(".img")), None):
        raise PreflightError(f"{directory / MANIFEST} names {odd!r}, which is no image", hint=DAMAGED)
    return manifest


def damaged(why: str, detail: str) -> PreflightError:
    """The error for a manifest that was not damaged on its way, and cannot be read all the same."""
    return PreflightError(f"the manifest of the dump cannot be read: {why}", hint=DAMAGED, detail=detail)


def copy_out(directory: Path, manifest: Manifest, to: Path, copied: Callable[[int], None]) -> None:
    """Copy the images into another directory, and verify each. `copied` is called with the bytes of each piece.

    Raises `PreflightError` for one that is missing, damaged or not root's, and OSError of the other directory.
    """
    for name, image in manifest.images.items():
        path = directory / name
        try:
            _require_roots(path)
            source = path.open("rb", buffering=0)
        except OSError as error:
            raise PreflightError(f"the image {path} cannot be read: {error.strerror}", hint=DAMAGED) from error
        digest, size = hashlib.sha256(), 0
        with source, _create(to / name) as target:
            while True:
                try:
                    data = source.read(CHUNK_BYTES)
                except OSError as error:
                    raise PreflightError(f"the image {path} cannot be read: {error.strerror}", hint=DAMAGED) from error
                if not data:
                    break
                digest.update(data)
                size += len(data)
                if size > image.size_bytes:
                    break
                view = memoryview(data)
                while view:  # a tmpfs that is about to be full takes a part
                    view = view[target.write(view) :]
                copied(len(data))
        if size != image.size_bytes or digest.hexdigest() != image.sha256:
            raise PreflightError(f"the image {path} is damaged: its checksum does not agree", hint=DAMAGED)


def holds(directory: Path, migration_id: str) -> bool | None:
    """Whether a directory holds the dump of this migration: True of a whole one, False of one begun, else None."""
    for name, whole in ((MARK, False), (MANIFEST, True)):
        if _field(directory / name, "migration_id") == migration_id:
            return whole
    return None


def remove(directory: Path, migration_id: str) -> None:
    """Remove the dump of this migration, and the directory if that was made for it. One of another stays. OSError."""
    if holds(directory, migration_id) is None:
        return
    made = any(_field(directory / name, "made_directory") for name in (MARK, MANIFEST))
    for path in sorted(directory.iterdir(), key=lambda path: path.name == MARK):  # the mark last: it names whose it is
        if not path.is_dir():
            path.unlink()
    if made:
        directory.rmdir()


def _field(path: Path, name: str) -> Any:
    try:
        return json.loads(path.read_bytes()).get(name)
    except (OSError, ValueError, AttributeError):
        return None


def _settle(path: Path) -> Image:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        os.fsync(file.fileno())
        return Image(os.fstat(file.fileno()).st_size, digest.hexdigest())


def _write(path: Path, data: bytes) -> None:
    with _create(path) as file:
        file.write(data)
        os.fsync(file.fileno())


def _create(path: Path) -> FileIO:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return FileIO(os.open(path, flags, 0o600), "wb")


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest_of(fields: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def _require_roots(path: Path) -> None:
    """What is restored runs as whoever it says, root too: nobody else may have written it."""
    found = path.stat()
    if found.st_uid not in (0, os.geteuid()) or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PreflightError(
            f"{path} could have been written by others than root",
            hint=f"What is in it would run as root. If you trust it: `chown -R root {path}`, `chmod -R go-w {path}`.",
        )
