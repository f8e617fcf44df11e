"""A debugger of its own child."""
# answer: refused traced

from .life import C, child, live, ok

ok(C.ptrace(0x4206, child(), None, None))
live()
