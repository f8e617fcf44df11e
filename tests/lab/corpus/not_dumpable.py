"""A process that must not be looked into (PR_SET_DUMPABLE)."""
# answer: moves

from .life import C, live, ok

ok(C.prctl(4, 0, 0, 0, 0))


def well() -> None:
    assert C.prctl(3, 0, 0, 0, 0) == 0


live(well)
