"""New addresses for the sockets of a dump: CRIU binds a restored socket to what its image says.

Called by `criu.engine` once a dump is complete. Changes `files.img` alone, in which every open file has one record
(CRIU 4.2, images/fdinfo.proto and sk-inet.proto); what is not understood here stays as it was.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

from phaul.criu.images import COMMON_MAGIC, decode_records, encode_image
from phaul.rpc.criu import images_pb2

FILES_MAGIC = 0x56303138  # FILES_MAGIC of criu/include/magic.h
FILES = "files.img"
WORD_BYTES = 4


def readdress(images: Path, new: Mapping[str, str]) -> None:
    """Put new addresses in place of old ones; without any, nothing is touched. Raises `ImageError`."""
    if not new:
        return
    wanted = {ip_address(old): ip_address(address) for old, address in new.items()}
    magics = (COMMON_MAGIC, FILES_MAGIC)
    path = images / FILES
    files = [images_pb2.OpenFile.FromString(record) for record in decode_records(path.read_bytes(), magics)]
    for file in files:
        if file.HasField("isk"):
            _readdress_one(file.isk, wanted)
    path.write_bytes(encode_image(magics, files))


def _readdress_one(
    entry: images_pb2.InternetSocket, wanted: Mapping[IPv4Address | IPv6Address, IPv4Address | IPv6Address]
) -> None:
    packed = b"".join(word.to_bytes(WORD_BYTES, sys.byteorder) for word in entry.src_addr)
    has = IPv6Address(packed) if entry.family == socket.AF_INET6 else IPv4Address(packed[:WORD_BYTES])
    mapped = has.ipv4_mapped if isinstance(has, IPv6Address) else None
    new = wanted.get(mapped or has)
    if new is None:
        return
    content = IPv6Address(f"::ffff:{new}").packed if mapped else new.packed
    words = (content[at : at + WORD_BYTES] for at in range(0, len(content), WORD_BYTES))
    entry.src_addr[:] = [int.from_bytes(word, sys.byteorder) for word in words]
