"""Action scripts (hooks): the stages at which they run on each host, what they are told, and how they are kept to once.

`HostHooks` is one migration's hooks on one host, used on either side and by the settlement after a crash; what runs
over both hosts stands in `migration.both_hooks`. Starts no process itself: that does the `Hooks` driver (agent.hooks).

Before COMMIT a hook that fails stops the migration, and it is rolled back. Those of post-resume and rollback come when
all is decided: each host runs them by itself, all of them, once, and what fails is told and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from phaul.errors import PhaulError
from phaul.migration.events import Role
from phaul.migration.facts import AddressFacts, HookFacts, HookRun
from phaul.migration.journal import Data, Journal, Mark, Record


class Stage(StrEnum):
    """When hooks run, in order. Where CRIU has such a stage (criu(8), --action-script), the name is CRIU's."""

    PREFLIGHT = "preflight"  # both hosts were compared and nothing is in the way; nothing was touched
    PRE_DUMP = "pre-dump"  # the workload runs, for the last time before the freeze
    POST_DUMP = "post-dump"  # it is frozen, its memory has arrived
    PRE_RESTORE = "pre-restore"  # all images have arrived
    SETUP_NAMESPACES = "setup-namespaces"  # the copy's namespaces are there, and nothing in them
    POST_RESTORE = "post-restore"  # the copy is complete, and held
    SWITCHOVER = "switchover"  # the addresses are off the source; COMMIT is next
    POST_RESUME = "post-resume"  # the copy runs
    ROLLBACK = "rollback"  # everything was undone, the workload runs on the source


AFTER_THE_DECISION = (Stage.POST_RESUME, Stage.ROLLBACK)
# The stages at which the destination has a process of the copy.
COPY_STAGES = (Stage.SETUP_NAMESPACES, Stage.POST_RESTORE, Stage.SWITCHOVER, Stage.POST_RESUME)
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
STAGE = "stage"  # in a record of the journal


@dataclass(frozen=True, slots=True)
class HookScene:
    """What hooks are told of a migration. `files` were named by the person and run at every stage."""

    migration_id: str
    root_pid: int
    command: str
    source: str
    destination: str
    addresses: tuple[AddressFacts, ...] = ()
    files: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class HookEnd:
    """How one hook ended, as the driver tells it; see `facts.HookRun`."""

    exit_status: int
    duration_us: int
    output: str = ""
    problem: str = ""


class Hooks(Protocol):
    """The hooks of one host."""

    def find(self, files: Sequence[str]) -> tuple[HookFacts, ...]:
        """Every hook that would be run: those of each stage in order, then `files`. Touches nothing."""
        ...

    async def run(self, hook: HookFacts, environment: Mapping[str, str]) -> HookEnd:
        """Run one, unless it may not be run (any more). Never raises; cancelling kills it."""
        ...


class NoHooks:
    """`Hooks` of a host that has none."""

    def find(self, files: Sequence[str]) -> tuple[HookFacts, ...]:
        """Nothing."""
        return ()

    async def run(self, hook: HookFacts, environment: Mapping[str, str]) -> HookEnd:
        """Nothing was found, so nothing is run."""
        raise AssertionError(hook)


def at_stage(hooks: Sequence[HookFacts], stage: str) -> tuple[HookFacts, ...]:
    """Those that run at a stage."""
    return tuple(hook for hook in hooks if hook.stage in (stage, ""))


def environment(scene: HookScene, stage: str, role: Role, images: Path | None, reason: str = "") -> dict[str, str]:
    """Give the whole environment of a hook: PHAUL_* and the names that CRIU's action scripts know."""
    told = {
        "PATH": PATH,
        "HOME": "/root",
        "LANG": "C.UTF-8",
        "PHAUL_STAGE": stage,
        "PHAUL_ROLE": role,
        "PHAUL_MIGRATION_ID": scene.migration_id,
        "PHAUL_PID": str(scene.root_pid),
        "PHAUL_COMMAND": scene.command,
        "PHAUL_SOURCE": scene.source,
        "PHAUL_DESTINATION": scene.destination,
        "PHAUL_ADDRESSES": " ".join(map(str, scene.addresses)),
        "CRTOOLS_SCRIPT_ACTION": stage,
    }
    if images is not None:
        told["CRTOOLS_IMAGE_DIR"] = str(images)
    if role is Role.SOURCE or stage in COPY_STAGES:
        told["CRTOOLS_INIT_PID"] = str(scene.root_pid)
    if reason:
        told["PHAUL_REASON"] = reason
    # A name in Linux is bytes without a zero.
    return {name: value.replace("\0", "") for name, value in told.items()}


def begun(records: Sequence[Record], stage: str, mark: Mark = Mark.HOOKS) -> bool:
    """Whether the hooks of a stage were begun (or with HOOKS_RAN: have ended), also by an agent before this one."""
    return any(record.mark is mark and record.data[STAGE] == stage for record in records)


class HostHooks:
    """The hooks of one migration on one host.

    Args:
        journal: None before the migration has one here.
        images: where its images lie on this host, asked when a hook is run.
    """

    def __init__(
        self,
        hooks: Hooks,
        role: Role,
        scene: HookScene,
        journal: Journal | None = None,
        images: Callable[[], Path | None] = lambda: None,
    ) -> None:
        self._hooks = hooks
        self._role = role
        self.scene = scene
        self._journal = journal
        self._images = images

    async def run(
        self, stage: str, *, reason: str = "", again: bool = False, told: Callable[[HookRun], None] = lambda _: None
    ) -> tuple[HookRun, ...]:
        """Run those of a stage one after the other; before the decision, up to the first that fails.

        Args:
            again: they were begun before, and nobody knows how they ended.
            told: called with each as it ends.
        """
        ran: list[HookRun] = []
        for hook in at_stage(self._hooks.find(self.scene.files), stage):
            variables = environment(self.scene, stage, self._role, self._images(), reason)
            variables["PHAUL_HOOK_TIMEOUT"] = f"{hook.timeout_seconds:g}"
            if again:
                variables["PHAUL_REPEATED"] = "1"
            end = await self._hooks.run(hook, variables)
            ran.append(HookRun(stage, hook.path, end.exit_status, end.duration_us, end.output, end.problem))
            told(ran[-1])
            if end.problem and stage not in AFTER_THE_DECISION:
                break
        return tuple(ran)

    async def run_once(
        self, stage: str, *, reason: str = "", told: Callable[[HookRun], None] = lambda _: None
    ) -> tuple[HookRun, ...]:
        """Run those of a stage past the decision, unless they have run before.

        Once, as far as that can be known: had the agent before this one begun them and was killed, they run again.
        """
        journal = self._journal
        assert journal is not None
        if begun(journal.records, stage, Mark.HOOKS_RAN) or not at_stage(self._hooks.find(self.scene.files), stage):
            return ()
        again = begun(journal.records, stage)
        await _note(journal, Mark.HOOKS, {STAGE: stage})
        ran = await self.run(stage, reason=reason, again=again, told=told)
        await _note(journal, Mark.HOOKS_RAN, {STAGE: stage})
        return ran


async def _note(journal: Journal, mark: Mark, data: Data) -> None:
    """A journal that cannot be written must not keep a hook from running: at worst it runs again."""
    try:
        await journal.write(mark, data)
    except PhaulError:
        return
