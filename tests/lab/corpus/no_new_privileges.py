"""A process that may gain no privileges any more."""
# answer: moves

from .life import C, live, ok

ok(C.prctl(38, 1, 0, 0, 0))


def well() -> None:
    assert C.prctl(39, 0, 0, 0, 0) == 1


live(well)
