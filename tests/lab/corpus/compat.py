"""A 32-bit program."""
# answer: moves
# both: python3 -m corpus.compat write
# life: silent

import os
import struct
import sys

# mov eax, 29 (pause); int 0x80; jmp back
code = bytes([0xB8, 29, 0, 0, 0, 0xCD, 0x80, 0xEB, 0xF7])
head = b"\x7fELF" + bytes([1, 1, 1]) + bytes(9)
head += struct.pack("<HHIIIIIHHHHHH", 2, 3, 1, 0x8048054, 52, 0, 0, 52, 32, 1, 0, 0, 0)
head += struct.pack("<IIIIIIII", 1, 0, 0x8048000, 0x8048000, 84 + len(code), 84 + len(code), 5, 4096)
if sys.argv[1:] == ["write"]:
    with open("/tmp/compat", "wb") as program:
        program.write(head + code)
    os.chmod("/tmp/compat", 0o755)
else:
    os.execv("/tmp/compat", ["compat"])
