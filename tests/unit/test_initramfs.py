"""The initial file system of a virtual machine: the archive's format, and the order in which modules load."""

from __future__ import annotations

import io
import lzma
import stat
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from phaul.lab import initramfs

DEPENDENCIES = """kernel/drivers/block/virtio_blk.ko.xz:
kernel/net/core/failover.ko.xz:
kernel/drivers/net/net_failover.ko.xz: kernel/net/core/failover.ko.xz
kernel/drivers/net/virtio_net.ko.xz: kernel/drivers/net/net_failover.ko.xz kernel/net/core/failover.ko.xz
kernel/fs/overlayfs/overlay.ko.xz:
"""


def read_archive(data: bytes) -> list[tuple[str, int, bytes]]:
    """Read back as the kernel does: a header of hexadecimal fields, a name and a content, each padded to 4 bytes."""
    found: list[tuple[str, int, bytes]] = []
    source = io.BytesIO(data)
    while True:
        head = source.read(110)
        assert head[:6] == b"070701"
        fields = [int(head[6 + 8 * index : 14 + 8 * index], 16) for index in range(13)]
        name = source.read(fields[11])
        assert name.endswith(b"\0")
        source.seek(-source.tell() % 4, io.SEEK_CUR)
        content = source.read(fields[6])
        assert len(content) == fields[6]
        source.seek(-source.tell() % 4, io.SEEK_CUR)
        if name == b"TRAILER!!!\0":
            return found
        found.append((name[:-1].decode(), fields[1], content))


names = st.text(st.characters(codec="ascii", exclude_characters="\0", min_codepoint=33), min_size=1, max_size=30)


@given(st.lists(st.tuples(names, st.just(stat.S_IFREG | 0o644), st.binary(max_size=40)), max_size=8))
def test_what_is_archived_is_read_back(entries: list[tuple[str, int, bytes]]) -> None:
    entries = [entry for entry in entries if entry[0] != "TRAILER!!!"]
    assert read_archive(initramfs.archive(entries)) == entries


def test_a_module_comes_after_what_it_needs_and_once() -> None:
    order = list(initramfs.with_dependencies(["virtio_net", "virtio_blk", "net_failover"], DEPENDENCIES))
    assert [Path(file).name for file in order] == [
        "failover.ko.xz",
        "net_failover.ko.xz",
        "virtio_net.ko.xz",
        "virtio_blk.ko.xz",
    ]


def test_a_module_that_is_built_in_is_left_out() -> None:
    assert list(initramfs.with_dependencies(["ext4"], DEPENDENCIES)) == []


def test_the_whole_is_what_the_script_expects(tmp_path: Path) -> None:
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "modules.dep").write_text(DEPENDENCIES)
    for line in DEPENDENCIES.splitlines():
        file = modules / line.partition(":")[0]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(lzma.compress(file.name.encode()))
    busybox = tmp_path / "busybox"
    busybox.write_bytes(b"program")
    found = {name: (mode, content) for name, mode, content in read_archive(initramfs.build(busybox, modules))}
    assert found["init"][0] == stat.S_IFREG | 0o755
    assert found["bin/sh"] == (stat.S_IFLNK | 0o777, b"busybox")
    order = found["modules/order"][1].decode().split()
    assert order == ["virtio_blk.ko", "failover.ko", "net_failover.ko", "virtio_net.ko", "overlay.ko"]
    assert all(found[f"modules/{name}"][1] == f"{name}.xz".encode() for name in order)
    directories = {name for name, (mode, _) in found.items() if stat.S_ISDIR(mode)}
    assert {"proc", "sys", "dev", "lower", "upper", "new"} <= directories
    for word in ("mount", "insmod", "switch_root", "sed", "cat", "ip", "mkdir", "sleep", "echo"):
        assert f"bin/{word}" in found
