"""A performance counter."""
# answer: refused descriptor_kind

import ctypes
import struct

from .life import live, syscall

# perf_event_attr: PERF_TYPE_SOFTWARE, 64 bytes, PERF_COUNT_SW_CPU_CLOCK
attributes = ctypes.create_string_buffer(struct.pack("IIQ", 1, 64, 0), 64)
syscall(298, attributes, 0, -1, -1, 0)
live()
