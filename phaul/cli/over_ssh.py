"""`phaul migrate --to ssh://…`: an agent on the destination for the time of one migration. Used by `cli.migrate`.

The migration itself goes from agent to agent, as always, and not through SSH: an SSH connection that breaks disturbs
neither it nor the agent that was started (`phaul.install.visit` says when that ends).
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from typing import Any

from phaul.cli.console import clean, make_console
from phaul.cli.trust import note_in_audit
from phaul.config import DEFAULT_PEER_PORT, AgentConfig
from phaul.errors import InDoubtError, InstallError, UsageError
from phaul.install.target import SCHEME, Login, SshTarget, parse_target

CERTIFICATE_DAYS = 1.0  # its agent renews it, should it have to stay longer
STAYS = frozenset((InDoubtError.exit_status, 128 + signal.SIGINT, 128 + signal.SIGTERM))  # there is work for it yet
STAYS_SECONDS = 2.0


def is_over_ssh(to: str) -> bool:
    """Whether what was typed after --to names an SSH server, not an agent."""
    return to.startswith(SCHEME)


async def visited(to: str, login: Login, work: Callable[[str], Awaitable[int]], *, quiet: bool) -> int:
    """Start an agent there, do `work` with its HOST:PORT, and send it away; gives what `work` gave.

    Whatever becomes of `work`, the agent stays as long as it holds a copy.
    """
    from phaul.install import host_certificate
    from phaul.install.ssh import SshHost
    from phaul.install.visit import GONE_SECONDS, IDLE_SECONDS, Visit
    from phaul.observe.logs import configure_logs

    configure_logs("warning", "console")

    target = parse_target(to)
    store = _store()
    authority = host_certificate.require_authority(store)
    known = authority.hosts().get(target.host.lower())
    if known is not None and not known.revoked:
        raise UsageError(
            f"{target.host} has a certificate, so it has an agent of its own",
            hint=f"Use that: --to {target.host}. If it has none, `phaul trust revoke {target.host}` first.",
        )

    def say(line: str) -> None:
        if not quiet:
            make_console().print(line, style="dim", soft_wrap=True)

    def revoke() -> None:
        authority.revoke(target.host)
        note_in_audit(None, "revoke", host=target.host)

    def begin(host: SshHost) -> Visit:
        visit = Visit(host)
        visit.require()
        say(f"Bringing an agent to {clean(target.host)}, for this migration")
        addresses = host_certificate.addresses_of(target.host, host.address)
        pem, trust_list = authority.issue(target.host, DEFAULT_PEER_PORT, addresses, CERTIFICATE_DAYS)
        note_in_audit(None, "issue", host=target.host, also=addresses)
        try:
            visit.begin(pem, trust_list, DEFAULT_PEER_PORT)
        except BaseException:
            revoke()
            raise
        return visit

    host = await asyncio.to_thread(SshHost(target, login).__enter__)
    try:
        bringing = asyncio.create_task(asyncio.to_thread(begin, host))
        interrupted, status = False, 0
        try:
            visit = await asyncio.shield(bringing)
        except asyncio.CancelledError:  # Ctrl-C: half of it could not be taken away again
            visit, interrupted = await bringing, True
        try:
            if interrupted:
                raise asyncio.CancelledError
            status = await work(f"{_bracketed(target)}:{DEFAULT_PEER_PORT}")
            return status
        finally:
            may_stay = status in STAYS
            gone = await asyncio.to_thread(_leave, visit, target, login, STAYS_SECONDS if may_stay else GONE_SECONDS)
            if gone:
                revoke()
                say(f"The agent on {clean(target.host)} is gone")
            else:
                make_console(error=True).print(
                    f"The agent on {clean(target.host)} ({visit.name}) was not seen to end: it does by itself, "
                    f"{IDLE_SECONDS} s after it has nothing to do. `phaul status` tells what it may still hold; once "
                    f"that is settled: `phaul trust revoke {clean(target.host)}`.",
                    soft_wrap=True,
                )
    finally:
        host.__exit__(None, None, None)


def _leave(visit: Any, target: SshTarget, login: Login, seconds: float) -> bool:
    """Over the same connection, or a new one where that broke."""
    try:
        return bool(visit.leave(seconds))
    except InstallError:
        pass
    from phaul.install.ssh import SshHost

    try:
        with SshHost(target, login) as host:
            return bool(visit.over(host).leave(seconds))
    except InstallError:
        return False


def _bracketed(target: SshTarget) -> str:
    return f"[{target.host}]" if ":" in target.host else target.host


def _store() -> Any:
    from phaul.agent.trust import trust_directory
    from phaul.trust.store import TrustStore

    return TrustStore(trust_directory(AgentConfig()))
