"""The linters, run as tests: what they say is the failure's message. Their rules stand in pyproject.toml."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = Path(sys.executable).parent


def lint(program: str, *arguments: str) -> None:
    """Run one linter over the whole checkout and fail with its output where it finds anything."""
    done = subprocess.run(
        [PROGRAMS / program, *arguments],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        pytest.fail(f"`{program} {' '.join(arguments)}` says:\n{done.stdout}", pytrace=False)


def test_ruff_finds_nothing() -> None:
    lint("ruff", "check", "--output-format", "concise", ".")


def test_the_code_is_formatted() -> None:
    lint("ruff", "format", "--check", ".")


def test_mypy_finds_nothing() -> None:
    lint("mypy")


def test_imports_go_one_way() -> None:
    lint("lint-imports", "--no-cache", "--no-logo")
