"""The `Agent` service: what people on this host ask for, over the Unix socket. Made by `agent.server`."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import secrets
from collections.abc import AsyncIterator, Sequence

from phaul.agent import requests
from phaul.agent.dirty_rates import DirtyRates
from phaul.agent.gatekeeper import Gatekeeper
from phaul.agent.history import History
from phaul.agent.leftovers import Leftover, Leftovers
from phaul.agent.messages import to_message
from phaul.agent.outgoing import OutgoingMigrations
from phaul.agent.resolution import Resolver, choice_of
from phaul.agent.restores import Restores
from phaul.agent.rpc_errors import Context, reports_errors, reports_stream_errors
from phaul.agent.wiring import measure_dirty_rate
from phaul.errors import PhaulError
from phaul.migration.arrivals import Arrivals
from phaul.migration.facts import MigrationRequest
from phaul.migration.host import Host
from phaul.migration.lazy import LoadingState
from phaul.rpc.v1 import agent_pb2, dirty_rate_pb2, facts_pb2
from phaul.rpc.v1.agent_pb2_grpc import AgentServicer

UNSETTLED = (agent_pb2.OUTCOME_RUNNING, agent_pb2.OUTCOME_IN_DOUBT)
SETTLED_INTERVAL_SECONDS = 0.2


class AgentService(AgentServicer):
    """Serves `phaul` on this host. Holds nothing of its own."""

    def __init__(
        self,
        host: Host,
        migrations: OutgoingMigrations,
        history: History,
        resolver: Resolver,
        arrivals: Arrivals,
        gate: Gatekeeper,
        leftovers: Leftovers,
        restores: Restores,
    ) -> None:
        self._restores = restores
        self._gate = gate
        self._host = host
        self._arrivals = arrivals
        self._migrations = migrations
        self._history = history
        self._resolver = resolver
        self._leftovers = leftovers
        self._dirty_rates = DirtyRates(migrations, history, host.outcomes, measure_dirty_rate)

    @reports_errors
    async def DescribeHost(self, request: agent_pb2.DescribeHostRequest, context: Context) -> facts_pb2.HostFacts:
        """What this host is and can do."""
        self._gate.require_named(context, "look")
        return to_message(await self._host.describe(), facts_pb2.HostFacts)

    @reports_errors
    async def Check(self, request: facts_pb2.MigrationRequest, context: Context) -> facts_pb2.CheckReport:
        """Preflight alone."""
        asked = requests.migration_request(request)
        _, allowed = await self._gate.require_workload(context, "check", asked)
        report = await self._migrations.check(asked, allowed)
        return to_message(report, facts_pb2.CheckReport)

    @reports_errors
    async def MeasureDirtyRate(
        self, request: dirty_rate_pb2.DirtyRateRequest, context: Context
    ) -> dirty_rate_pb2.DirtyRateReport:
        """How fast a workload writes."""
        asked = requests.dirty_rate_request(request)
        await self._gate.require_workload(context, "dirty_rate", MigrationRequest(asked.root_pid, asked.destination))
        report = await self._dirty_rates.report(asked)
        return to_message(report, dirty_rate_pb2.DirtyRateReport)

    @reports_errors
    async def StartMigration(
        self, request: facts_pb2.MigrationRequest, context: Context
    ) -> agent_pb2.StartMigrationReply:
        """Start a migration in the agent."""
        asked, migration_id = requests.migration_request(request), secrets.token_hex(4)
        person, allowed = await self._gate.require_workload(context, "migration.asked", asked)
        await self._gate.begin(person, migration_id, asked)
        try:
            self._migrations.start(migration_id, asked, str(person), allowed)
        except PhaulError as error:
            self._gate.not_begun(person, migration_id, error)
            raise
        return agent_pb2.StartMigrationReply(migration_id=migration_id)

    @reports_stream_errors
    async def RestoreDump(
        self, request: agent_pb2.RestoreDumpRequest, context: Context
    ) -> AsyncIterator[agent_pb2.RestoreDumpEvent]:
        """Restore a dump; what becomes of it until it runs is undone when the caller leaves."""
        directory, identity = requests.restore_request(request)
        person = self._gate.require_root(context, "dump.restore", directory=str(directory))
        await self._gate.audit.write("dump.restore", str(person), "allowed", directory=str(directory))
        told: asyncio.Queue[agent_pb2.RestoreDumpEvent | None] = asyncio.Queue()
        restoring = asyncio.create_task(self._restores.restore(directory, identity, told.put_nowait))
        restoring.add_done_callback(lambda _: told.put_nowait(None))
        context.add_done_callback(lambda _: restoring.cancel())  # type: ignore[arg-type]  # the stubs have a class
        try:
            while (event := await told.get()) is not None:
                yield event
            await restoring
        finally:
            restoring.cancel()

    @reports_stream_errors
    async def WatchMigration(
        self, request: agent_pb2.MigrationReference, context: Context
    ) -> AsyncIterator[agent_pb2.MigrationEvent]:
        """Its events, from the first to the last."""
        self._gate.require_named(context, "look")
        outgoing = self._migrations.get(request.migration_id)
        if outgoing is not None:
            async for event in outgoing.watch():
                yield event
            return
        # One of an earlier life of the agent, or one that came in: all that is known is how it stands, or will.
        record = self._history.get(request.migration_id)
        while record.outcome in UNSETTLED:  # noqa: ASYNC110 - the history has no one to wake; few ever wait here
            await asyncio.sleep(SETTLED_INTERVAL_SECONDS)
        yield agent_pb2.MigrationEvent(
            migration_id=record.migration_id,
            unix_us=record.ended_unix_us or record.started_unix_us,
            finished=agent_pb2.Finished(
                outcome=record.outcome,
                report=record.report if record.HasField("report") else None,
                error=record.error if record.HasField("error") else None,
            ),
        )

    @reports_errors
    async def CancelMigration(
        self, request: agent_pb2.MigrationReference, context: Context
    ) -> agent_pb2.CancelMigrationReply:
        """Ask for a rollback."""
        summary = self._history.get(request.migration_id)
        person = self._gate.require_own(context, "migration.cancel", summary)
        accepted, reason = self._migrations.cancel(summary.migration_id)
        outcome = "accepted" if accepted else "too late"
        self._gate.audit.note(
            "migration.cancel", str(person), outcome, migration_id=summary.migration_id, reason=reason
        )
        return agent_pb2.CancelMigrationReply(accepted=accepted, reason=reason)

    @reports_errors
    async def ListMigrations(
        self, request: agent_pb2.ListMigrationsRequest, context: Context
    ) -> agent_pb2.ListMigrationsReply:
        """Migrations of this host, newest first."""
        self._gate.require_named(context, "look")
        return agent_pb2.ListMigrationsReply(migrations=map(self._as_it_is_now, self._history.newest_first()))

    def _as_it_is_now(self, record: agent_pb2.MigrationSummary) -> agent_pb2.MigrationSummary:
        """A record, with what of the workload is still being loaded: that is kept by nobody, as it is soon over."""
        loading = self._arrivals.loading(record.migration_id)
        if loading is None:
            return record
        known = agent_pb2.MigrationSummary()
        known.CopyFrom(record)
        known.loading.left_bytes = loading.left_bytes
        known.loading.total_bytes = loading.total_bytes
        known.loading.failing = loading.state is LoadingState.FAILING
        return known

    @reports_errors
    async def DescribeDoubt(self, request: agent_pb2.MigrationReference, context: Context) -> agent_pb2.DoubtReport:
        """What is known of a migration, and what may be decided."""
        self._gate.require_root(context, "look")
        return to_message(await self._resolver.describe(request.migration_id), agent_pb2.DoubtReport)

    @reports_errors
    async def FindLeftovers(self, request: agent_pb2.LeftoversRequest, context: Context) -> agent_pb2.LeftoversReply:
        """What is left of earlier crashes."""
        self._gate.require_root(context, "look")
        return _told(await self._leftovers.find())

    @reports_errors
    async def RemoveLeftovers(self, request: agent_pb2.LeftoversRequest, context: Context) -> agent_pb2.LeftoversReply:
        """Remove it."""
        person = self._gate.require_root(context, "leftovers.remove")
        await self._gate.audit.write("leftovers.remove", str(person), "allowed")
        return _told(await self._leftovers.remove())

    @reports_errors
    async def ResolveMigration(self, request: agent_pb2.ResolveRequest, context: Context) -> agent_pb2.ResolveReply:
        """Do what a person decided."""
        choice = choice_of(request.choice)
        facts = {"migration_id": request.migration_id, "choice": str(choice), "force": request.force}
        person = self._gate.require_root(context, "migration.resolve", **facts)
        await self._gate.audit.write("migration.resolve", str(person), "allowed", **facts)
        try:
            resolved = await self._resolver.resolve(request.migration_id, choice, force=request.force)
        except PhaulError as error:
            self._gate.audit.note("migration.resolved", str(person), "refused", reason=error.message, **facts)
            raise
        self._gate.audit.note("migration.resolved", str(person), str(resolved.outcome), **facts)
        return to_message(resolved, agent_pb2.ResolveReply)

    @reports_errors
    async def DescribePolicy(
        self, request: agent_pb2.DescribePolicyRequest, context: Context
    ) -> agent_pb2.PolicyReport:
        """What is in force."""
        self._gate.require_named(context, "look")
        file = self._gate.policy
        policy = file.current()
        return agent_pb2.PolicyReport(
            path=str(file.path),
            exists=file.exists,
            problem=file.problem,
            loaded_unix_us=file.loaded_unix_us,
            policy=json.dumps(dataclasses.asdict(policy)),
            audit_log=str(self._gate.audit.path),
        )


def _told(leftovers: Sequence[Leftover]) -> agent_pb2.LeftoversReply:
    return agent_pb2.LeftoversReply(leftovers=(to_message(each, agent_pb2.Leftover) for each in leftovers))
