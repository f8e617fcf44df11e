"""Quantities as a person reads them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phaul.units import (
    GIB,
    KIB,
    LOWEST_BANDWIDTH,
    MIB,
    format_bandwidth,
    format_bytes,
    format_rate,
    format_seconds,
    format_us,
    parse_bandwidth,
)

BYTES = {"B": 1, "KiB": KIB, "MiB": MIB, "GiB": GIB, "TiB": 1024 * GIB}
SECONDS = {"µs": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1, "1 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (271 * MIB, "271 MiB"),
        (1.5 * GIB, "1.5 GiB"),
        (MIB - 1, "1.0 MiB"),
        (1023 * KIB, "1023 KiB"),
        (10 * MIB - 1, "10 MiB"),
        (3000 * 1024 * GIB, "3000 TiB"),
    ],
)
def test_bytes(count: float, text: str) -> None:
    assert format_bytes(count) == text
    assert format_rate(count) == f"{text}/s"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 µs"),
        (0.00085, "850 µs"),
        (0.00099999, "1.0 ms"),
        (0.0012, "1.2 ms"),
        (0.009999, "10 ms"),
        (0.012, "12 ms"),
        (0.9999, "1.00 s"),
        (1.25, "1.25 s"),
        (9.999, "10.0 s"),
        (12.34, "12.3 s"),
        (59.99, "1 min 00 s"),
        (184, "3 min 04 s"),
        (3599.9, "1 h 00 min"),
        (7500, "2 h 05 min"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text
    assert format_us(seconds * 1e6) == text


@given(st.integers(0, 2**49))
def test_bytes_are_right_to_a_twentieth_and_short(count: int) -> None:
    value, unit = format_bytes(count).split(" ")
    assert float(value) * BYTES[unit] == pytest.approx(count, rel=0.05)
    assert len(value) <= 4
    assert unit in ("B", "TiB") or float(value) < 1024


@given(st.floats(1e-4, 1e6))
def test_durations_are_right_to_a_twentieth_and_in_the_unit_that_fits(seconds: float) -> None:
    parts = re.findall(r"([\d.]+) (\S+)", format_seconds(seconds))
    assert sum(float(value) * SECONDS[unit] for value, unit in parts) == pytest.approx(seconds, rel=0.05)
    value, unit = parts[0]
    assert float(value) < {"µs": 1000, "ms": 1000, "s": 60, "min": 60, "h": float("inf")}[unit]
    assert all(float(value) < 60 for value, _ in parts[1:])


@given(st.floats(0, 1e6), st.floats(0, 1e6))
def test_more_never_reads_as_less(one: float, other: float) -> None:
    def read(seconds: float) -> float:
        found = re.findall(r"([\d.]+) (\S+)", format_seconds(seconds))
        return sum(float(value) * SECONDS[unit] for value, unit in found)

    less, more = sorted((one, other))
    assert read(less) <= read(more) * (1 + 1e-9)


@pytest.mark.parametrize(
    ("typed", "bytes_per_second"),
    [
        ("200M", 25_000_000),
        ("200m", 25_000_000),
        ("1G", 125_000_000),
        ("1.5Gbit/s", 187_500_000),
        ("100Mb/s", 12_500_000),
        ("100Mbps", 12_500_000),
        ("1000000", 125_000),
        ("25MB/s", 25_000_000),
        ("25 MB", 25_000_000),
        ("25MiB/s", 25 * MIB),
        (" 2GB/s ", 2_000_000_000),
        ("10000k", 1_250_000),
    ],
)
def test_a_bandwidth_is_bits_unless_it_says_bytes(typed: str, bytes_per_second: int) -> None:
    assert parse_bandwidth(typed) == bytes_per_second


@pytest.mark.parametrize(
    "typed", ["", "fast", "-1G", "0", "999k", "1Gi", "1 G B", "1e9", "1G/h", "٣G", "1G\n1G", "99999999999T", "0.1MB/s"]
)
def test_what_is_no_bandwidth(typed: str) -> None:
    with pytest.raises(ValueError, match=r"bandwidth|between"):
        parse_bandwidth(typed)


@given(st.integers(LOWEST_BANDWIDTH, 10**12))
def test_a_bandwidth_that_was_told_can_be_typed_again(bytes_per_second: int) -> None:
    again = parse_bandwidth(format_bandwidth(bytes_per_second))
    assert again == pytest.approx(bytes_per_second, rel=0.006)


def test_bandwidths_as_networks_are_rated() -> None:
    assert format_bandwidth(25_000_000) == "200 Mbit/s"
    assert format_bandwidth(125_000_000) == "1 Gbit/s"
    assert format_bandwidth(187_500_000) == "1.5 Gbit/s"
