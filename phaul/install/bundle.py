"""phaul and everything that it needs of PyPI, for the Python of a certain host: what is copied there, or packaged.

Used by `install.host_setup` and `install.debian`. Where the host has the same Python as this one, the packages are
taken as they are installed here, so that neither needs a registry; else `install.registry` gets them. Changes nothing.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import io
import platform
import py_compile
import re
import struct
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import phaul
from phaul.errors import InstallError

MINIMUM_PYTHON = (3, 11)
MINIMUM_GLIBC = (2, 28)  # what the wheels of cryptography and grpcio on PyPI ask for
_UNCHECKED = 1  # in the flags of a compiled module: it follows from a hash of its source, which nobody checks
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

LAUNCHER = """#!{python}
import sys

from phaul.cli.main import main

sys.exit(main())
"""


@dataclass(frozen=True, slots=True)
class Platform:
    """What the files of a bundle depend on. `glibc` is (2, 41), for example; (0, 0) where there is none."""

    python: tuple[int, int]
    machine: str
    glibc: tuple[int, int]

    def __str__(self) -> str:
        return f"Python {self.python[0]}.{self.python[1]} on {self.machine}"

    @classmethod
    def of_this_host(cls) -> Platform:
        """Ours."""
        name, version = platform.libc_ver()
        numbers = [int(part) for part in version.split(".")[:2]] if name == "glibc" else [0, 0]
        return cls(sys.version_info[:2], platform.machine(), (numbers[0], numbers[1]))


@dataclass(frozen=True, slots=True)
class Bundle:
    """Packages by their path below site-packages. `key` changes with every byte of them and the Python they are for."""

    platform: Platform
    files: Mapping[str, Path]
    metadata: str  # of phaul itself, so that a host that it is installed on can bring it to the next one

    @property
    def key(self) -> str:
        """A short name of the content; compiled modules do not count, they follow from their source."""
        digest = hashlib.sha256(repr((self.platform.python, LAUNCHER, self.metadata)).encode())
        for name, file in sorted(self.files.items()):
            digest.update(name.encode() + b"\0")
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        return f"{phaul.__version__}-{digest.hexdigest()[:12]}"

    def archive(self, directory: str, python: str) -> bytes:
        """
        Give a virtual environment with them, as a compressed tar archive whose paths begin with `directory`.

        Args:
            directory: where it will be unpacked; "/opt/phaul/…".
            python: the host's interpreter, as an absolute path.
        """
        made = io.BytesIO()
        # Level 1: the host's processor and ours cost more than the wire.
        with tarfile.open(fileobj=made, mode="w:gz", compresslevel=1) as tar:
            self.write(tar, directory, python)
        return made.getvalue()

    def write(self, tar: tarfile.TarFile, directory: str, python: str) -> None:
        """The same, into an archive that is being made."""
        root = directory.strip("/")
        version = "{}.{}".format(*self.platform.python)
        inside = f"{root}/lib/python{version}/site-packages"
        names = [*self.files, f"phaul-{phaul.__version__}.dist-info/METADATA"]
        folders = {str(parent) for name in names for parent in Path(f"{inside}/{name}").parents}
        folders |= {str(parent) for parent in Path(f"{root}/bin/x").parents}
        for folder in sorted(folders - {"."}):
            if folder.startswith(root):
                _add(tar, folder, b"", 0o755, tarfile.DIRTYPE)
        settings = f"home = {Path(python).parent}\ninclude-system-site-packages = false\nversion = {version}\n"
        _add(tar, f"{root}/pyvenv.cfg", settings.encode())
        for name in ("python", "python3"):
            _add(tar, f"{root}/bin/{name}", python.encode(), 0o777, tarfile.SYMTYPE)
        launcher = LAUNCHER.format(python=f"/{root}/bin/python")
        _add(tar, f"{root}/bin/phaul", launcher.encode(), 0o755)
        _add(tar, f"{inside}/phaul-{phaul.__version__}.dist-info/METADATA", self.metadata.encode())
        same_python = self.platform.python == sys.version_info[:2]
        with tempfile.TemporaryDirectory() as scratch:
            for name, file in sorted(self.files.items()):
                _add(tar, f"{inside}/{name}", file.read_bytes())
                if same_python and name.endswith(".py"):
                    code = _compiled(file, f"/{inside}/{name}", Path(scratch) / "module.pyc")
                    if code:
                        _add(tar, _cache(Path(inside) / name), code)


def installed_here() -> Bundle:
    """A bundle for hosts with this host's Python, of what is installed here. Raises `InstallError` where that lacks."""
    files = dict(own_files())
    waiting = list(required())
    seen: set[str] = set()
    while waiting:
        name, optional = waiting.pop()
        if name in seen:
            continue
        try:
            found = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError as error:
            if optional:
                continue  # for another Python, or another system
            raise InstallError(f"phaul needs the package {name}, which is not installed here") from error
        seen.add(name)
        files |= _files_of(found)
        waiting += _names(found.requires or ())
    return Bundle(Platform.of_this_host(), files, metadata())


def own_files() -> Iterator[tuple[str, Path]]:
    """phaul itself, from a checkout or as it is installed."""
    package = Path(phaul.__file__).resolve().parent
    for file in package.rglob("*"):
        if file.is_file() and "__pycache__" not in file.parts:
            yield f"phaul/{file.relative_to(package)}", file


def metadata() -> str:
    """What is recorded of phaul on a host."""
    needs = "".join(f"Requires-Dist: {line}\n" for line in requirements())
    return f"Metadata-Version: 2.1\nName: phaul\nVersion: {phaul.__version__}\n{needs}"


def requirements() -> tuple[str, ...]:
    """What phaul needs of PyPI, as pip has it: of the checkout, or else of the installed package."""
    project = Path(phaul.__file__).resolve().parents[1] / "pyproject.toml"
    if project.is_file():
        return tuple(tomllib.loads(project.read_text())["project"]["dependencies"])
    try:
        found = importlib.metadata.requires("phaul") or ()
    except importlib.metadata.PackageNotFoundError as error:
        raise InstallError(
            "phaul is neither installed here as a package nor a checkout: it does not know what it needs",
            hint="Install it with pip, or from its Debian package.",
        ) from error
    return tuple(line for line in found if "extra ==" not in line)


def required() -> Iterator[tuple[str, bool]]:
    """The same as names of packages, and whether each is needed only under a condition."""
    yield from _names(requirements())


def _names(lines: tuple[str, ...] | list[str]) -> Iterator[tuple[str, bool]]:
    for line in lines:
        wanted, _, condition = line.partition(";")
        found = _NAME.match(wanted.strip())
        if found and "extra" not in condition:
            yield re.sub(r"[-_.]+", "-", found[0]).lower(), bool(condition)


def _files_of(package: importlib.metadata.Distribution) -> dict[str, Path]:
    """What it has below site-packages; its programs (`../../../bin`) are no part of ours."""
    files: dict[str, Path] = {}
    for file in package.files or ():
        name = file.as_posix()
        if not name.startswith("..") and "__pycache__" not in file.parts:
            path = Path(str(file.locate()))
            if path.is_file():
                files[name] = path
    if not files:
        raise InstallError(f"of the package {package.name} it is not recorded which files it has")
    return files


def _cache(module: Path) -> str:
    """Where Python looks for a compiled module; not where it keeps ours, which it may be told."""
    return str(module.parent / "__pycache__" / f"{module.stem}.{sys.implementation.cache_tag}.pyc")


def _compiled(file: Path, path: str, scratch: Path) -> bytes:
    """The compiled module, so that the host does not have to compile 1500 modules when it starts; b"" for no module.

    Without the time of its source in it (PEP 552): on the host everything has the time of the installation.
    """
    kept = _kept(file)
    if kept:
        return kept
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    try:
        py_compile.compile(str(file), str(scratch), path, doraise=True, invalidation_mode=mode)
    except py_compile.PyCompileError:
        return b""  # an example for another Python, in somebody's package
    return scratch.read_bytes()


def _kept(file: Path) -> bytes:
    """The same from what Python has kept of an earlier import, if that is of the source as it is now."""
    try:
        data = Path(importlib.util.cache_from_source(str(file))).read_bytes()
        source = file.stat()
    except OSError:
        return b""
    magic, flags = data[:4], int.from_bytes(data[4:8], "little")
    of_now = data[8:16] == struct.pack("<II", int(source.st_mtime) & 0xFFFFFFFF, source.st_size & 0xFFFFFFFF)
    if magic != importlib.util.MAGIC_NUMBER or not (of_now if flags == 0 else flags == _UNCHECKED):
        return b""
    return magic + struct.pack("<I", _UNCHECKED) + importlib.util.source_hash(file.read_bytes()) + data[16:]


def _add(tar: tarfile.TarFile, name: str, data: bytes, mode: int = 0o644, kind: bytes = tarfile.REGTYPE) -> None:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode = kind, mode
    entry.uname = entry.gname = "root"
    if kind == tarfile.SYMTYPE:
        entry.linkname, data = data.decode(), b""
    entry.size = len(data)
    tar.addfile(entry, io.BytesIO(data))
