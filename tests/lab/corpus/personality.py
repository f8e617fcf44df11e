"""A process whose addresses are not random. It loses that setting, and the check warns of it."""
# answer: moves

from .life import C, live

C.personality(0x0040000)
live()
