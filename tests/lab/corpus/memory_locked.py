"""Memory that is locked, and all that will come as well."""
# answer: moves

from .life import C, live, ok

ok(C.mlockall(3))


def well() -> None:
    with open("/proc/self/status") as status:
        assert next(line for line in status if line.startswith("VmLck")).split()[1] != "0"


live(well)
