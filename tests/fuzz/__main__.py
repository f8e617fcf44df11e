"""Fuzz: `python -m tests.fuzz` for 10 minutes a surface (`--seconds`), or the surfaces that are named.

Each surface runs in a process of its own. Inputs that reached new code stay in .cache/fuzz/SURFACE, from where the next
run goes on; findings stay in .cache/fuzz/findings. `SURFACE --add FILE...` puts inputs into the corpus that the tests
keep, which `make test` goes through; `--keep` does so with the short ones of the cache.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path

from tests.fuzz.sandbox import DIRECTORY, Sandbox

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "fuzz"
SURFACES = {
    "images": ("transfer_surfaces", "Images"),
    "pages": ("transfer_surfaces", "Pages"),
    "sealed": ("transfer_surfaces", "Sealed"),
    "peer": ("rpc_surfaces", "Peer"),
    "person": ("rpc_surfaces", "People"),
    "trust": ("trust_surfaces", "Trust"),
    "ports": ("trust_surfaces", "Ports"),
}
MINUTES = 10
LARGEST_KEPT_BYTES = 1024  # of an input that `--keep` puts into the corpus
MOST_KEPT = 100  # of them, the longest, which reach most: a checkout is no place for thousands


def run_one(surface: str, seconds: float, seed: int, coverage: bool) -> int:
    """Fuzz one surface in this process; 1 for a finding."""
    from tests.fuzz import corpus_files, engines

    findings = CACHE / "findings" / surface
    module, name = SURFACES[surface]
    if coverage:
        import atheris

        with atheris.instrument_imports(include=["phaul"], exclude=["phaul.rpc"]):
            kind = getattr(import_module(f"tests.fuzz.{module}"), name)
    else:
        kind = getattr(import_module(f"tests.fuzz.{module}"), name)
    sandbox = Sandbox()
    target = kind(sandbox)

    def take(data: bytes) -> None:
        sandbox.begin()
        try:
            target.take(data)
            sandbox.end()
        finally:
            sandbox.stop()
            sandbox.reset()

    corpus = list(dict.fromkeys([*kind.seeds(), *corpus_files.load(surface)]))
    if coverage:
        inputs = CACHE / surface
        for data in corpus:
            corpus_files.keep(inputs, data)
        engines.libfuzzer(take, inputs, int(seconds), seed, findings)
    try:
        count, finding = engines.mutate(take, corpus, seconds, seed, findings)
    finally:
        sandbox.remove()
    print(f"{surface}: {count} inputs, {f'a finding: {finding}' if finding else 'no finding'}", flush=True)
    return 1 if finding else 0


def run_all(surfaces: list[str], seconds: float, seed: int, jobs: int, coverage: bool) -> int:
    """Each in a process of its own; 1 where there was a finding."""

    def one(surface: str) -> tuple[str, int, str, float]:
        began = time.monotonic()
        argv = [sys.executable, "-m", "tests.fuzz", "--one", "--seconds", str(seconds), "--seed", str(seed), surface]
        log = CACHE / f"{surface}.log"
        CACHE.mkdir(parents=True, exist_ok=True)
        with log.open("w") as file, tempfile.TemporaryDirectory(prefix="phaul-fuzz-", dir="/dev/shm") as directory:
            status = subprocess.run(
                [*argv, *([] if coverage else ["--plain"])],
                cwd=ROOT,
                env={**os.environ, DIRECTORY: directory},
                stdout=file,
                stderr=file,
                check=False,
            ).returncode
        return surface, status, log.read_text(errors="replace"), time.monotonic() - began

    failed = 0
    with ThreadPoolExecutor(jobs) as pool:
        for surface, status, text, took in pool.map(one, surfaces):
            failed |= status != 0
            told = [line for line in text.splitlines() if "number_of_executed" in line or "peak_rss" in line]
            print(f"{surface}: {'a finding' if status else 'no finding'} in {took:.0f} s; {' '.join(told)}", flush=True)
            if status:
                print(text[-6000:], flush=True)
    return failed


def keep(surfaces: list[str]) -> int:
    """Put what has reached new code into the corpus, as far as it is short."""
    from tests.fuzz import corpus_files

    for surface in surfaces:
        found = sorted((path.read_bytes() for path in (CACHE / surface).iterdir()), key=lambda data: (len(data), data))
        short = [data for data in found if len(data) <= LARGEST_KEPT_BYTES]
        print(f"{surface}: {corpus_files.add(surface, 'reached more code', short[-MOST_KEPT:])} added")
    return 0


def main() -> int:
    """As the module's docstring says."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("surfaces", nargs="*", metavar="SURFACE", help=f"of {', '.join(SURFACES)}; default: all")
    parser.add_argument("--seconds", type=float, default=float(os.environ.get("FUZZ_SECONDS", MINUTES * 60)))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1, help="surfaces at a time")
    parser.add_argument("--plain", action="store_true", help="without coverage")
    parser.add_argument("--one", action="store_true", help="in this process")
    parser.add_argument("--keep", action="store_true", help="put what has reached new code into the corpus")
    parser.add_argument("--add", nargs="+", type=Path, metavar="FILE", help="put inputs into the corpus of SURFACE")
    arguments = parser.parse_args()
    surfaces = arguments.surfaces or list(SURFACES)
    if unknown := set(surfaces) - set(SURFACES):
        parser.error(f"there is no surface {', '.join(unknown)}")
    if arguments.add:
        from tests.fuzz import corpus_files

        corpus_files.add(surfaces[0], "brought a finding", [path.read_bytes() for path in arguments.add])
        return 0
    if arguments.keep:
        return keep(surfaces)
    from tests.fuzz.engines import has_coverage

    coverage = has_coverage() and not arguments.plain
    if arguments.one:
        return run_one(surfaces[0], arguments.seconds, arguments.seed, coverage)
    if not coverage and not arguments.plain:
        print("atheris is not there: inputs are made without looking at what they reach")
    return run_all(surfaces, arguments.seconds, arguments.seed, arguments.jobs, coverage)


if __name__ == "__main__":
    sys.exit(main())
