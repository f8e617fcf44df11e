"""Two ways to make inputs: libFuzzer, which sees what code an input reaches (atheris), and plain mutation.

atheris has wheels for some Pythons and processors only, so `make test` does without it, and `make fuzz` as well where
it is missing. Either way an input that brings a finding is kept in a file, and its path printed.
"""

from __future__ import annotations

import faulthandler
import importlib.util
import random
import resource
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.fuzz.corpus_files import keep

LONGEST_BYTES = 16 * 1024
HANG_SECONDS = 60
MEMORY_BYTES = 8 << 30  # of address space, for plain mutation; threads reserve much and use little
RESIDENT_MIB = 1024  # for libFuzzer
MALLOC_MIB = 256
INTERESTING = (b"\0", b"\xff", b"..", b"/", b"\x7f\xff\xff\xff", b"\xff" * 8, b"\0" * 8, b"\x80", b"\1")


def has_coverage() -> bool:
    """Whether atheris is there."""
    return importlib.util.find_spec("atheris") is not None


def mutate(
    take: Callable[[bytes], None], corpus: Sequence[bytes], seconds: float, seed: int, findings: Path
) -> tuple[int, Path | None]:
    """Every input of the corpus once, then mutations of them; give how many inputs, and where a finding was kept."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    dice = random.Random(seed)
    ends = time.monotonic() + seconds
    count = 0
    inputs = [*corpus]
    while count < len(inputs) or time.monotonic() < ends:
        data = inputs[count] if count < len(inputs) else mutated(dice, inputs)
        faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
        try:
            take(data)
        except BaseException:  # noqa: BLE001 - whatever it is, it is a finding
            traceback.print_exc()
            return count, keep(findings, data)
        count += 1
    faulthandler.cancel_dump_traceback_later()
    return count, None


def mutated(dice: random.Random, corpus: Sequence[bytes]) -> bytes:
    """Change one of the inputs in up to eight places."""
    data = bytearray(dice.choice(corpus))
    for _ in range(dice.randint(1, 8)):
        at = dice.randint(0, len(data))
        match dice.randrange(7):
            case 0 if data:
                data[at % len(data)] ^= 1 << dice.randrange(8)
            case 1 if data:
                data[at % len(data)] = dice.randrange(256)
            case 2:
                data[at:at] = dice.choice(INTERESTING)
            case 3:
                del data[at : at + dice.randint(1, 1 + len(data) // 4)]
            case 4:
                data[at:at] = data[at : at + dice.randint(1, 64)]
            case 5:
                other = dice.choice(corpus)
                start = dice.randint(0, len(other))
                data[at:at] = other[start : start + dice.randint(1, 256)]
            case _:
                data[at : at + 8] = dice.choice(INTERESTING)
    return bytes(data[:LONGEST_BYTES])


def libfuzzer(take: Callable[[bytes], None], inputs: Path, seconds: int, seed: int, findings: Path) -> None:
    """Never returns: the exit status says whether there was a finding. What reaches new code is added to `inputs`."""
    import atheris

    findings.mkdir(parents=True, exist_ok=True)
    options: dict[str, object] = {
        "max_total_time": seconds,
        "max_len": LONGEST_BYTES,
        "timeout": HANG_SECONDS,
        "rss_limit_mb": RESIDENT_MIB,
        "malloc_limit_mb": MALLOC_MIB,
        "artifact_prefix": f"{findings}/",
        "print_final_stats": 1,
        "verbosity": 0,
        "seed": seed,
    }
    atheris.Setup([sys.argv[0], *(f"-{name}={value}" for name, value in options.items()), str(inputs)], take)
    atheris.Fuzz()
