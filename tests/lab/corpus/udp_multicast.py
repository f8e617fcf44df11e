"""A UDP socket that has joined a group, as discovery services have it."""
# answer: refused multicast_group

import socket

from .life import live

bound = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
bound.bind(("", 5127))
bound.setsockopt(
    socket.IPPROTO_IP,
    socket.IP_ADD_MEMBERSHIP,
    socket.inet_aton("239.1.2.3") + socket.inet_aton(socket.gethostbyname(socket.gethostname())),
)
bound.settimeout(1)


def well() -> None:
    with open("/proc/net/igmp") as groups:
        assert "030201EF" in groups.read()


live(well)
