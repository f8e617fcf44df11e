"""The QEMU process of one virtual machine of a lab: its command line, and what is asked of it while it runs.

Called by `phaul.lab.vm_host`. Software emulation (TCG): nested virtualisation is neither needed nor used. The machine
has nothing but a processor, memory, a disk that is only read, and two network devices.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from phaul.errors import LabError
from phaul.lab.records import MachineSize
from phaul.lab.vm_image import VmImage

# All that can be emulated, but for what tells the kernel to copy by `rep movsb`: QEMU does that byte by byte, and every
# read, write and packet would take three to five times as long.
PROCESSOR = "max,-erms,-fsrm"
CODE_CACHE_MIB = 256  # of translated code
SAVE_DEADLINE_SECONDS = 60.0
POLL_SECONDS = 0.02
# Against the habits of a real machine: no mitigations to emulate, names of links as they come, 4 KiB pages, in which
# memory tracking is exact (a huge page is dirty as a whole).
KERNEL_OPTIONS = (
    "console=ttyS0 quiet loglevel=4 panic=-1 mitigations=off nokaslr random.trust_cpu=on audit=0 net.ifnames=0 "
    "transparent_hugepage=never systemd.show_status=0"
)


def command_line(
    image: VmImage,
    size: MachineSize,
    taps: Mapping[str, str],
    settings: Mapping[str, str],
    console: Path,
    monitor: Path,
    snapshot: Path,
) -> list[str]:
    """
    The command line of a machine that boots, or goes on where it was when `snapshot` was taken, if there is one.

    Args:
        taps: the devices at the other ends of the machine's links, in order, to their MACs.
        settings: what the initial file system's script reads from the kernel's command line.
        console: file for what the machine prints while it boots.
        monitor: the path of the socket for `Monitor`.
    """
    options = " ".join([KERNEL_OPTIONS, *(f"lab.{name}={value}" for name, value in settings.items())])
    argv = [
        *image.qemu,
        *("-M", "q35", "-accel", f"tcg,thread=multi,tb-size={CODE_CACHE_MIB}", "-cpu", PROCESSOR),
        *("-smp", str(size.processors), "-m", str(size.memory_mib)),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-kernel", str(image.kernel), "-initrd", str(image.initramfs), "-append", options),
        *("-serial", f"file:{console}", "-qmp", f"unix:{monitor},server=on,wait=off"),
        *("-drive", f"file={image.root},format=raw,if=none,id=root,readonly=on,file.locking=off"),
        *("-device", "virtio-blk-pci,drive=root"),
        *("-object", "rng-random,id=random,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=random"),
        *("-device", "vmgenid,guid=auto"),
    ]
    for index, (tap, mac) in enumerate(taps.items()):
        argv += ["-netdev", f"tap,id=net{index},ifname={tap},script=no,downscript=no"]
        argv += ["-device", f"virtio-net-pci,netdev=net{index},mac={mac},romfile="]
    if snapshot.exists():
        argv += ["-incoming", f"file:{snapshot}"]
    return argv


def fingerprint() -> str:
    """What a snapshot depends on beside its image and its settings."""
    return Path(__file__).read_text()


class Monitor:
    """A conversation with a running QEMU (QMP). Owns the connection until the `with` ends."""

    def __init__(self, path: Path) -> None:
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.settimeout(SAVE_DEADLINE_SECONDS)
        try:
            self._connection.connect(str(path))
        except OSError:
            self._connection.close()
            raise
        self._lines = self._connection.makefile("rb")
        self._lines.readline()  # the greeting
        self.ask("qmp_capabilities")

    @classmethod
    def wait_open(cls, path: Path, deadline: float) -> Self:
        """Connect to a QEMU that is about to listen; `deadline` is in the time of `time.monotonic`."""
        while True:
            try:
                return cls(path)
            except (FileNotFoundError, ConnectionRefusedError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(POLL_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()
        self._connection.close()

    def ask(self, command: str, **arguments: Any) -> Any:
        """Give a command and return what it answers."""
        request = {"execute": command} | ({"arguments": arguments} if arguments else {})
        self._connection.sendall(json.dumps(request).encode() + b"\n")
        while line := self._lines.readline():
            answer = json.loads(line)
            if "error" in answer:
                raise LabError(f"QEMU refused {command}.", detail=str(answer["error"].get("desc", "")))
            if "return" in answer:  # all else are events
                return answer["return"]
        raise LabError(f"QEMU ended before it had answered {command}.")

    def save(self, snapshot: Path) -> None:
        """Write down the whole machine, whose memory holds all that it has changed, and let it go on."""
        draft = snapshot.with_name(f"{snapshot.name}.{os.getpid()}")
        self.ask("stop")
        self.ask("migrate-set-parameters", **{"max-bandwidth": 8 << 30})
        self.ask("migrate", uri=f"file:{draft}")
        deadline = time.monotonic() + SAVE_DEADLINE_SECONDS
        while (status := self.ask("query-migrate").get("status")) != "completed":
            if status == "failed" or time.monotonic() > deadline:
                raise LabError("The virtual machine's state could not be saved.", detail=str(status))
            time.sleep(POLL_SECONDS)
        draft.replace(snapshot)
        self.ask("cont")

    def wait_running(self, deadline: float) -> None:
        """Wait until a machine that was made from a snapshot has been read, and let it go on."""
        while self.ask("query-status")["status"] == "inmigrate":
            if time.monotonic() > deadline:
                raise LabError("The virtual machine's state was not read in time.")
            time.sleep(POLL_SECONDS)
        self.ask("cont")
