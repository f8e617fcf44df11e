"""`phaul host`: installs phaul on other hosts over SSH, and looks after it there. `phaul.install` does the work."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from phaul import __version__
from phaul.cli.console import clean, glyphs_for, make_console
from phaul.cli.machine import error_object, print_object
from phaul.cli.options import AcceptNewOption, IdentityOption, JsonOption, KnownHostsOption
from phaul.cli.options import login as make_login
from phaul.cli.run import run_steps
from phaul.cli.trust import note_in_audit
from phaul.config import DEFAULT_PEER_PORT, AgentConfig
from phaul.errors import InstallError, PhaulError, UnreachableError, UsageError
from phaul.install.inventory import AddedHost, Inventory
from phaul.install.steps import Report, State, Step
from phaul.install.target import Login, parse_target

app = typer.Typer(
    no_args_is_help=True,
    help="Hosts: install phaul there over SSH, and look after it.",
    epilog="""[bold]Examples[/]

phaul trust init                           once, on this host

phaul host add root@b.example

phaul host list

phaul host upgrade

Keys of the SSH agent and of ~/.ssh are used, ~/.ssh/config and ~/.ssh/known_hosts are read; a password is asked for,
or taken from the variable PHAUL_SSH_PASSWORD.
""",
)

StateDir = Annotated[
    Path | None, typer.Option("--state-dir", metavar="PATH", help="The agent's state directory; trust/ is in it.")
]

REACH_SECONDS = 30.0  # an agent that has just started on a slow host may need some


@app.command()
def add(
    target: Annotated[str, typer.Argument(metavar="[USER@]HOST[:PORT]", help="Where to log in; root unless named.")],
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="As people type it after --to. Default: HOST, as typed here.")
    ] = None,
    also: Annotated[
        list[str] | None,
        typer.Option("--also", metavar="ADDRESS", help="An address that it calls from, beside those of its name."),
    ] = None,
    port: Annotated[int, typer.Option(metavar="N", min=1, max=65535, help="Where its agent shall listen.")] = (
        DEFAULT_PEER_PORT
    ),
    identity: IdentityOption = None,
    known_hosts: KnownHostsOption = None,
    accept_new_host_key: AcceptNewOption = False,
    json_output: JsonOption = False,
    state_dir: StateDir = None,
) -> None:
    """Make a host ready: CRIU, phaul, its certificate, the units; start its agent, and check. On the authority's host.

    Typed again it changes nothing that is as it should be, and goes on where it failed.
    """
    login = make_login(identity, known_hosts, accept_new_host_key)

    def work() -> int:
        wanted = parse_target(target)
        added = AddedHost(name or wanted.host, target, port, tuple(also or ()))
        _add(added, login, state_dir, json_output)
        return 0

    run_steps(work, json_output=json_output)


@app.command()
def upgrade(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Default: all that were added.")
    ] = None,
    identity: IdentityOption = None,
    known_hosts: KnownHostsOption = None,
    json_output: JsonOption = False,
    state_dir: StateDir = None,
) -> None:
    """Bring the phaul of this host to hosts that were added, and restart their agents. Workloads run on."""
    login = make_login(identity, known_hosts, False)
    run_steps(lambda: _upgrade(names or (), login, state_dir, json_output), json_output=json_output)


@app.command()
def remove(
    name: Annotated[str, typer.Argument(metavar="NAME", help="As `phaul host list` has it.")],
    force: Annotated[
        bool, typer.Option("--force", help="Also with migrations that are not settled, or where it is out of reach.")
    ] = False,
    identity: IdentityOption = None,
    known_hosts: KnownHostsOption = None,
    json_output: JsonOption = False,
    state_dir: StateDir = None,
) -> None:
    """Stop the agent of a host, take phaul away there, and trust the host no more. Workloads run on."""
    login = make_login(identity, known_hosts, False)
    run_steps(lambda: _remove(name, force, login, state_dir, json_output), json_output=json_output)


@app.command("list")
def list_(json_output: JsonOption = False, state_dir: StateDir = None) -> None:
    """List the hosts that were added from here, and whether their agents answer."""
    run_steps(lambda: _list(state_dir, json_output), json_output=json_output)


@dataclass(slots=True)
class _Shown:
    """Prints steps as they end: with --json also where they begin."""

    host: str
    json_output: bool
    changed: bool = False

    def __call__(self, step: Step) -> None:
        if self.json_output:
            print_object(
                {"event": "step", "host": self.host, "step": step.name, "state": step.state.value, "note": step.note}
            )
            return
        if step.state is State.STARTED:
            return
        self.changed = self.changed or step.state is State.DONE
        console = make_console()
        glyphs = glyphs_for(console)
        glyph = glyphs.pending if step.state is State.UNCHANGED else glyphs.done
        said = [step.note, step.state.value if step.state is State.UNCHANGED or not step.note else ""]
        text = ": ".join(filter(None, said))
        console.print(f"{glyph} {step.name:<12} {clean(text)}", soft_wrap=True)


def _add(added: AddedHost, login: Login, state_dir: Path | None, json_output: bool) -> None:
    from phaul.install import host_certificate
    from phaul.install.host_setup import HostSetup
    from phaul.install.ssh import SshHost
    from phaul.observe.logs import configure_logs

    configure_logs("warning", "console")
    store = _store(state_dir)
    host_certificate.require_authority(store)
    inventory = Inventory(_config(state_dir).state_dir)
    shown = _Shown(added.name, json_output)
    started = time.monotonic()
    with SshHost(parse_target(added.target), login) as host:
        setup = HostSetup(host, shown)
        if not json_output:
            make_console().print(f"{clean(added.name)}: {clean(setup.state.system)}, {setup.state.platform}")
        setup.packages()
        setup.program()
        addresses = [*host_certificate.addresses_of(added.name, host.address), *added.also]
        if host_certificate.give(host, store, added.name, added.port, addresses, shown):
            note_in_audit(state_dir, "issue", host=added.name, also=addresses)
        setup.units(added.port)
        setup.agent()
        _check(host, shown)
    _reach(store, added, shown)
    inventory.put(AddedHost(added.name, added.target, added.port, added.also, __version__))
    if json_output:
        print_object({"event": "host_added", "host": added.name, "version": __version__, "exit_status": 0})
        return
    console = make_console()
    console.print(f"{clean(added.name)} is ready ({time.monotonic() - started:.0f} s): --to {clean(added.name)}")
    if not _config(state_dir).socket.exists():
        console.print(
            "No agent runs on this host, which is the authority: start it (`systemctl start phaul-agent`), since the "
            "others renew their certificates with it, within 7 days.",
            soft_wrap=True,
        )


def _check(host: Any, report: Report) -> None:
    report(Step("doctor", State.STARTED))
    done = host.run("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin; phaul doctor --json")
    try:
        found: dict[str, Any] = json.loads(done.output.strip().splitlines()[-1])
        problems = [each for each in found["host"]["problems"] if each["severity"] == "refuses"]
    except (IndexError, ValueError, KeyError, TypeError) as error:
        raise InstallError(
            f"`phaul doctor` on {host.target} said nothing that is understood here (status {done.status})",
            detail=done.complaints[-2000:] or done.output[-2000:],
        ) from error
    if not found["can_take_part"]:
        raise InstallError(
            f"phaul is installed on {host.target}, but that host cannot take part: "
            + "; ".join(each["message"] for each in problems),
            hint=" ".join(each["hint"] for each in problems) + " Then type this again.",
        )
    report(Step("doctor", State.FINE, f"it can take part; CRIU {found['host']['criu_version']}"))


def _reach(store: Any, added: AddedHost, report: Report) -> None:
    """Speak with the agent as agents do: it has to be reachable from here, and each has to trust the other."""
    from phaul.trust.connections import dial

    async def speak() -> None:
        give_up_at = time.monotonic() + REACH_SECONDS
        while True:
            try:
                connection = await dial(store, added.name, added.port)
            except UnreachableError:
                if time.monotonic() > give_up_at:
                    raise
                await asyncio.sleep(1)
                continue
            await connection.stream.close()
            return

    report(Step("connection", State.STARTED))
    asyncio.run(speak())
    report(Step("connection", State.FINE, "its agent answers, and trusts this host"))


def _upgrade(names: Sequence[str], login: Login, state_dir: Path | None, json_output: bool) -> int:
    inventory = Inventory(_config(state_dir).state_dir)
    wanted = [inventory.find(name) for name in names] or list(inventory.hosts().values())
    if not wanted:
        raise UsageError("no host was added from here", hint="`phaul host add root@HOST` adds one.")
    failed: PhaulError | None = None
    for added in wanted:
        try:
            _add(added, login, state_dir, json_output)
        except PhaulError as error:  # one host that is down is no reason to leave the others as they are
            failed = failed or error
            if len(wanted) > 1:
                _tell_failure(added.name, error, json_output)
    if failed is not None:
        raise failed
    return 0


def _tell_failure(name: str, error: PhaulError, json_output: bool) -> None:
    if json_output:
        print_object({"event": "host_failed", "host": name, "error": error_object(error)})
    else:
        make_console(error=True).print(f"{clean(name)}: {clean(error.message)}", soft_wrap=True)


def _remove(name: str, force: bool, login: Login, state_dir: Path | None, json_output: bool) -> int:
    from phaul.install.host_certificate import require_authority
    from phaul.install.host_setup import remove
    from phaul.install.ssh import SshHost
    from phaul.trust.spreading import spread

    inventory = Inventory(_config(state_dir).state_dir)
    added = inventory.find(name)
    store = _store(state_dir)
    authority = require_authority(store)
    shown = _Shown(added.name, json_output)
    try:
        with SshHost(parse_target(added.target), login) as host:
            if not force:
                _require_settled(host, added.name)
            remove(host, shown)
    except InstallError as error:
        if not force:
            raise
        shown(Step("files", State.UNCHANGED, f"left on that host: {error.message}"))
    if added.name in authority.hosts() and not authority.hosts()[added.name].revoked:
        authority.revoke(added.name)
        note_in_audit(state_dir, "revoke", host=added.name)
        heard = asyncio.run(spread(store, authority.hosts().values()))
        untold = [other for other, error in heard.items() if error]
        note = f"not told yet: {', '.join(untold)}; they ask every minute" if untold else "all others know"
        shown(Step("certificate", State.DONE, f"revoked; {note}"))
    inventory.drop(added.name)
    if json_output:
        print_object({"event": "host_removed", "host": added.name, "exit_status": 0})
    return 0


def _require_settled(host: Any, name: str) -> None:
    done = host.run("PATH=/usr/local/bin:/usr/bin:/bin; phaul status --json")
    open_ones = [
        each["migration_id"]
        for each in _objects(done.output)
        if each.get("event") == "migration" and (each.get("outcome") in ("running", "in_doubt") or each.get("loading"))
    ]
    if open_ones:
        raise UsageError(
            f"{name} takes part in migrations that are not settled: {', '.join(open_ones)}",
            hint="Without its agent nobody can settle them. `phaul status` there tells. --force removes it "
            "all the same.",
        )


def _objects(lines: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for line in lines.splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def _list(state_dir: Path | None, json_output: bool) -> int:
    store = _store(state_dir)
    hosts = list(Inventory(_config(state_dir).state_dir).hosts().values())
    answers = asyncio.run(_ask_all(store, hosts)) if hosts else {}
    if json_output:
        for host in hosts:
            error = answers[host.name]
            print_object(
                {
                    "event": "host",
                    "name": host.name,
                    "target": host.target,
                    "port": host.port,
                    "version": host.version,
                    "answers": error is None,
                    "error": error_object(error) if error else None,
                }
            )
        return 0
    console = make_console()
    if not hosts:
        console.print("No host was added from here. `phaul host add root@HOST` adds one.")
        return 0
    table = Table(box=None, pad_edge=False)
    for title in ("HOST", "LOG IN", "PHAUL", "AGENT"):
        table.add_column(title)
    for host in hosts:
        error = answers[host.name]
        version = host.version if host.version == __version__ else f"{host.version}: `phaul host upgrade`"
        table.add_row(
            clean(host.name), clean(host.target), clean(version), clean(error.message) if error else "answers"
        )
    console.print(table)
    return 0


async def _ask_all(store: Any, hosts: Sequence[AddedHost]) -> dict[str, PhaulError | None]:
    from phaul.trust.connections import dial

    async def ask(host: AddedHost) -> PhaulError | None:
        try:
            connection = await dial(store, host.name, host.port)
            await connection.stream.close()
        except PhaulError as error:
            return error
        return None

    return dict(zip([host.name for host in hosts], await asyncio.gather(*map(ask, hosts)), strict=True))


def _config(state_dir: Path | None) -> AgentConfig:
    typed: dict[str, Any] = {"state_dir": state_dir} if state_dir else {}
    return AgentConfig(**typed)


def _store(state_dir: Path | None) -> Any:
    from phaul.agent.trust import trust_directory
    from phaul.trust.store import TrustStore

    return TrustStore(trust_directory(_config(state_dir)))
