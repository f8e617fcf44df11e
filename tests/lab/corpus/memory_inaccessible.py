"""Reserved memory that nothing may touch, as Java and Go have it."""
# answer: moves

from .life import live, mmap

address = mmap(1 << 36, protection=0, flags=0x4022)
live()
