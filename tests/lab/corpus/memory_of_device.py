"""Memory of a device: the ring of a packet socket."""
# answer: moves

import socket
import struct

from .life import live, mmap

sniffing = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
sniffing.setsockopt(263, 5, struct.pack("IIII", 4096, 4, 2048, 8))  # PACKET_RX_RING
mmap(4096 * 4, flags=1, descriptor=sniffing.fileno())
live()
