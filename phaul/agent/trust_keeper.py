"""Keeps an agent's trust fresh: renews the host's certificate, fetches the list, breaks off what is no more trusted.

A task of `agent.server`. On the authority's host it renews by itself; elsewhere it asks the authority's agent, over a
connection that the old certificate still opens.
"""

from __future__ import annotations

import asyncio
import random

import structlog

from phaul.agent.audit import AGENT, Audit
from phaul.agent.destination import parse_destination
from phaul.agent.tls_bridge import LiveConnections
from phaul.errors import PhaulError, UnreachableError
from phaul.trust.authority import Authority
from phaul.trust.certificates import chain_pem, make_key, make_request, read_certificates
from phaul.trust.connections import RENEWAL, dial, renew, utc_now
from phaul.trust.store import HostTrust, TrustStore

log = structlog.get_logger(__name__)

CUT_SECONDS = 2.0  # how long a connection outlives the news that its certificate was revoked
REFRESH_SECONDS = 60.0  # how old the news may be while the authority can be reached
RETRY_SECONDS = 10.0  # where a renewal did not succeed
RENEW_AT = 1 / 3  # of its life is left
COMPLAIN_SECONDS = 600.0


class TrustKeeper:
    """Looks after one store until it is cancelled (`run`)."""

    def __init__(self, store: TrustStore, live: LiveConnections, audit: Audit) -> None:
        self._audit = audit
        self._store, self._live = store, live
        self._authority = Authority(store)
        self._complained = 0.0

    async def run(self) -> None:
        """Every two seconds look at the connections, every minute at the authority."""
        loop = asyncio.get_running_loop()
        next_refresh = loop.time()
        known = 0
        while True:
            try:
                self._cut()
                if known != (number := self._store.current().list.number):
                    if known:
                        self._audit.note("trust.list", AGENT, "taken", number=number)
                    known, next_refresh = number, loop.time()  # there may be a new root
                if loop.time() >= next_refresh:
                    next_refresh = loop.time() + RETRY_SECONDS
                    await self._refresh()
                    next_refresh = loop.time() + REFRESH_SECONDS * random.uniform(0.9, 1.1)
            except PhaulError as error:
                self._complain(error)
            except OSError as error:  # a full disk must not end the looking after
                self._complain(UnreachableError(f"the files of trust could not be written: {error}"))
            await asyncio.sleep(CUT_SECONDS)

    def _cut(self) -> None:
        for connection, refusal in self._live.cut(self._store.current().list, utc_now()):
            self._audit.note(
                "connection", f"{connection.names} at {connection.host}", "cut", reason=str(refusal.reason)
            )
            log.warning("peer.cut", peer=connection.host, names=str(connection.names), reason=str(refusal.reason))

    async def _refresh(self) -> None:
        trust = self._store.current()
        due = is_due(trust)
        if self._authority.is_here:
            if due:
                await asyncio.to_thread(self._authority.renew_own)
                log.info("trust.renewed", until=str(self._store.current().ends))
            return
        failure: PhaulError | None = None
        for place in trust.list.authority:
            try:
                await self._ask(place, due)
                return
            except PhaulError as error:
                failure = error
        if failure is not None and due:
            raise failure

    async def _ask(self, place: str, due: bool) -> None:
        """Exchange the lists, which every connection does; where it is time, renew as well."""
        authority = parse_destination(place)
        if not due:
            connection = await dial(self._store, authority.host, authority.port)
            await connection.stream.close()
            due = is_due(self._store.current())  # the list may have brought a new root
            if not due:
                return
        key = make_key()
        connection = await dial(self._store, authority.host, authority.port, RENEWAL, make_request(key))
        chain = read_certificates(await renew(connection))
        self._store.put_host(chain_pem(key, chain))
        log.info("trust.renewed", until=str(self._store.current().ends))

    def _complain(self, error: PhaulError) -> None:
        now = asyncio.get_running_loop().time()
        if self._complained and now - self._complained < COMPLAIN_SECONDS:
            return
        self._complained = now
        try:
            until = str(self._store.current().ends)
        except PhaulError:
            until = "unknown"
        log.warning("trust.not_renewed", reason=error.message, detail=error.detail, certificate_until=until)


def is_due(trust: HostTrust) -> bool:
    """Whether the host's certificate is to be renewed: two thirds of its life are over, or it is from an older root."""
    certificate = trust.certificate
    life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    if certificate.not_valid_after_utc - utc_now() < life * RENEW_AT:
        return True
    return not trust.is_of_newest_root
