"""A datagram socket of ICMP, as an unprivileged ping has it."""
# answer: refused socket_kind

import socket

from .life import live

with open("/proc/sys/net/ipv4/ping_group_range", "w") as settings:
    settings.write("0 0")
ping = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)
live()
