"""The workload of the benchmark: much random memory, a tick by UDP every few milliseconds, and one TCP connection.

Run on a lab host as `workload.py MIB OWN_ADDRESS LISTENER UDP_PORT TCP_PORT CONTENT PAGES TICK_MS`; it ends with its
TCP connection. CONTENT is `random`, or `compressible`: objects of 64 bytes, 24 of them random, as a heap has them.
PAGES are written each second, one after the other over HOT_MIB of it, with what they hold already. Every tick carries
the next number. A line on the TCP connection is answered with a checksum of the memory.
"""

import os
import socket
import struct
import sys
import time
import zlib

MIB = 1 << 20
PAGE = 4096
HOT_MIB = 16
MOST_AT_ONCE = 64  # pages
TCP_EVERY_TICKS = 8  # a number goes over the connection as well
NUMBER = struct.Struct("!Q")
FRESH_BYTES = 24
OBJECT = bytes(range(40))


def main() -> None:
    """Fill the memory, then tick until the connection ends."""
    mib, own, listener, udp_port, tcp_port, content, pages, tick_ms = sys.argv[1:]
    memory = bytearray(int(mib) * MIB)
    for start in range(0, len(memory), MIB):
        chunk = os.urandom(MIB)
        if content == "compressible":
            chunk = b"".join(OBJECT + chunk[at : at + FRESH_BYTES] for at in range(0, MIB, len(OBJECT) + FRESH_BYTES))
        memory[start : start + MIB] = chunk
    ticks = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    ticks.bind((own, 0))
    ticks.connect((listener, int(udp_port)))
    connection = socket.create_connection((listener, int(tcp_port)), source_address=(own, 0))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    number = written = 0
    hot = min(HOT_MIB, int(mib)) * MIB
    began = time.monotonic()
    while True:
        number += 1
        if int(pages):
            # After a standstill the pace goes on as if there had been none: what was not written is not made up for.
            due = int((time.monotonic() - began) * int(pages)) - written
            for _ in range(min(due, MOST_AT_ONCE)):
                place = written * PAGE % hot
                memory[place] = memory[place]
                written += 1
            written += max(0, due - MOST_AT_ONCE)
        try:
            ticks.send(NUMBER.pack(number))
        except OSError:
            pass  # a fence or a missing route: the listener sees the gap
        if number % TCP_EVERY_TICKS == 0:
            connection.sendall(b"%d\n" % number)
            try:
                asked = connection.recv(64, socket.MSG_DONTWAIT)
            except BlockingIOError:
                pass
            else:
                if not asked:
                    return
                connection.sendall(b"crc %d\n" % zlib.crc32(memory))
        time.sleep(int(tick_ms) / 1000)


main()
