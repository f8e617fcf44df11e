"""The name that gRPC gives the other end of a call, read. Pure; used by the services and by what stands before them."""

from __future__ import annotations

from urllib.parse import unquote


def socket_name(peer: str) -> str:
    """The name of an abstract Unix socket, which the fronts give to what they hand over: "unix-abstract:NAME"."""
    return unquote(peer.partition(":")[2])


def peer_host(peer: str) -> str:
    """Read the host out of gRPC's name for the other end: "ipv4:192.0.2.1:40000" or "ipv6:%5B2001:db8::1%5D:40000".

    Give it as it can stand before a colon and a port.
    """
    address = unquote(peer.partition(":")[2]).rpartition(":")[0]
    mapped = address.strip("[]").removeprefix("::ffff:")
    return mapped if "." in mapped else address
