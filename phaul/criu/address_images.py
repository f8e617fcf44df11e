"""The image that holds the addresses of a network namespace: what ``ip address save`` wrote (criu/net.c, 4.2.1).

Called by `criu.engine` before a restore. Duplicate address detection would take a second in which an IPv6 address of
the copy answers nobody (RFC 4862, section 5.4), and finds nothing: the address is that of the same workload.
"""

from __future__ import annotations

import socket
import struct
from pathlib import Path

from phaul.errors import RestoreError

MAGIC = 0x47361222  # of `ip address save` (iproute2, ip/ipaddress.c)
RTM_NEWADDR = 20  # linux/rtnetlink.h
IFA_FLAGS = 8  # linux/if_addr.h; the byte in the header has no room for all of them, but for this one
IFA_F_NODAD = 0x02
HEADER = struct.Struct("=IHHII")  # nlmsghdr
ADDRESS = struct.Struct("=BBBBI")  # ifaddrmsg


def usable_at_once(images: Path) -> None:
    """Have each IPv6 address be restored without duplicate address detection. Again is no harm."""
    for path in images.glob("ifaddr-*.img"):
        path.write_bytes(without_detection(path.read_bytes()))


def without_detection(image: bytes) -> bytes:
    """Set IFA_F_NODAD in every IPv6 address. Raises `RestoreError` where this is no such image."""
    if not image:
        return image
    if len(image) < 4 or struct.unpack_from("=I", image)[0] != MAGIC:
        raise RestoreError("the image of the workload's addresses is not of `ip address save`")
    data = bytearray(image)
    at = 4
    while at + HEADER.size + ADDRESS.size <= len(data):
        length, kind, *_ = HEADER.unpack_from(data, at)
        family, _, flags, _, _ = ADDRESS.unpack_from(data, at + HEADER.size)
        if kind == RTM_NEWADDR and family == socket.AF_INET6:
            data[at + HEADER.size + 2] = flags | IFA_F_NODAD
            _set_flags(data, at + HEADER.size + ADDRESS.size, at + length)
        at += max(length + 3 & ~3, HEADER.size)
    return bytes(data)


def _set_flags(data: bytearray, at: int, end: int) -> None:
    while at + 4 <= end:
        length, kind = struct.unpack_from("=HH", data, at)
        if length < 4:
            return
        if kind == IFA_FLAGS:
            (flags,) = struct.unpack_from("=I", data, at + 4)
            struct.pack_into("=I", data, at + 4, flags | IFA_F_NODAD)
        at += length + 3 & ~3
