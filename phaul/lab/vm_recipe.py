"""What the lab's virtual machines are made of, beyond the Debian that the namespace hosts have, and the key to that.

Called by `phaul.lab.vm_image`. Text only, like `phaul.lab.recipe`.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from phaul.lab import recipe

# QEMU 10: that of Debian 12 (7.2) panics guests with `-cpu max` and is three times slower. The cloud kernel has
# soft-dirty tracking and virtio. Unpacked, never installed, and run with the ld.so and the libraries beside it.
TOOL_SUITE = "trixie"
TOOLS = ("busybox-static", "linux-image-cloud-amd64", "qemu-system-x86", "seabios")
PACKAGES = ("dbus", "kmod", "openssh-server", "systemd-sysv", "udev")

# What a machine without disks, consoles and people does not need; starting it under emulation takes its time.
MASKED_UNITS = (
    "apt-daily-upgrade.timer",
    "apt-daily.timer",
    "console-getty.service",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "getty.target",
    "kmod-static-nodes.service",
    "ldconfig.service",
    "modprobe@.service",
    "proc-sys-fs-binfmt_misc.automount",
    "redis-server.service",
    "serial-getty@.service",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "systemd-binfmt.service",
    "systemd-firstboot.service",
    "systemd-hwdb-update.service",
    "systemd-journal-catalog-update.service",
    "systemd-journal-flush.service",
    "systemd-logind.service",
    "systemd-machine-id-commit.service",
    "systemd-random-seed.service",
    "systemd-remount-fs.service",
    "systemd-sysusers.service",
    "systemd-timesyncd.service",
    "systemd-tmpfiles-clean.timer",
    "systemd-udev-settle.service",
    "systemd-udev-trigger.service",
    "systemd-udevd-control.socket",
    "systemd-udevd-kernel.socket",
    "systemd-udevd.service",
    "systemd-update-done.service",
    "systemd-update-utmp.service",
)

# Apart from phaul's own directory, which a bare machine does not have.
GUEST_PROGRAM = "/usr/local/lib/lab/guest.py"
# A Debian repository in the machine: no machine of the lab has a way out. A bare one has no other.
REPOSITORY = "/usr/local/lib/lab/debian"
REPOSITORY_PACKAGES = ("criu",)
GUEST_UNIT = "lab-guest.service"
AGENT_UNIT = "phaul-agent.service"
WORKLOADS_UNIT = "phaul-workloads.service"
AGENT_ENVIRONMENT = "/etc/phaul/agent.env"

# Loaded before they are needed: CRIU asks for the first ones when it looks at sockets; the others are for phaul's fence
# and for tests.
MODULES = (
    *("af_packet_diag", "inet_diag", "netlink_diag", "tcp_diag", "udp_diag", "unix_diag"),
    *("nf_tables", "nft_ct", "nft_masq", "nf_conntrack", "tun", "veth", "sch_htb", "cls_u32"),
)
# Run once before a machine's snapshot is taken, so that their pages are in its memory, and CRIU's probe of the kernel.
WARM_UP = (
    ("systemctl", "is-system-running", "--wait"),
    (f"{recipe.VENV}/bin/python", "-c", "import grpc.aio, grpc_health.v1.health, grpc_reflection.v1alpha.reflection"),
    (f"{recipe.VENV}/bin/python", "-c", "import pydantic_settings, pyroute2, structlog, typer, rich.table, xxhash"),
    ("criu", "check", "--feature", "mem_dirty_track"),
    ("sh", "-c", "nft list ruleset; iptables-save; ip6tables-save; ip address; ss -tan; redis-server --version"),
    ("sh", "-c", "systemd-run --wait true; systemd-run --scope true; busctl --system status"),
)

# And on a bare machine: what `phaul host add` is to bring, is not there.
WARM_UP_BARE = (
    ("systemctl", "is-system-running", "--wait"),
    ("dpkg", "--purge", "--force-depends", *REPOSITORY_PACKAGES),
    ("sh", "-c", f"rm -r /etc/apt/sources.list*; echo 'deb [trusted=yes] file:{REPOSITORY} ./' >/etc/apt/sources.list"),
    ("python3", "-c", "import asyncio, ssl, http.client, json, typing, dataclasses"),
    ("sh", "-c", "systemd-run --wait true; busctl --system status"),
)

_GUEST_SERVICE = f"""[Unit]
Description=Commands from whoever holds this machine
DefaultDependencies=no

[Service]
ExecStart=/usr/bin/python3 -I -S {GUEST_PROGRAM}
KillMode=process
OOMScoreAdjust=-1000

[Install]
WantedBy=basic.target
"""

_SSHD = """PermitRootLogin prohibit-password
PrintMotd no
UseDNS no
UsePAM no
"""

_LAUNCHER = f"""#!{recipe.VENV}/bin/python
import sys

from phaul.cli.main import main

sys.exit(main())
"""

AGENT_SETTINGS = "PHAUL_LISTEN=[::]:7428\n"


def files() -> dict[str, str]:
    """What is written into the root file system: path to content."""
    return {
        "etc/fstab": "",
        AGENT_ENVIRONMENT.lstrip("/"): AGENT_SETTINGS,
        "etc/modules-load.d/lab.conf": "\n".join(MODULES) + "\n",
        "etc/ssh/sshd_config.d/lab.conf": _SSHD,
        f"etc/systemd/system/{GUEST_UNIT}": _GUEST_SERVICE,
        "etc/systemd/system.conf.d/lab.conf": "[Manager]\nDefaultTimeoutStopSec=20s\n",
        GUEST_PROGRAM.lstrip("/"): _source("guest.py"),
        "usr/local/bin/phaul": _LAUNCHER,
    }


def links() -> dict[str, str]:
    """The symbolic links in the root file system: path to target."""
    system = "etc/systemd/system"
    return {
        **{f"{system}/{unit}": "/dev/null" for unit in MASKED_UNITS},
        f"{system}/basic.target.wants/{GUEST_UNIT}": f"../{GUEST_UNIT}",
        f"{system}/default.target": "/usr/lib/systemd/system/multi-user.target",
        # Nothing is there until phaul is copied into the running machine; systemd looks when it is asked.
        **{f"{system}/{unit}": f"{recipe.SOURCE}/phaul/systemd/{unit}" for unit in (AGENT_UNIT, WORKLOADS_UNIT)},
    }


# What a bare machine does not have.
HIDDEN_WHEN_BARE = (
    "/opt/phaul",
    "/etc/phaul",
    "/usr/local/bin/phaul",
    *(f"/etc/systemd/system/{unit}" for unit in (AGENT_UNIT, WORKLOADS_UNIT)),
)


def key(base: str) -> str:
    """The name of the directory of what is made on top of the image `base`."""
    builders = (_source("vm_image.py"), _source("initramfs.py"))
    packages = (*TOOLS, *PACKAGES, *REPOSITORY_PACKAGES)
    parts = (base, TOOL_SUITE, *packages, *sorted((files() | links()).items()), *builders)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _source(name: str) -> str:
    return Path(__file__).with_name(name).read_text()
