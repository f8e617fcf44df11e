"""Which CRIU this host has and what it can do here. Asked of CRIU itself, never assumed from a version alone.

Called by `criu.engine`. Probing costs a few children, so the answer is kept for the life of the agent and asked again
when the program on disk changes.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from dataclasses import dataclass

from phaul.criu.session import CriuGoneError, CriuMissingError, CriuSession
from phaul.errors import DefectError
from phaul.migration.facts import Problem
from phaul.rpc.criu import rpc_pb2
from phaul.system.process import CommandError, run

PROBE_SECONDS = 20.0  # for each question; CRIU that has not answered by then does not work here
OLDEST_CRIU = (4, 0)
INSTALL_HINT = "Install CRIU 4.2 or newer (Debian 13 has 4.1.1, Debian testing and unstable have 4.2)."

# (first kernel, oldest CRIU that works on it, why). Both seen by hand with Debian's packages.
KERNEL_NEEDS = (
    ((6, 16), (4, 2), "CRIU before 4.2 cannot dump sockets on kernel 6.16 and newer"),
    ((6, 13), (4, 1), "CRIU before 4.1 does not know the vDSO of kernel 6.13 and newer"),
)


@dataclass(frozen=True, slots=True)
class CriuFeatures:
    """What a probe found. `version` is (major, minor, sublevel), zeros where there is none that runs."""

    path: str
    version: tuple[int, int, int]
    features: tuple[str, ...]
    problems: tuple[Problem, ...]

    @property
    def version_text(self) -> str:
        """The version as people write it, "" where there is none."""
        major, minor, sublevel = self.version
        if not major:
            return ""
        return f"{major}.{minor}.{sublevel}" if sublevel else f"{major}.{minor}"


def kernel_version(release: str) -> tuple[int, int]:
    """Give major and minor of a `uname -r`, (0, 0) where it has none."""
    match = re.match(r"(\d+)\.(\d+)", release)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def version_problems(version: tuple[int, int, int], kernel_release: str) -> tuple[Problem, ...]:
    """Say whether this CRIU is known not to work on this kernel."""
    text = ".".join(str(part) for part in version)
    if version[:2] < OLDEST_CRIU:
        needed = ".".join(str(part) for part in OLDEST_CRIU)
        return (Problem("criu_too_old", f"CRIU {text} is older than {needed}", INSTALL_HINT),)
    for kernel, criu, why in KERNEL_NEEDS:
        if kernel_version(kernel_release) >= kernel and version[:2] < criu:
            message = f"CRIU {text} is too old for kernel {kernel_release}: {why}"
            return (Problem("criu_too_old", message, INSTALL_HINT),)
    return ()


async def probe(criu: str) -> CriuFeatures:
    """Find CRIU and ask it what it can do on this kernel. Never raises: what is wrong stands in `problems`."""
    path = shutil.which(criu)
    if path is None:
        problem = Problem("criu_missing", f"there is no CRIU on this host (`{criu}` is not in PATH)", INSTALL_HINT)
        return CriuFeatures("", (0, 0, 0), (), (problem,))
    try:
        version, features = await _ask(path)
    except (CriuGoneError, CriuMissingError, DefectError, TimeoutError) as error:
        why = str(error) or f"it did not answer within {PROBE_SECONDS:g} s"
        problem = Problem("criu_unusable", f"{path} does not work on this kernel: {why}", INSTALL_HINT)
        return CriuFeatures(path, (0, 0, 0), (), (problem,))
    if await _check(path, "network_lock_nftables"):
        features.append("network_lock_nftables")
    problems = list(version_problems(version, os.uname().release))
    if not problems and not await _check(path):
        hint = "Run `criu check` as root and read what it says; " + INSTALL_HINT
        problems.append(Problem("criu_unusable", f"`{path} check` says that CRIU cannot work on this kernel", hint))
    return CriuFeatures(path, version, tuple(sorted(features)), tuple(problems))


async def _ask(path: str) -> tuple[tuple[int, int, int], list[str]]:
    async with asyncio.timeout(PROBE_SECONDS), await CriuSession.start(path) as session:
        reply = await session.request(rpc_pb2.Request(type=rpc_pb2.VERSION, keep_open=True))
        version = (reply.version.major_number, reply.version.minor_number, reply.version.sublevel)
        wanted = rpc_pb2.Features(mem_track=True, lazy_pages=True, pidfd_store=True)
        reply = await session.request(rpc_pb2.Request(type=rpc_pb2.FEATURE_CHECK, features=wanted))
        return version, [name for name in ("mem_track", "lazy_pages", "pidfd_store") if getattr(reply.features, name)]


async def _check(path: str, feature: str = "") -> bool:
    arguments = ["--feature", feature] if feature else []
    try:
        done = await run([path, "check", *arguments], check=False, timeout_seconds=PROBE_SECONDS)
    except CommandError:
        return False
    return done.exit_status == 0
