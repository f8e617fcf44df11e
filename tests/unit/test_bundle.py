"""What is copied to a host: complete, runnable where it is unpacked, and named after its content."""

from __future__ import annotations

import io
import json
import os
import py_compile
import subprocess
import sys
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import phaul
from phaul.errors import InstallError
from phaul.install import bundle, registry
from phaul.install.bundle import Bundle, Platform, installed_here
from phaul.install.inventory import AddedHost, Inventory

HOST_SECONDS = 120


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The environment, as it is on a host after the copy."""
    root = tmp_path_factory.mktemp("host")
    data = installed_here().archive(f"{root}/home", os.path.realpath(sys.executable))
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        tar.extractall("/", filter="fully_trusted", members=tar.getmembers())
    return root / "home"


def test_it_runs_where_it_is_unpacked_and_sees_nothing_of_here(unpacked: Path) -> None:
    code = """
import importlib.metadata, json, sys
import phaul.agent.server, phaul.cli.main, phaul.install.ssh, phaul.lab.cluster
files = [getattr(each, "__file__", None) or "" for each in sys.modules.values()]
outside = [file for file in files if "site-packages" in file]
print(json.dumps([phaul.__file__, sorted({path.split("site-packages")[0] for path in outside}), phaul.errors.__cached__,
    importlib.metadata.requires("phaul")]))
"""
    done = subprocess.run(
        [unpacked / "bin/python", "-B", "-c", code],
        capture_output=True, text=True, check=True, timeout=HOST_SECONDS, cwd="/", env={"PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    file, places, cached, needs = json.loads(done.stdout)
    assert file.startswith(str(unpacked))
    assert [Path(place).is_relative_to(unpacked) for place in places] == [True]
    assert Path(cached).is_file()
    assert needs == list(bundle.requirements())


def test_the_program_runs(unpacked: Path) -> None:
    done = subprocess.run(
        [unpacked / "bin/phaul", "--version"], capture_output=True, text=True, check=True, timeout=HOST_SECONDS
    )
    assert done.stdout == f"phaul {phaul.__version__}\n"


def test_every_module_comes_compiled(unpacked: Path) -> None:
    (packages,) = unpacked.glob("lib/python3.*/site-packages")
    modules = list((packages / "phaul").rglob("*.py"))
    compiled = [each for each in modules if list((each.parent / "__pycache__").glob(f"{each.stem}.cpython-*.pyc"))]
    assert len(modules) == len(compiled) > 150


def test_a_compiled_module_of_another_source_is_not_taken(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text("value = 1\n")
    py_compile.compile(str(module))
    assert bundle._kept(module)
    module.write_text("value = 22\n")
    assert bundle._kept(module) == b""


def test_the_name_changes_with_the_content(tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.write_text("a = 1")
    made = Bundle(Platform((3, 13), "x86_64", (2, 41)), {"a.py": file}, "")
    before = made.key
    assert made.key == before
    file.write_text("a = 2")
    assert made.key != before
    assert Bundle(Platform((3, 12), "x86_64", (2, 41)), {"a.py": file}, "").key != made.key


def test_tags_are_those_of_glibc_and_older() -> None:
    assert registry.tags(Platform((3, 13), "aarch64", (2, 19))) == [
        "manylinux_2_19_aarch64",
        "manylinux_2_18_aarch64",
        "manylinux_2_17_aarch64",
        "manylinux2014_aarch64",
    ]


def test_without_pip_it_is_said_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    with pytest.raises(InstallError, match=r"could not be fetched for Python 3\.99 on x86_64") as failure:
        registry.bundle_for(Platform((3, 99), "x86_64", (2, 41)), tmp_path)
    assert "pip must be installed here" in failure.value.hint


def test_added_hosts_are_kept(tmp_path: Path) -> None:
    inventory = Inventory(tmp_path)
    host = AddedHost("b", "root@b", 7428, ("10.0.0.2",), "1.0")
    inventory.put(host)
    assert Inventory(tmp_path).hosts() == {"b": host}
    assert inventory.find("root@b") == host
    inventory.drop("b")
    assert inventory.hosts() == {}


def test_no_host_is_forgotten_where_several_are_added_at_once(tmp_path: Path) -> None:
    names = [f"host{number}" for number in range(16)]
    at_once = threading.Barrier(len(names))

    def put(name: str) -> None:
        at_once.wait(30)
        Inventory(tmp_path).put(AddedHost(name, f"root@{name}", 7428))

    with ThreadPoolExecutor(len(names)) as adding:
        list(adding.map(put, names))
    assert sorted(Inventory(tmp_path).hosts()) == sorted(names)
