"""Telling the hosts that the authority knows what is trusted now, at once instead of when they next ask.

Called by `phaul trust` on the authority's host. To connect is all: every connection exchanges the lists.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping

from phaul.errors import PhaulError
from phaul.trust.authority import HostRecord
from phaul.trust.certificates import is_loopback_address
from phaul.trust.connections import dial
from phaul.trust.store import TrustStore


async def spread(store: TrustStore, hosts: Iterable[HostRecord]) -> Mapping[str, PhaulError | None]:
    """Connect to every host that is trusted, except the own; gives who has heard it (None), and why others have not."""
    own = store.current().names
    others = [each for each in hosts if not each.revoked and each.name not in (*own.hosts, *own.addresses)]
    results = await asyncio.gather(*(_tell(store, each) for each in others))
    return {each.name: result for each, result in zip(others, results, strict=True)}


async def _tell(store: TrustStore, host: HostRecord) -> PhaulError | None:
    failure: PhaulError | None = None
    for name in host.names:
        if is_loopback_address(name):
            continue
        try:
            connection = await dial(store, name, host.port)
        except PhaulError as error:
            failure = failure or error
            continue
        await connection.stream.close()
        return None
    return failure
