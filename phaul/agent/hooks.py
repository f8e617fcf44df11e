"""`migration.hooks.Hooks` on executables below a directory: /etc/phaul/hooks.d/STAGE, and files that a person names.

Made by `agent.wiring`. Looks at the disk each time, so that a hook can be put there or taken away at any moment.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import structlog

from phaul.errors import PhaulError
from phaul.migration.facts import HookFacts
from phaul.migration.hooks import HookEnd, Stage
from phaul.system import hook_files
from phaul.system.process import run_watched
from phaul.units import format_seconds

log = structlog.get_logger(__name__)

OUTPUT_LINES = 20  # of the end of what a hook wrote; more is for a log of its own
NOT_RUN = 126  # a shell's exit status of what cannot be executed


class HookDirectory:
    """The hooks of this host."""

    def __init__(self, directory: Path, timeout_seconds: float) -> None:
        self._directory = directory
        self._timeout_seconds = timeout_seconds

    def find(self, files: Sequence[str]) -> tuple[HookFacts, ...]:
        """Every hook that would be run, as it is on the disk now."""
        return tuple(self._found(files))

    def _found(self, files: Sequence[str]) -> Iterator[HookFacts]:
        for stage in Stage:
            for hook in hook_files.listed(self._directory / stage):
                yield HookFacts(stage, str(hook.path), hook.problem, self._timeout_seconds)
        for file in files:
            yield HookFacts("", file, hook_files.look(Path(file)).problem, self._timeout_seconds)

    async def run(self, hook: HookFacts, environment: Mapping[str, str]) -> HookEnd:
        """Run one, after another look at it."""
        began_us = time.monotonic_ns() // 1000
        problem = hook_files.look(Path(hook.path)).problem
        status, output, stage = NOT_RUN, "", environment["PHAUL_STAGE"]
        if not problem:
            try:
                ended = await run_watched([hook.path], environment, hook.timeout_seconds)
            except PhaulError as error:
                problem = error.message
            else:
                status, output = ended.exit_status, _last_lines(ended.output)
                if ended.timed_out:
                    problem = f"it was ended, as it took longer than {format_seconds(hook.timeout_seconds)}"
                elif status:
                    problem = f"exit status {status}" if status > 0 else f"it was ended by signal {-status}"
        duration_us = time.monotonic_ns() // 1000 - began_us
        log.info(
            "hook.ended",
            migration_id=environment["PHAUL_MIGRATION_ID"],
            stage=stage,
            path=hook.path,
            exit_status=status,
            duration_us=duration_us,
            problem=problem,
            output=output,
        )
        return HookEnd(status, duration_us, output, problem)


def _last_lines(output: str) -> str:
    return "\n".join(output.rstrip("\n").splitlines()[-OUTPUT_LINES:])
