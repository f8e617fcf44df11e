"""Action scripts on disk: which executables a directory of hooks has, and whether they may be run as root.

Called by `agent.hooks`. Names and order are those of run-parts(8), as Debian's packages use it, except that dots are
allowed; whose files and directories are trusted is what sshd asks of a user's (StrictModes). Runs nothing.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", re.ASCII)
# What editors and package managers leave beside a file, and what a person has turned off.
_PASSED_OVER = re.compile(
    r"README.*|\..*|.*(~|\.bak|\.orig|\.swp|\.disabled|\.dpkg-\w+|\.rpm(new|save|orig))", re.ASCII
)


@dataclass(frozen=True, slots=True)
class HookFile:
    """An action script. `problem` is one clause on why it must not be run; "" where it may."""

    path: Path
    problem: str = ""


def listed(directory: Path) -> tuple[HookFile, ...]:
    """Give what a directory of one stage has, in order of names (bytes); nothing where there is no such directory."""
    try:
        names = sorted(entry.name for entry in directory.iterdir() if not _PASSED_OVER.fullmatch(entry.name))
    except (FileNotFoundError, NotADirectoryError):
        return ()
    except OSError as error:
        return (HookFile(directory, f"the directory cannot be read: {error.strerror}"),)
    return tuple(look(directory / name) for name in names)


def look(path: Path) -> HookFile:
    """Say whether one file may be run."""
    return HookFile(path, _problem(path))


def _problem(path: Path) -> str:
    if not path.is_absolute():
        return "its path does not begin with /"
    if not _NAME.fullmatch(path.name):
        return "its name has other characters than letters, digits, `_`, `-` and `.`"
    try:
        real = path.resolve(strict=True)
        mode = real.stat().st_mode
    except OSError as error:
        return f"it cannot be looked at: {error.strerror}"
    if not stat.S_ISREG(mode):
        return "it is no regular file"
    if not mode & stat.S_IXUSR:
        return "it is not executable"
    for each in (real, *real.parents):
        found = _others_may_change(each)
        if found:
            return f"it is {found}" if each == real else f"{each} is {found}"
    return ""


def _others_may_change(path: Path) -> str:
    """Whoever may write to a file, or replace it in its directory, would be root here."""
    try:
        status = path.stat()
    except OSError as error:
        return f"not to be looked at: {error.strerror}"
    if status.st_uid not in (0, os.geteuid()):
        return f"owned by user {status.st_uid} and not by root"
    # In a sticky directory such as /tmp only a file's owner can replace it.
    sticky = stat.S_ISDIR(status.st_mode) and bool(status.st_mode & stat.S_ISVTX)
    return "writable by others than its owner" if status.st_mode & OTHERS_MAY_WRITE and not sticky else ""
