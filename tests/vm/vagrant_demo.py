"""`make vagrant-demo` where there is no Vagrant: its scripts, on two bare machines of the lab."""

from __future__ import annotations

import os

from phaul.lab.cluster import Lab

from .bare import INSTALL_SECONDS, ROOT, bare_lab, know

PYTHON = "/opt/phaul/venv/bin/python"


def run_script(lab: Lab, name: str, *arguments: str) -> str:
    """Run a script of vagrant/ on the client; gives what it prints."""
    source = ROOT / "vagrant" / name
    target = lab.client.path(f"/root/{name}")
    target.write_bytes(source.read_bytes())
    interpreter = PYTHON if name.endswith(".py") else "/bin/sh"
    argv = [interpreter, f"/root/{name}", *arguments]
    return lab.client.exec(argv, timeout_seconds=2 * INSTALL_SECONDS).stdout


def main() -> None:
    """Bring the machines up, make them ready, move a server there and back."""

    def say(line: str) -> None:
        print(line, flush=True)

    say("Two virtual machines, emulated: this takes some minutes")
    with bare_lab(f"vagrant-demo-{os.getpid()}", say) as lab:
        for host in lab.machines:
            know(lab, host)
        say(run_script(lab, "provision.sh", "/nowhere", *(host.name for host in lab.machines)))
        say(run_script(lab, "demo.py"))


if __name__ == "__main__":
    main()
