"""What stands in phaul/rpc is what proto/ says."""

from __future__ import annotations

from pathlib import Path

from tests.generate_stubs import ROOT, generate


def contents(directory: Path) -> dict[str, str]:
    """Every file of a package by its relative path, caches left out."""
    return {
        path.relative_to(directory).as_posix(): path.read_text()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_stubs_are_those_of_the_protocol(tmp_path: Path) -> None:
    generate(tmp_path)
    made, kept = contents(tmp_path / "phaul/rpc"), contents(ROOT / "phaul/rpc")
    assert made.keys() == kept.keys(), "run `make proto`"
    assert [name for name in made if made[name] != kept[name]] == [], "these differ: run `make proto`"
