"""A file of a lab's virtual machine, used like a `pathlib.Path` of this one.

Given out by `VirtualHost.path`. Every call goes to the machine (`phaul.lab.guest`) and takes about a millisecond. What
is not defined here has no counterpart there and fails, as the object names no file of this machine.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import PosixPath
from typing import Any, NoReturn, Self

from phaul.lab.guest_client import GuestChannel


class GuestPath(PosixPath):
    """A path in a virtual machine. Errors are the `OSError`s that the machine's kernel gave."""

    channel: GuestChannel

    @classmethod
    def of(cls, channel: GuestChannel, path: str) -> Self:
        """Make one."""
        made = cls(path)
        made.channel = channel
        return made

    def __fspath__(self) -> NoReturn:
        raise TypeError(f"{self} is a file of a virtual machine: it cannot be opened here")

    def __truediv__(self, name: str | os.PathLike[str]) -> Self:
        return self.of(self.channel, f"{self}/{name}")

    @property
    def parent(self) -> Self:
        """The directory that it is in."""
        return self.of(self.channel, str(self).rpartition("/")[0] or "/")

    def read_bytes(self) -> bytes:
        """Its content, also of a file in /proc."""
        return str(self._ask("read_bytes")).encode("latin-1")

    def read_text(self, encoding: str | None = None, errors: str | None = None, newline: str | None = None) -> str:
        """Its content; lines end as they do there."""
        return self.read_bytes().decode(encoding or "utf-8", errors or "strict")

    def write_bytes(self, data: Any) -> int:
        """Replace its content."""
        return int(self._ask("write_bytes", bytes(data).decode("latin-1")))

    def write_text(
        self, data: str, encoding: str | None = None, errors: str | None = None, newline: str | None = None
    ) -> int:
        """Replace its content."""
        self.write_bytes(data.encode(encoding or "utf-8", errors or "strict"))
        return len(data)

    def exists(self, *, follow_symlinks: bool = True) -> bool:
        """Whether it is there."""
        return bool(self._ask("exists"))

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        """Whether it is a directory."""
        return bool(self._ask("is_dir"))

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        """Whether it is a regular file."""
        return bool(self._ask("is_file"))

    def is_symlink(self) -> bool:
        """Whether it is a symbolic link."""
        return bool(self._ask("is_symlink"))

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """Whatever `os.stat` tells, times in whole seconds."""
        return os.stat_result(self._ask("stat"))

    def readlink(self) -> Self:
        """Where a symbolic link leads."""
        return self.of(self.channel, self._ask("readlink"))

    def iterdir(self) -> Any:
        """What is in the directory."""
        return self._paths("iterdir")

    def glob(self, pattern: str, **_: Any) -> Any:
        """What matches below it."""
        return self._paths("glob", pattern)

    def rglob(self, pattern: str, **_: Any) -> Any:
        """What matches at any depth."""
        return self._paths("rglob", pattern)

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        """Make it a directory."""
        self._ask("mkdir", mode, parents, exist_ok)

    def rmdir(self) -> None:
        """Remove an empty directory."""
        self._ask("rmdir")

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove it."""
        self._ask("unlink", missing_ok)

    def chmod(self, mode: int, *, follow_symlinks: bool = True) -> None:
        """Change who may do what with it."""
        self._ask("chmod", mode)

    def touch(self, mode: int = 0o666, exist_ok: bool = True) -> None:
        """Make it, or make it new."""
        self._ask("touch", mode, exist_ok)

    def _paths(self, method: str, *arguments: object) -> Iterator[Self]:
        return (self.of(self.channel, found) for found in self._ask(method, *arguments))

    def _ask(self, method: str, *arguments: object) -> Any:
        return self.channel.ask("file", method=method, path=str(self), arguments=arguments)
