"""The Vagrantfile, as Vagrant itself sees it. What it runs is run in `test_install`."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from phaul.lab import network

from . import vagrant_root
from .bare import ROOT
from .conftest import LONG_VARIABLE

VAGRANT = ROOT / "vagrant"
SECONDS = 120


def validate(source: Path) -> subprocess.CompletedProcess[str]:
    """What Vagrant says of the Vagrantfile in a directory, without any of the programs that make machines."""
    argv = ["vagrant", "validate", "--ignore-provider"]
    if not shutil.which("vagrant"):
        root = vagrant_root.ensure() if os.environ.get(LONG_VARIABLE) else vagrant_root.find()
        if root is None:
            pytest.skip("no Vagrant here: `make test-long` gets a Debian that has it, and keeps it")
        argv = vagrant_root.inside(root, source, *argv)
    return subprocess.run(argv, cwd=source, capture_output=True, text=True, check=False, timeout=SECONDS)


def test_vagrant_takes_the_file() -> None:
    done = validate(VAGRANT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Vagrantfile validated successfully." in done.stdout


def test_vagrant_sees_a_mistake(tmp_path: Path) -> None:
    shutil.copytree(VAGRANT, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "Vagrantfile"
    text = file.read_text()
    file.write_text(text.replace('"provision.sh"', '"provisoin.sh"'))
    assert file.read_text() != text
    done = validate(tmp_path)
    assert done.returncode != 0
    assert "provisoin.sh" in done.stdout + done.stderr


def test_its_machines_are_those_of_the_lab() -> None:
    text = (VAGRANT / "Vagrantfile").read_text()
    machines = dict(re.findall(r'"(\w+)" => "([\d.]+)"', text))
    assert machines == {host.name: host.ip4 for host in network.describe(("a", "b"), "client")}


def test_what_it_runs_is_there_and_parses() -> None:
    named = set(re.findall(r'"(\w+\.sh)"', (VAGRANT / "Vagrantfile").read_text()))
    assert named == {"machine.sh", "provision.sh"}
    for name in named:
        subprocess.run(["/bin/sh", "-n", VAGRANT / name], check=True, timeout=SECONDS)
