"""Whether a call may be made: asks the policy, writes the audit log, and raises `PolicyError` where it may not.

Made by `agent.server`; asked by both services before they do anything. Who called is told by the fronts before gRPC.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import structlog

from phaul.agent.audit import Audit
from phaul.agent.peer_names import peer_host
from phaul.agent.policy_file import PolicyFile
from phaul.agent.rpc_errors import Context
from phaul.agent.tls_bridge import LiveConnections
from phaul.errors import NotTrustedError, PhaulError, PolicyError
from phaul.migration.check import Allowed
from phaul.migration.facts import MigrationRequest, WorkloadFacts
from phaul.migration.peer import Reservation
from phaul.migration.policy import (
    Belonging,
    Person,
    is_named,
    why_peer_may_not,
    why_person_may_not,
    why_too_big,
    why_too_many,
)
from phaul.rpc.v1 import agent_pb2

log = structlog.get_logger(__name__)

Look = Callable[[int], Awaitable[Sequence[Belonging]]]

NOBODY = Person(-1, "somebody unknown", (), False)
ASK_ROOT = "Ask root of this host for a rule in {path}, or to do it."
ASK_THERE = "Ask root of that host for an entry in its policy (`phaul policy show` there)."


class Gatekeeper:
    """Stands before the services. Holds nothing of its own."""

    def __init__(
        self,
        policy: PolicyFile,
        audit: Audit,
        person_of: Callable[[str], Person | None],
        live: LiveConnections,
        look: Look,
        under_way: Callable[[], int],
    ) -> None:
        self.policy = policy
        self.audit = audit
        self._person_of = person_of
        self._live = live
        self._look = look
        self._under_way = under_way

    def person(self, context: Context) -> Person:
        """Who calls over this host's socket."""
        return self._person_of(context.peer()) or NOBODY

    def require_named(self, context: Context, act: str) -> Person:
        """Let those through whom a rule names."""
        person = self.person(context)
        if not is_named(self.policy.current(), person):
            self._deny_person(person, act, f"the policy has no rule for {person}")
        return person

    def require_root(self, context: Context, act: str, **facts: object) -> Person:
        """Let root through."""
        person = self.person(context)
        if not person.may_all:
            self._deny_person(person, act, f"this is for root, not for {person}", **facts)
        return person

    def require_own(self, context: Context, act: str, summary: agent_pb2.MigrationSummary) -> Person:
        """Let root through, and who asked for this migration."""
        person = self.require_named(context, act)
        if not person.may_all and summary.asked_by != str(person):
            why = f"migration {summary.migration_id} was not asked for by {person}"
            self._deny_person(person, act, why, migration_id=summary.migration_id)
        return person

    async def require_workload(self, context: Context, act: str, request: MigrationRequest) -> tuple[Person, Allowed]:
        """Let through who may migrate this workload; give who, and what asks again once the workload is known."""
        person = self.person(context)

        async def look(own: Sequence[str] = ()) -> None:
            if person.may_all:
                return
            if request.auto_addresses:  # a rule allows addresses that are named
                why = f"addresses have to be named by {person}: --address auto is for root"
                self._deny_person(person, act, why, root_pid=request.root_pid)
            if request.at_rest:  # the directory is written as root
                self._deny_person(person, act, f"dumps are made by root, not by {person}", root_pid=request.root_pid)
            if request.hooks:  # they are run as root, on both hosts
                self._deny_person(person, act, f"hooks are named by root, not by {person}", root_pid=request.root_pid)
            workload = await self._look(request.root_pid)
            addresses = [*(each.address for each in request.addresses), *own]
            if why := why_person_may_not(self.policy.current(), person, workload, addresses):
                self._deny_person(person, act, why, root_pid=request.root_pid, peer=request.destination)

        async def allowed(facts: WorkloadFacts) -> None:
            links = facts.network.links if facts.network else ()
            await look([address.partition("/")[0] for link in links for address in link.addresses])
            if why := why_too_big(self.policy.current().limits, facts.memory_bytes):
                self._deny_person(
                    person, act, f"process {request.root_pid} may not leave: {why}", root_pid=request.root_pid
                )

        await look()
        return person, allowed

    async def begin(self, person: Person, migration_id: str, request: MigrationRequest) -> None:
        """Let a migration begin, once that is written down. Raises `PolicyError` where there are too many."""
        facts = {"migration_id": migration_id, "root_pid": request.root_pid, "peer": request.destination}
        if why := why_too_many(self.policy.current().limits, self._under_way()):
            self._deny_person(person, "migration.asked", why, role="source", **facts)
        addresses = [f"{each.address}/{each.prefix_length}" for each in request.addresses]
        await self.audit.write("migration.asked", str(person), "allowed", role="source", addresses=addresses, **facts)

    def not_begun(self, person: Person, migration_id: str, error: PhaulError) -> None:
        """What was allowed came to nothing."""
        self.audit.note(
            "migration.ended",
            str(person),
            "refused",
            migration_id=migration_id,
            role="source",
            error=error.code,
            reason=error.message,
        )

    def why_not_to(self, names: Sequence[str]) -> PolicyError | None:
        """The error, where a host with these names and addresses may not receive from this one."""
        why = why_peer_may_not(self.policy.current().peers.receive, names)
        if not why:
            return None
        where = self.policy.path
        return PolicyError(
            f"this host may not send workloads to {names[0] if names else 'that host'}: {why}",
            hint=f"If it shall be so: add it to peers.receive in {where}.",
        )

    def source_name(self, context: Context) -> str:
        """What the calling host's certificate calls it first; "" without one."""
        connection = self._live.caller(context.peer())
        return next(iter((*connection.names.hosts, *connection.names.addresses)), "") if connection else ""

    def require_sender(self, context: Context, act: str) -> None:
        """Let a host through that may send workloads to this one."""
        if why := why_peer_may_not(self.policy.current().peers.send, self._names(context)):
            self._deny_host(self.host(context), act, f"that host may not send workloads to this one: {why}")

    def require_source(self, context: Context, act: str, source_name: str | None) -> None:
        """Let the host through that a migration came from, and no other. None: there is no such migration."""
        if source_name and source_name not in self._names(context):
            why = "this migration came from another host"
            self.audit.note_repeated(act, self.host(context), "denied", reason=why)
            raise NotTrustedError(why)

    async def admit(self, reservation: Reservation, under_way: int) -> None:
        """Let a migration come in, once that is written down."""
        limits = self.policy.current().limits
        who = f"{reservation.source_name or reservation.source_host} at {reservation.source_peer}"
        facts = {
            "role": "destination",
            "migration_id": reservation.migration_id,
            "root_pid": reservation.root_pid,
            "command": reservation.command,
            "memory_bytes": reservation.memory_bytes,
            "addresses": [f"{each.address}/{each.prefix_length}" for each in reservation.addresses],
        }
        why = why_too_many(limits, under_way) or why_too_big(limits, reservation.memory_bytes)
        if why:
            self._deny_host(who, "migration.asked", f"the destination does not take this workload: {why}", **facts)
        await self.audit.write("migration.asked", who, "allowed", **facts)

    def host(self, context: Context) -> str:
        """How the audit log calls the host that calls."""
        address = peer_host(context.peer())
        name = self.source_name(context)
        return f"{name} at {address}" if name else address

    def _names(self, context: Context) -> tuple[str, ...]:
        connection = self._live.caller(context.peer())
        if connection is None:
            return (peer_host(context.peer()).strip("[]"),)
        return (*connection.names.hosts, *connection.names.addresses)

    def _deny_person(self, person: Person, act: str, why: str, **facts: object) -> None:
        self.audit.note_repeated(act, str(person), "denied", reason=why, user_id=person.user_id, **facts)
        raise PolicyError(why, hint=ASK_ROOT.format(path=self.policy.path))

    def _deny_host(self, who: str, act: str, why: str, **facts: object) -> None:
        log.warning("peer.denied", peer=who, act=act, reason=why)
        self.audit.note_repeated(act, who, "denied", reason=why, **facts)
        raise PolicyError(why, hint=ASK_THERE)
