"""An eventfd that counts one by one."""
# answer: refused descriptor_kind

import os

from .life import live

number = os.eventfd(1000000, os.EFD_SEMAPHORE)


def well() -> None:
    assert os.eventfd_read(number) == 1


live(well)
