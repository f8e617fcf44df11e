"""A new identity for the copy of a dump: the MACs of its devices and its host name, as CRIU's images say them.

Called by `criu.engine` once a dump is complete, on the source: however often the copy is restored, it has them. Changes
nothing else; what is not understood here stays as it was (CRIU 4.2, images/netdev.proto and utsns.proto).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from phaul.criu.images import COMMON_MAGIC, ImageError, decode_records, encode_image
from phaul.rpc.criu import images_pb2

NETDEV_MAGIC = 0x57373951  # criu/include/magic.h, as the next
UTSNS_MAGIC = 0x54473203


def set_macs(images: Path, macs: Mapping[str, str]) -> None:
    """Give devices of the copy's network namespace, by name, other MACs. Raises `ImageError` where one is not there."""
    left = dict(macs)
    for path in sorted(images.glob("netdev-*.img")) if left else ():
        magics = (COMMON_MAGIC, NETDEV_MAGIC)
        devices = [images_pb2.NetworkDevice.FromString(record) for record in decode_records(path.read_bytes(), magics)]
        for device in devices:
            if device.name in left:
                device.address = bytes.fromhex(left.pop(device.name).replace(":", ""))
        path.write_bytes(encode_image(magics, devices))
    if left:
        raise ImageError(f"the dump has no network device {', '.join(left)}")


def set_host_name(images: Path, name: str) -> None:
    """Give the copy's UTS namespace another host name, where there is one to give. Raises `ImageError`."""
    if not name:
        return
    paths = list(images.glob("utsns-*.img"))
    if len(paths) != 1:
        raise ImageError(f"the dump has {len(paths)} images of a host name")
    magics = (COMMON_MAGIC, UTSNS_MAGIC)
    records = [images_pb2.HostNames.FromString(record) for record in decode_records(paths[0].read_bytes(), magics)]
    for record in records:
        record.nodename = name
    paths[0].write_bytes(encode_image(magics, records))
