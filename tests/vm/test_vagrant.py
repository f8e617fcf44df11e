"""The Vagrantfile: as well formed as what is installed here can tell. What it runs is run in `test_install`."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from phaul.lab import network

from .bare import ROOT

VAGRANT = ROOT / "vagrant"
SECONDS = 120


def test_vagrant_takes_the_file() -> None:
    if shutil.which("vagrant"):
        argv = ["vagrant", "validate", "--ignore-provider"]
    elif shutil.which("ruby"):
        argv = ["ruby", "-c", "Vagrantfile"]
    else:
        pytest.skip("neither Vagrant nor Ruby is installed on this machine")
    done = subprocess.run(argv, cwd=VAGRANT, capture_output=True, text=True, check=False, timeout=SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr


def test_its_machines_are_those_of_the_lab() -> None:
    text = (VAGRANT / "Vagrantfile").read_text()
    machines = dict(re.findall(r'"(\w+)" => "([\d.]+)"', text))
    assert machines == {host.name: host.ip4 for host in network.describe(("a", "b"), "client")}


def test_what_it_runs_is_there_and_parses() -> None:
    named = set(re.findall(r'"(\w+\.sh)"', (VAGRANT / "Vagrantfile").read_text()))
    assert named == {"machine.sh", "provision.sh"}
    for name in named:
        subprocess.run(["/bin/sh", "-n", VAGRANT / name], check=True, timeout=SECONDS)
