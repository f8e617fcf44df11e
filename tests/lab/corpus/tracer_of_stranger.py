"""A debugger of a process that stays."""
# answer: refused traces

from .life import C, live, ok, stranger

ok(C.ptrace(0x4206, stranger(), None, None))
live()
