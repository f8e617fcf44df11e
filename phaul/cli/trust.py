"""`phaul trust`: the certificates with which hosts know each other. What it does is in `phaul.trust`; this shows it."""

from __future__ import annotations

import datetime
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from phaul.cli.console import clean, make_console
from phaul.cli.machine import print_object
from phaul.cli.options import JsonOption
from phaul.cli.run import run_command
from phaul.config import DEFAULT_PEER_PORT, AgentConfig
from phaul.errors import PhaulError, UsageError

app = typer.Typer(
    no_args_is_help=True,
    help="Certificates: which hosts trust each other.",
    epilog=f"""[bold]Examples[/]

phaul trust init                           on the host that shall be the authority

phaul trust issue b.example                 and copy the files to that host, as it says

phaul trust revoke b.example

phaul trust show

Agents renew their certificates by themselves. The port of an agent is {DEFAULT_PEER_PORT} where nothing else is said.
""",
)

StateDir = Annotated[
    Path | None,
    typer.Option("--state-dir", metavar="PATH", help="The agent's state directory; the files are in trust/."),
]
Also = Annotated[
    list[str] | None,
    typer.Option("--also", metavar="NAME", help="Another name or address of that host. Default: its addresses."),
]
Port = Annotated[int, typer.Option(metavar="N", min=1, max=65535, help="Where that host's agent listens.")]


@app.command()
def init(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="This host's name. Default: its own.")] = None,
    also: Also = None,
    port: Port = DEFAULT_PEER_PORT,
    state_dir: StateDir = None,
) -> None:
    """Make this host the authority, and give it a certificate."""
    run_command(_init(name or socket.gethostname(), also, port, state_dir))


@app.command()
def issue(
    host: Annotated[str, typer.Argument(metavar="HOST", help="Its name, as others type it after --to.")],
    also: Also = None,
    port: Port = DEFAULT_PEER_PORT,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where to put the files. Default: HOST.trust, here.")
    ] = None,
    state_dir: StateDir = None,
) -> None:
    """Make a certificate for a host; on the authority's host."""
    run_command(_issue(host, also, port, out, state_dir))


@app.command()
def revoke(
    host: Annotated[str, typer.Argument(metavar="HOST", help="Whose certificates are no more trusted.")],
    json_output: JsonOption = False,
    state_dir: StateDir = None,
) -> None:
    """Trust a host no more, and tell the others; on the authority's host."""
    run_command(_revoke(host, json_output, state_dir), json_output=json_output)


@app.command()
def rotate(
    finish: Annotated[bool, typer.Option("--finish", help="Stop trusting the older root.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Also where hosts would be cut off.")] = False,
    json_output: JsonOption = False,
    state_dir: StateDir = None,
) -> None:
    """Begin with a new root; both are trusted until --finish. On the authority's host."""
    work = _finish(yes, json_output, state_dir) if finish else _rotate(json_output, state_dir)
    run_command(work, json_output=json_output)


@app.command()
def show(json_output: JsonOption = False, state_dir: StateDir = None) -> None:
    """Show what this host is to others and whom it trusts; on the authority's host also all the others."""
    run_command(_show(json_output, state_dir), json_output=json_output)


async def _init(name: str, also: Sequence[str] | None, port: int, state_dir: Path | None) -> int:
    from phaul.agent.wiring import own_addresses
    from phaul.trust.authority import Authority

    store = _store(state_dir)
    if also is None:
        also = await own_addresses()
    Authority(store).create(name, port, also)
    note_in_audit(state_dir, "init", host=name)
    console = make_console()
    console.print(f"This host is the authority now, and has a certificate for {store.current().names}.")
    console.print(f"Keep {store.directory}/authority to yourself: who has it can make certificates for anyone.")
    console.print("Next: `phaul trust issue HOST` for each other host. Then start, or restart, the agents.")
    return 0


async def _issue(host: str, also: Sequence[str] | None, port: int, out: Path | None, state_dir: Path | None) -> int:
    from phaul.trust.authority import Authority
    from phaul.trust.store import TrustStore

    store = _store(state_dir)
    if also is None:
        also = _addresses_of(host)
    pem, trust_list = Authority(store).issue(host, port, also)
    note_in_audit(state_dir, "issue", host=host, also=list(also))
    target = TrustStore(out or Path(f"{host}.trust"))
    target.put_host(pem)
    target.put_list(trust_list)
    console = make_console()
    console.print(f"{target.directory} is what {host} needs: its key, its certificate for {target.current().names}.")
    console.print(
        f"Copy it: scp -p {target.host_file} {target.list_file} root@{host}:{store.directory}/ "
        f"(make that directory first, mode 0700), delete it here, and start the agent there.",
        soft_wrap=True,
    )
    return 0


async def _revoke(host: str, json_output: bool, state_dir: Path | None) -> int:
    from phaul.trust.authority import Authority

    authority = Authority(_store(state_dir))
    record = authority.revoke(host)
    note_in_audit(state_dir, "revoke", host=record.name)
    if not json_output:
        make_console().print(f"{record.name} is no more trusted. Certificates revoked: {len(record.certificates)}.")
    return await _tell(state_dir, json_output, {"event": "revoked", "host": record.name})


async def _rotate(json_output: bool, state_dir: Path | None) -> int:
    from phaul.trust.authority import Authority

    Authority(_store(state_dir)).rotate()
    note_in_audit(state_dir, "rotate")
    if not json_output:
        make_console().print(
            "There is a new root. Agents renew with it by themselves; then `phaul trust rotate --finish`."
        )
    return await _tell(state_dir, json_output, {"event": "rotated"})


async def _finish(yes: bool, json_output: bool, state_dir: Path | None) -> int:
    from phaul.trust.authority import Authority

    authority = Authority(_store(state_dir))
    behind = [each.name for each in authority.laggards()]
    if behind and not yes:
        raise UsageError(
            f"certificates of the older root are still in use: {', '.join(behind)}",
            hint="Their agents renew within two minutes where they run and reach this one. --yes cuts them off.",
        )
    authority.finish_rotation()
    note_in_audit(state_dir, "rotate_finish", cut_off=behind)
    if not json_output:
        make_console().print("The older root is no more trusted.")
    return await _tell(state_dir, json_output, {"event": "rotation_finished"})


async def _tell(state_dir: Path | None, json_output: bool, event: dict[str, Any]) -> int:
    """Tell the other hosts; 1 where one could not be told, which then hears it by asking."""
    from phaul.trust.authority import Authority
    from phaul.trust.spreading import spread

    store = _store(state_dir)
    heard: Mapping[str, PhaulError | None] = await spread(store, Authority(store).hosts().values())
    if json_output:
        print_object({**event, "told": {name: error.message if error else "" for name, error in heard.items()}})
    else:
        for name, error in heard.items():
            reason = (
                f"not told: {error.message}. It asks every minute while this host's agent runs" if error else "told"
            )
            make_console().print(f"{name}: {clean(reason)}.", soft_wrap=True)
    return 1 if any(heard.values()) else 0


async def _show(json_output: bool, state_dir: Path | None) -> int:
    from phaul.trust.authority import Authority
    from phaul.trust.certificates import fingerprint

    store = _store(state_dir)
    if not store.exists():
        raise UsageError(
            f"this host has no files of trust in {store.directory}",
            hint="`phaul trust init` makes it the authority, `phaul trust issue HOST` on the authority gives it some.",
        )
    trust = store.current()
    authority = Authority(store)
    hosts = authority.hosts().values() if authority.is_here else ()
    facts = {
        "event": "trust",
        "names": [*trust.names.hosts, *trust.names.addresses],
        "until": trust.ends.isoformat(),
        "of_newest_root": trust.is_of_newest_root,
        "roots": [fingerprint(root) for root in trust.list.roots],
        "list": trust.list.number,
        "authority": list(trust.list.authority),
        "authority_is_here": authority.is_here,
        "revoked": sorted(trust.list.revoked),
        "hosts": [{"name": h.name, "names": list(h.names), "until": h.ends, "revoked": h.revoked} for h in hosts],
    }
    if json_output:
        print_object(facts)
        return 0
    console = make_console()
    table = Table.grid(padding=(0, 2))
    table.add_row("this host", clean(str(trust.names)))
    older = "" if trust.is_of_newest_root else ", from the older root: it is renewed soon"
    table.add_row("until", f"{trust.ends:%Y-%m-%d %H:%M} UTC{older}")
    for number, root in enumerate(trust.list.roots):
        table.add_row("older root" if number else "root", fingerprint(root)[:32])
    table.add_row("authority", "this host" if authority.is_here else clean(", ".join(trust.list.authority)))
    table.add_row("list", f"{trust.list.number}; certificates revoked: {len(trust.list.revoked)}")
    console.print(table)
    if hosts:
        console.print(_hosts_table(hosts))
    return 0


def _hosts_table(hosts: Any) -> Table:
    table = Table(box=None, pad_edge=False)
    for title in ("HOST", "NAMES", "CERTIFICATE UNTIL"):
        table.add_column(title)
    for host in hosts:
        until = datetime.datetime.fromtimestamp(host.ends, datetime.UTC)
        table.add_row(
            clean(host.name), clean(", ".join(host.names)), "revoked" if host.revoked else f"{until:%Y-%m-%d %H:%M} UTC"
        )
    return table


def _config(state_dir: Path | None) -> AgentConfig:
    typed: dict[str, Any] = {"state_dir": state_dir} if state_dir else {}
    return AgentConfig(**typed)


def _store(state_dir: Path | None) -> Any:
    from phaul.agent.trust import trust_directory
    from phaul.trust.store import TrustStore

    return TrustStore(trust_directory(_config(state_dir)))


def note_in_audit(state_dir: Path | None, act: str, **facts: object) -> None:
    """Write into this host's audit log what a person has done here, without the agent."""
    from phaul.agent.audit import record_of
    from phaul.system.audit_file import append
    from phaul.system.credentials import caller_name

    append(_config(state_dir).audit_path, record_of(f"trust.{act}", caller_name(), "done", **facts))


def _addresses_of(host: str) -> list[str]:
    """What the name stands for, as this host's resolver has it; without loopback, which a hosts file may say."""
    from phaul.trust.certificates import is_loopback_address, plain_address

    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise UsageError(
            f"the name {host!r} has no address here: {error.strerror}",
            hint="Name the addresses that it calls from: --also ADDRESS, more than once if need be.",
        ) from error
    addresses = {plain_address(str(each[4][0])): None for each in found}
    return [address for address in addresses if address and not is_loopback_address(address)]
