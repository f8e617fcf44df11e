"""The kernel's hypervisor."""
# answer: refused device
# both: mknod -m 600 /dev/kvm c 10 232

import os

from .life import live

number = os.open("/dev/kvm", os.O_RDWR)
live()
