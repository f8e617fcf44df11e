"""A pidfd of a thread."""
# answer: refused descriptor_kind

import threading

from .life import live, sleep_on, syscall

thread = threading.Thread(target=sleep_on)
thread.start()
syscall(434, thread.native_id, 0o200)  # PIDFD_THREAD
live()
