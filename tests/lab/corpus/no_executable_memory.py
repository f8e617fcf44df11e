"""A process that may not make memory executable (PR_SET_MDWE). It loses that; nobody outside can see it."""
# answer: moves

from .life import C, live, ok

ok(C.prctl(65, 1, 0, 0, 0))
live()
