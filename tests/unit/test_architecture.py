"""Rules of docs/design/architecture.md that imports alone do not show; the others are import-linter's contracts."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# And phaul/lab. The loader is a program of its own, and forks its twin.
STARTS_CHILDREN = {"phaul/system/process.py", "phaul/criu/session.py", "phaul/criu/loader.py"}
CHILD_STARTERS = {
    "asyncio.create_subprocess_exec",
    "asyncio.create_subprocess_shell",
    "asyncio.subprocess.create_subprocess_exec",
    "asyncio.subprocess.create_subprocess_shell",
    "os.execv",
    "os.execve",
    "os.execvp",
    "os.execvpe",
    "os.fork",
    "os.forkpty",
    "os.popen",
    "os.posix_spawn",
    "os.posix_spawnp",
    "os.spawnv",
    "os.spawnvp",
    "os.system",
    "pty.fork",
    "pty.spawn",
}
CHILD_MODULES = {"subprocess", "multiprocessing", "pty"}
CHILD_METHODS = {"subprocess_exec", "subprocess_shell"}  # of an event loop

CONCRETE_DRIVERS = {"CriuEngine", "HostNetwork", "ProcessWorkload", "MemoryRooms", "MonotonicClock"}
WIRING = "phaul/agent/wiring.py"

# What a decision may not do is in these: it gets the world through migration/interfaces.py.
WORLD_MODULES = {
    "ctypes",
    "fcntl",
    "io",
    "os",
    "select",
    "shutil",
    "signal",
    "socket",
    "subprocess",
    "tempfile",
    "time",
}


def sources() -> Iterator[tuple[str, ast.Module]]:
    """Every file of ours below phaul/, by its path from the root."""
    for path in sorted((ROOT / "phaul").rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        if not name.startswith("phaul/rpc/"):
            yield name, ast.parse(path.read_text(), name)


def imported(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every module that a file imports, also as `from MODULE import NAME`, with the line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or "", node.lineno


def dotted(node: ast.AST) -> str:
    """`a.b.c` of an attribute of a plain name, else ""."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        before = dotted(node.value)
        return f"{before}.{node.attr}" if before else ""
    return ""


def children_started(name: str, tree: ast.AST) -> list[str]:
    """The places in a file that start a child process, or could."""
    found = [f"{name}:{line}: imports {module}" for module, line in imported(tree) if module in CHILD_MODULES]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if f"{node.module}.{alias.name}" in CHILD_STARTERS:
                    found.append(f"{name}:{node.lineno}: imports {node.module}.{alias.name}")
        elif isinstance(node, ast.Attribute) and (dotted(node) in CHILD_STARTERS or node.attr in CHILD_METHODS):
            found.append(f"{name}:{node.lineno}: {dotted(node) or node.attr}")
        elif isinstance(node, ast.keyword) and node.arg == "preexec_fn":
            found.append(f"{name}:{node.value.lineno}: preexec_fn")
    return found


def test_children_are_started_in_one_place() -> None:
    found: list[str] = []
    for name, tree in sources():
        if name not in STARTS_CHILDREN and not name.startswith("phaul/lab/"):
            found += children_started(name, tree)
    assert not found, "a child process may be started only in " + ", ".join(sorted(STARTS_CHILDREN))


@pytest.mark.parametrize(
    "code",
    [
        "import subprocess",
        "from subprocess import Popen",
        "from asyncio import create_subprocess_exec",
        "import asyncio\nasyncio.create_subprocess_shell('true')",
        "import os\nos.fork()",
        "from os import posix_spawn",
        "loop.subprocess_exec(make, 'true')",
        "run(preexec_fn=print)",
    ],
)
def test_a_child_started_elsewhere_is_seen(code: str) -> None:
    assert children_started("x.py", ast.parse(code))


def test_only_wiring_names_concrete_drivers() -> None:
    found: list[str] = []
    for name, tree in sources():
        for node in ast.walk(tree):
            names: set[str] = set()
            if isinstance(node, ast.ImportFrom):
                names = {alias.name for alias in node.names}
            elif isinstance(node, ast.Attribute):
                names = {node.attr}
            elif isinstance(node, ast.Name):
                names = {node.id}
            if names & CONCRETE_DRIVERS and name != WIRING:
                found += [f"{name}:{node.lineno}: {', '.join(names & CONCRETE_DRIVERS)}"]  # type: ignore[attr-defined]
    assert not found, f"only {WIRING} may name a driver"


def test_decisions_import_the_standard_library_and_no_world() -> None:
    found: list[str] = []
    for name, tree in sources():
        if not name.startswith("phaul/migration/"):
            continue
        for module, line in imported(tree):
            top = module.split(".")[0]
            ours = module == "phaul.migration" or module.startswith(("phaul.migration.", "phaul.errors", "phaul.units"))
            if not ours and (top not in sys.stdlib_module_names or top in WORLD_MODULES):
                found.append(f"{name}:{line}: {module}")
    assert not found, "phaul/migration imports only phaul.errors, phaul.units and what touches nothing"


def test_every_module_says_what_it_is_for() -> None:
    found = [name for name, tree in sources() if tree.body and not ast.get_docstring(tree)]
    assert not found, "a module docstring says what it is for, who calls it and what it never does"
