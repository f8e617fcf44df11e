"""The listener of the ticks: `recorder.py PORT FILE` on the client writes down each one with the time of its arrival.

The time is the kernel's, of when the packet came, on the monotonic clock: a recorder that waits for a processor says
the same. One line a tick: nanoseconds, the sender's address, the tick.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
import time

SO_TIMESTAMPNS = 35  # asm-generic/socket.h; the control message has the same number
BUFFER_BYTES = 16 << 20
SO_RCVBUFFORCE = 33


def main() -> None:
    """Record until killed."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    listener.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER_BYTES)
    listener.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    listener.bind(("0.0.0.0", int(sys.argv[1])))
    out = os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    print("recording", flush=True)
    while True:
        text, control, _, sender = listener.recvmsg(256, 64)
        # CLOCK_REALTIME may be set at any time, so it is only used for the microseconds since the arrival.
        now_ns, unix_ns = time.monotonic_ns(), time.time_ns()
        seconds, nanoseconds = struct.unpack("qq", control[0][2])
        arrived_ns = now_ns - (unix_ns - seconds * 1_000_000_000 - nanoseconds)
        os.write(out, b"%d %s %s\n" % (arrived_ns, sender[0].encode(), text))


if __name__ == "__main__":
    main()
