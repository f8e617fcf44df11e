"""The `Agent` service: what the person on this host asks for, over the Unix socket. Made by `agent.server`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from phaul.agent import requests
from phaul.agent.dirty_rates import DirtyRates
from phaul.agent.history import History
from phaul.agent.messages import to_message
from phaul.agent.outgoing import OutgoingMigrations
from phaul.agent.resolution import Resolver, choice_of
from phaul.agent.rpc_errors import Context, reports_errors, reports_stream_errors
from phaul.agent.wiring import measure_dirty_rate
from phaul.migration.arrivals import Arrivals
from phaul.migration.host import Host
from phaul.migration.lazy import LoadingState
from phaul.rpc.v1 import agent_pb2, dirty_rate_pb2, facts_pb2
from phaul.rpc.v1.agent_pb2_grpc import AgentServicer

UNSETTLED = (agent_pb2.OUTCOME_RUNNING, agent_pb2.OUTCOME_IN_DOUBT)
SETTLED_INTERVAL_SECONDS = 0.2


class AgentService(AgentServicer):
    """Serves `phaul` on this host. Holds nothing of its own."""

    def __init__(
        self, host: Host, migrations: OutgoingMigrations, history: History, resolver: Resolver, arrivals: Arrivals
    ) -> None:
        self._host = host
        self._arrivals = arrivals
        self._migrations = migrations
        self._history = history
        self._resolver = resolver
        self._dirty_rates = DirtyRates(migrations, history, host.outcomes, measure_dirty_rate)

    @reports_errors
    async def DescribeHost(self, request: agent_pb2.DescribeHostRequest, context: Context) -> facts_pb2.HostFacts:
        """What this host is and can do."""
        return to_message(await self._host.describe(), facts_pb2.HostFacts)

    @reports_errors
    async def Check(self, request: facts_pb2.MigrationRequest, context: Context) -> facts_pb2.CheckReport:
        """Preflight alone."""
        report = await self._migrations.check(requests.migration_request(request))
        return to_message(report, facts_pb2.CheckReport)

    @reports_errors
    async def MeasureDirtyRate(
        self, request: dirty_rate_pb2.DirtyRateRequest, context: Context
    ) -> dirty_rate_pb2.DirtyRateReport:
        """How fast a workload writes."""
        report = await self._dirty_rates.report(requests.dirty_rate_request(request))
        return to_message(report, dirty_rate_pb2.DirtyRateReport)

    @reports_errors
    async def StartMigration(
        self, request: facts_pb2.MigrationRequest, context: Context
    ) -> agent_pb2.StartMigrationReply:
        """Start a migration in the agent."""
        return agent_pb2.StartMigrationReply(migration_id=self._migrations.start(requests.migration_request(request)))

    @reports_stream_errors
    async def WatchMigration(
        self, request: agent_pb2.MigrationReference, context: Context
    ) -> AsyncIterator[agent_pb2.MigrationEvent]:
        """Its events, from the first to the last."""
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
        accepted, reason = self._migrations.cancel(request.migration_id)
        return agent_pb2.CancelMigrationReply(accepted=accepted, reason=reason)

    @reports_errors
    async def ListMigrations(
        self, request: agent_pb2.ListMigrationsRequest, context: Context
    ) -> agent_pb2.ListMigrationsReply:
        """Migrations of this host, newest first."""
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
        return to_message(await self._resolver.describe(request.migration_id), agent_pb2.DoubtReport)

    @reports_errors
    async def ResolveMigration(self, request: agent_pb2.ResolveRequest, context: Context) -> agent_pb2.ResolveReply:
        """Do what a person decided."""
        choice = choice_of(request.choice)
        resolved = await self._resolver.resolve(request.migration_id, choice, force=request.force)
        return to_message(resolved, agent_pb2.ResolveReply)
