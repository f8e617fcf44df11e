"""The initial file system of a lab's virtual machine: a busybox, a few kernel modules, a script that mounts the root.

Called by `phaul.lab.vm_image`. Pure but for reading the modules: gives the bytes of a cpio archive ("newc", as the
kernel's Documentation/driver-api/early-userspace/buffer-format.rst has it).
"""

from __future__ import annotations

import lzma
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

MODULES = ("virtio_blk", "virtio_net", "overlay")
APPLETS = ("sh", "mount", "mknod", "insmod", "switch_root", "ip", "mkdir", "sleep")
DIRECTORIES = ("bin", "dev", "proc", "sys", "modules", "lower", "upper", "new")
_MAGIC = b"070701"
_TRAILER = "TRAILER!!!"

# The kernel's command line says lab.NAME=VALUE: name, number (the last of each address), id, pid, client's number.
INIT = r"""#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
for module in $(cat /modules/order); do insmod /modules/$module; done
for word in $(cat /proc/cmdline); do
    case $word in lab.*) value=${word#*=}; word=${word%%=*}; eval "${word#lab.}=\$value" ;; esac
done
while [ ! -b /dev/vda ]; do sleep 0.02; done
mount -t ext4 -o ro,noload /dev/vda /lower
mount -t tmpfs -o mode=0755,size=80% disk /upper
mkdir /upper/upper /upper/work
# A character device 0:0 hides what is below it (the kernel's Documentation/filesystems/overlayfs.rst).
for path in $(echo $hidden | sed 's/,/ /g'); do
    mkdir -p /upper/upper${path%/*}
    mknod /upper/upper$path c 0 0
done
mount -t overlay -o lowerdir=/lower,upperdir=/upper/upper,workdir=/upper/work root /new

echo $name >/proc/sys/kernel/hostname
echo $name >/new/etc/hostname
echo $id >/new/etc/machine-id
echo "127.0.0.1 localhost
::1 localhost ip6-localhost ip6-loopback" >/new/etc/hosts
for entry in $(echo $hosts | sed 's/,/ /g'); do
    echo "$network4.${entry#*:} ${entry%:*}
$network6::${entry#*:} ${entry%:*}" >>/new/etc/hosts
done
# An IPv6 address must be usable at once, without the second that duplicate address detection takes.
echo 0 >/proc/sys/net/ipv6/conf/all/accept_dad
echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad
for link in eth0 eth1; do echo 0 >/proc/sys/net/ipv6/conf/$link/accept_dad; done
ip link set lo up
ip addr add $network4.$number/24 broadcast + dev eth0
ip addr add $network6::$number/64 dev eth0
ip link set eth0 up
ip addr add $management.$number/24 dev eth1
ip link set eth1 up

mount -o move /proc /new/proc
mount -o move /sys /new/sys
mount -o move /dev /new/dev
echo $((pid - 1)) >/new/proc/sys/kernel/ns_last_pid
exec switch_root /new /sbin/init
"""


def build(busybox: Path, modules: Path) -> bytes:
    """
    Make the archive.

    Args:
        busybox: a statically linked one.
        modules: the directory /usr/lib/modules/VERSION, with the `modules.dep` that depmod has made.
    """
    entries: list[tuple[str, int, bytes]] = [(name, stat.S_IFDIR | 0o755, b"") for name in DIRECTORIES]
    entries.append(("bin/busybox", stat.S_IFREG | 0o755, busybox.read_bytes()))
    entries += [(f"bin/{name}", stat.S_IFLNK | 0o777, b"busybox") for name in (*APPLETS, "cat", "sed", "echo")]
    order = list(with_dependencies(MODULES, (modules / "modules.dep").read_text()))
    entries += [(f"modules/{_plain(file)}", stat.S_IFREG | 0o644, _content(modules / file)) for file in order]
    names = "\n".join(map(_plain, order))
    entries.append(("modules/order", stat.S_IFREG | 0o644, f"{names}\n".encode()))
    entries.append(("init", stat.S_IFREG | 0o755, INIT.encode()))
    return archive(entries)


def with_dependencies(wanted: Iterable[str], listing: str) -> Iterator[str]:
    """Give the files of modules in the order in which they can be loaded; what is built in has no file."""
    files: dict[str, tuple[str, list[str]]] = {}
    for line in listing.splitlines():
        path, _, rest = line.partition(":")
        # modules.dep lists what a module needs with the most basic last (depmod(8)).
        files[_module_name(path)] = (path, rest.split()[::-1])
    given: set[str] = set()
    for name in wanted:
        file, needs = files.get(name, ("", []))
        for each in (*needs, file):
            if each and each not in given:
                given.add(each)
                yield each


def archive(entries: Iterable[tuple[str, int, bytes]]) -> bytes:
    """Give the bytes of a cpio archive of (name, mode, content or target)."""
    parts: list[bytes] = []
    for number, (name, mode, data) in enumerate([*entries, (_TRAILER, 0, b"")], start=1):
        path = name.encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(path), 0)
        head = _MAGIC + b"".join(b"%08x" % field for field in fields) + path
        parts += [_padded(head), _padded(data)]
    return b"".join(parts)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)


def _module_name(file: str) -> str:
    return _plain(file).partition(".ko")[0].replace("-", "_")


def _plain(file: str) -> str:
    return Path(file).name.removesuffix(".xz")


def _content(file: Path) -> bytes:
    data = file.read_bytes()
    return lzma.decompress(data) if file.suffix == ".xz" else data
