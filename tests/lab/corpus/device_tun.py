"""A tunnel, as VPNs have it."""
# answer: refused device

import fcntl
import os
import struct

from .life import live

number = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(number, 0x400454CA, struct.pack("16sH", b"corpus0", 0x1001))  # TUNSETIFF: IFF_TUN | IFF_NO_PI
live()
