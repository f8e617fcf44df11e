"""A pidfd of a process that stays behind."""
# answer: refused descriptor_kind

import os

from .life import live, stranger

number = os.pidfd_open(stranger())
live()
