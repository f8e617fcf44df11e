"""What passes the client's device: `capture.py DEVICE FILE ADDRESS...` notes resets, claims of addresses, and silences.

Runs on the client until it is killed. Every frame is looked at with the kernel's own time of its arrival, and a line is
written for what matters: `rst` and `fin` with both ends (and the MAC of who says that it ends), `claim` with who says
that it has an address, and `gap` with its beginning and end where an address was silent for longer than 10 ms. Times
are nanoseconds of the monotonic clock.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
import sys
import time

SO_TIMESTAMPNS = 35  # asm-generic/socket.h; the control message has the same number
SO_RCVBUFFORCE = 33
SOL_PACKET, PACKET_STATISTICS = 263, 6  # linux/if_packet.h
ETH_P_ALL = 3
BUFFER_BYTES = 32 << 20
HEAD_BYTES = 118
QUIET_NS = 10_000_000
FIN, RST = 0x01, 0x04
TCP, ICMPV6, ADVERTISEMENT = 6, 58, 136


def main() -> None:
    """Capture until killed."""
    device, path, *addresses = sys.argv[1:]
    watched = {ipaddress.ip_address(each).packed for each in addresses}
    last: dict[bytes, int] = {}
    raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    raw.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER_BYTES)
    raw.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    raw.bind((device, 0))
    out = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    offset_ns = time.time_ns() - time.monotonic_ns()
    print("capturing", flush=True)
    while True:
        frame, control, _, _ = raw.recvmsg(HEAD_BYTES, 64)
        kind = frame[12:14]
        mac = frame[6:12].hex(":")
        line = ""
        if kind == b"\x08\x06":
            if any(frame[28:32]):
                line = f"claim {ipaddress.ip_address(frame[28:32])} {mac}"
        elif kind == b"\x08\x00":
            source, destination, protocol, at = frame[26:30], frame[30:34], frame[23], 14 + (frame[14] & 15) * 4
        elif kind == b"\x86\xdd":
            source, destination, protocol, at = frame[22:38], frame[38:54], frame[20], 54
            if protocol == ICMPV6 and frame[at] == ADVERTISEMENT:
                line = f"claim {ipaddress.ip_address(frame[at + 8 : at + 24])} {mac}"
        else:
            continue
        seconds, nanoseconds = struct.unpack("qq", control[0][2])
        now_ns = seconds * 1_000_000_000 + nanoseconds - offset_ns
        if kind != b"\x08\x06":
            is_watched = protocol == TCP and len(frame) > at + 13 and bool({source, destination} & watched)
            flags = frame[at + 13] if is_watched else 0
            if flags & (FIN | RST):
                ends = [ipaddress.ip_address(each) for each in (source, destination)]
                line = f"rst {ends[0]} {ends[1]}" if flags & RST else f"fin {ends[0]} {ends[1]} {mac}"
            if source in watched:
                before_ns = last.get(source, now_ns)
                last[source] = now_ns
                if now_ns - before_ns > QUIET_NS:
                    os.write(out, b"gap %s %d %d\n" % (str(ipaddress.ip_address(source)).encode(), before_ns, now_ns))
        if line:
            os.write(out, f"{line} {now_ns}\n".encode())


if __name__ == "__main__":
    main()
