"""Quantities as a person reads and types them. Imported everywhere; does no I/O.

Internally a quantity is a plain number whose unit stands in its name (`_bytes`, `_seconds`, `_us`); these functions
stand only where such a number meets a person.
"""

from __future__ import annotations

import re

LOWEST_BANDWIDTH = 125_000  # bytes a second: a migration at less than 1 Mbit/s would not end
BANDWIDTH_UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4}
BINARY_UNITS = {"ki": 1024, "mi": 1024**2, "gi": 1024**3, "ti": 1024**4}

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB


def format_bytes(count: float) -> str:
    """Give a byte count in binary units with at most four significant characters, e.g. ``271 MiB`` or ``1.5 GiB``."""
    for unit, size in (("TiB", 1024 * GIB), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if count >= size - size / 2048:  # what would be rounded to 1024 of the unit below is 1.0 of this one
            value = count / size
            return f"{value:.1f} {unit}" if value < 9.95 else f"{value:.0f} {unit}"
    return f"{count:.0f} B"


def format_rate(bytes_per_second: float) -> str:
    """Give a transfer rate, e.g. ``1.2 GiB/s``."""
    return f"{format_bytes(bytes_per_second)}/s"


def format_bandwidth(bytes_per_second: float) -> str:
    """Give a bandwidth as networks are rated, in bits and powers of ten: ``200 Mbit/s``, ``1.5 Gbit/s``."""
    bits = bytes_per_second * 8
    unit, size = ("Gbit/s", 1e9) if bits >= 0.9995e9 else ("Mbit/s", 1e6)
    value = bits / size
    return f"{value:.3g} {unit}" if value < 999.5 else f"{value:.0f} {unit}"


def format_seconds(seconds: float) -> str:
    """Give a duration with a unit that fits: ``850 µs``, ``12 ms``, ``1.25 s``, ``3 min 04 s``, ``2 h 05 min``."""
    # Each limit is where rounding would reach the next unit, or a digit too many.
    if seconds < 0.0009995:
        return f"{seconds * 1e6:.0f} µs"
    if seconds < 0.9995:
        return f"{seconds * 1e3:.0f} ms" if seconds >= 0.00995 else f"{seconds * 1e3:.1f} ms"
    if seconds < 59.95:
        return f"{seconds:.2f} s" if seconds < 9.995 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def format_us(microseconds: float) -> str:
    """Give a duration in microseconds as `format_seconds` does."""
    return format_seconds(microseconds / 1e6)


def parse_seconds(text: str) -> float:
    """Read a duration that was typed: ``800ms``, ``2s``, ``5m``, ``1h``; without a unit, seconds; else ValueError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h)?", text.strip(), re.ASCII)
    if match is None:
        raise ValueError(f"{text!r} is no duration; write for example 800ms, 2s or 5m")
    return float(match[1]) * {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}[match[2] or "s"]


def parse_bandwidth(text: str) -> int:
    """Read a bandwidth that was typed, in bytes a second: ``200M`` and ``1Gbit/s`` are bits, ``25MB/s`` is bytes.

    Raises ValueError for anything else and for less than 1 Mbit/s.
    """
    match = re.fullmatch(
        r"(?P<number>\d+(?:\.\d+)?) ?(?:(?P<bits>[kKmMgGT]?)(?:b|bit)?|(?P<bytes>(?:[kKMGT]i?)?)B)(?:/s|ps)?",
        text.strip(),
        re.ASCII,
    )
    if match is None:
        raise ValueError(f"{text!r} is no bandwidth; write for example 200M or 1Gbit/s (bits), or 25MB/s (bytes)")
    if match["bytes"] is None:
        value = float(match["number"]) * BANDWIDTH_UNITS[match["bits"].lower()] / 8
    else:
        value = float(match["number"]) * (BANDWIDTH_UNITS | BINARY_UNITS)[match["bytes"].lower()]
    if not LOWEST_BANDWIDTH <= value < 2**63:
        raise ValueError(f"{text!r} is not between 1 Mbit/s and what a link can carry")
    return round(value)


def parse_size(text: str) -> int:
    """Read an amount of memory that was typed, in bytes: ``512MiB``, ``64 GiB`` or ``2TB``; else ValueError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kKMGT]i?)?B", text.strip(), re.ASCII)
    if match is None:
        raise ValueError(f"{text!r} is no amount of memory; write for example 512MiB or 64GiB")
    return round(float(match[1]) * (BANDWIDTH_UNITS | BINARY_UNITS)[(match[2] or "").lower()])
