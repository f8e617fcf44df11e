"""Action scripts on the hosts of a lab, and what each was told when it ran."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from phaul.lab.host import Host
from phaul.migration.hooks import Stage

DIRECTORY = "/etc/phaul/hooks.d"
LOG = "/run/hooks.log"
# A line for each run, the variables in it apart by tabs: date and all, so that both hosts' can be put in order.
NOTE = (
    f"#!/bin/sh\n{{ date +%s.%N; env | grep -E '^(PHAUL|CRTOOLS)_' | sort; }} | tr '\\n' '\\t' >>{LOG}; echo >>{LOG}\n"
)


def put(host: Host, stage: str, name: str, body: str) -> str:
    """Put an action script on a host; give its path."""
    path = f"{DIRECTORY}/{stage}/{name}"
    file = host.path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(body)
    file.chmod(0o755)
    return path


@contextmanager
def noted(hosts: Sequence[Host], stages: Sequence[Stage] = tuple(Stage)) -> Iterator[None]:
    """Have every run at these stages noted on these hosts; no hook is left afterwards."""
    try:
        for host in hosts:
            for stage in stages:
                put(host, stage, "50-note", NOTE)
        yield
    finally:
        for host in hosts:
            shutil.rmtree(host.path(DIRECTORY), ignore_errors=True)
            host.path(LOG).unlink(missing_ok=True)


def ran(*hosts: Host) -> list[dict[str, str]]:
    """Give what each run was told, in order over all hosts; "at" is when (seconds since 1970)."""
    runs = []
    for host in hosts:
        log = host.path(LOG)
        for line in log.read_text().splitlines() if log.exists() else ():
            at, *variables = line.rstrip("\t").split("\t")
            runs.append({"at": at} | dict(each.split("=", 1) for each in variables))
    return sorted(runs, key=lambda told: float(told["at"]))


def stages(runs: Sequence[dict[str, str]]) -> list[tuple[str, str]]:
    """Give (role, stage) of each."""
    return [(told["PHAUL_ROLE"], told["PHAUL_STAGE"]) for told in runs]
