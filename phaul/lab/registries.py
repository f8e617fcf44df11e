"""How this machine gets packages: where its apt and its pip are told to look, so that the image is made likewise.

Called by `phaul.lab.image`. Only reads the machine's configuration. No registry is named here: without a configured
one there is no image.
"""

from __future__ import annotations

import ast
import os
import re
import sys
from pathlib import Path

from phaul.errors import LabError
from phaul.lab import commands

MIRROR_VARIABLE = "PHAUL_LAB_MIRROR"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
OS_RELEASE = Path("/etc/os-release")

# What may stand between apt and its mirror; the rest of the machine's apt configuration is no business of the image.
_APT_OPTION = re.compile(r'^Acquire::(\w+::(Proxy|Proxy::\S+|CaInfo|CaPath|Verify-\w+)|Check-Date|Retries) "[^"]+";$')
_RELEASE_FILE = re.compile(r"^'([^']+)/dists/([^/']+)/(?:In)?Release'")
_CERTIFICATE_DIRECTORIES = ("/etc/ssl/certs", "/usr/share/ca-certificates", "/usr/local/share/ca-certificates")
_NETWORK_FILES = ("/etc/resolv.conf", "/etc/hosts")
_PASSED_VARIABLES = re.compile(
    r"PIP_(?!CONFIG_FILE$|TARGET$|PREFIX$|ROOT$|USER$)\w+|(https?|no|all)_proxy"
    r"|SSL_CERT_(FILE|DIR)|REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE",
    re.IGNORECASE,
)


def debian_mirror() -> str:
    """The address of the Debian mirror that apt uses on this machine."""
    chosen = os.environ.get(MIRROR_VARIABLE, "")
    if chosen:
        return chosen
    release = dict(line.partition("=")[::2] for line in OS_RELEASE.read_text().splitlines())
    codename = release.get("VERSION_CODENAME", "").strip('"')
    # Prints what would be fetched, without fetching: the lists need not be there.
    for line in commands.run([commands.find("apt-get"), "--print-uris", "update"]).stdout.splitlines():
        found = _RELEASE_FILE.match(line)
        if found and found.group(2) == codename:
            return found.group(1)
    raise LabError(
        "No Debian mirror is configured for this machine's apt.",
        hint=f"Name one in the variable {MIRROR_VARIABLE}.",
    )


def apt_options() -> list[str]:
    """The machine's settings of proxies and certificates, one line of apt's configuration each."""
    dump = commands.run([commands.find("apt-config"), "dump", "Acquire"]).stdout
    return [line for line in dump.splitlines() if _APT_OPTION.match(line)]


def pip_environment() -> dict[str, str]:
    """The variables of this process that tell pip, and the TLS under it, where and how to fetch."""
    return {name: value for name, value in os.environ.items() if _PASSED_VARIABLES.fullmatch(name)}


def pip_configuration() -> str:
    """What pip is configured with on this machine, all its files merged, as the text of one file."""
    listing = commands.run([sys.executable, "-m", "pip", "config", "list"], check=False)
    sections: dict[str, list[str]] = {}
    for line in listing.stdout.splitlines():
        name, _, value = line.partition("=")
        section, _, key = name.rpartition(".")
        if not section or section.startswith(":env:"):
            continue
        # pip prints values as Python literals; lines of a list are indented in the file.
        text = str(ast.literal_eval(value)).strip().replace("\n", "\n    ")
        sections.setdefault(section, []).append(f"{key} = {text}")
    return "".join(f"[{section}]\n" + "\n".join(lines) + "\n" for section, lines in sections.items())


def pip_paths(configuration: str) -> list[Path]:
    """The files and directories of this machine that pip has to see under the same path in the image."""
    words = configuration.split()
    for value in pip_environment().values():
        words += value.split()
    named = [Path(word.removeprefix("file://")) for word in words if word.startswith(("/", "file:///"))]
    wanted = [Path(path) for path in (*_CERTIFICATE_DIRECTORIES, *_NETWORK_FILES)]
    for path in named:
        # An index in a directory ("…/simple") often points to files beside it.
        wanted.append(path.parent if path.name == "simple" and len(path.parent.parts) > 2 else path)
    chosen: list[Path] = []
    for path in sorted({path for path in wanted if path.exists()}):
        if not any(path.is_relative_to(other) for other in chosen):
            chosen.append(path)
    return chosen
