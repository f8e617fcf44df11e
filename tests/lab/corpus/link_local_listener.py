"""A listener on an address that is good on one link only."""
# answer: refused connection_address_missing

import socket

from .life import live

index = socket.if_nametoindex("eth0")
with open("/proc/net/if_inet6") as addresses:
    packed = next(line.split()[0] for line in addresses if line.startswith("fe80") and "eth0" in line)
address = socket.inet_ntop(socket.AF_INET6, bytes.fromhex(packed))
listener = socket.socket(socket.AF_INET6)
listener.bind((address, 5130, 0, index))
listener.listen()
live()
