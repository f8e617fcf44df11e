"""A process of another user than root."""
# answer: refused agent_capabilities

import os

from .life import live

os.setgroups([5])
os.setresgid(1234, 1234, 1234)
os.setresuid(1234, 1234, 1234)


def well() -> None:
    assert os.getresuid() == (1234, 1234, 1234)
    assert os.getgroups() == [5]


live(well)
