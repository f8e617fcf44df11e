"""What `phaul dirty-rate` prints, and what it asks the agent for."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from phaul.cli.console import ASCII
from phaul.cli.dirty_rate import ROWS_SHOWN, build_request, dirty_rate_report
from phaul.errors import UsageError
from phaul.rpc.v1.dirty_rate_pb2 import (
    DirtyMapping,
    DirtyMethod,
    DirtyPoint,
    DirtyRate,
    DirtyRateReport,
    DowntimeForecast,
    MemoryKind,
)
from phaul.units import MIB


def shown(report: DirtyRateReport, width: int = 160) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False, markup=False)
    console.print(dirty_rate_report(report, ASCII))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def report(method: DirtyMethod.ValueType = DirtyMethod.DIRTY_METHOD_SOFT_DIRTY, more: int = 0) -> DirtyRateReport:
    mappings = [
        DirtyMapping(kind=MemoryKind.MEMORY_KIND_HEAP, resident_bytes=200 * MIB, dirty_bytes=20 * MIB),
        DirtyMapping(
            kind=MemoryKind.MEMORY_KIND_SHARED_FILE, path="/srv/x\x1b[31m", resident_bytes=MIB, dirty_bytes=MIB
        ),
        DirtyMapping(kind=MemoryKind.MEMORY_KIND_STACK, resident_bytes=MIB),
        *[
            DirtyMapping(kind=MemoryKind.MEMORY_KIND_FILE, path=f"/lib/{n}", resident_bytes=4096, dirty_bytes=4096)
            for n in range(more)
        ],
    ]
    return DirtyRateReport(
        rate=DirtyRate(
            root_pid=4711,
            command="redis-server",
            processes=2,
            method=method,
            interval_us=2_000_000,
            memory_bytes=201 * MIB,
            dirty_bytes=20 * MIB,
            uncertainty_bytes=2 * MIB if method == DirtyMethod.DIRTY_METHOD_SAMPLING else 0,
            pages_watched=51_456,
            mappings=mappings,
            curve=[
                DirtyPoint(interval_us=200_000, dirty_bytes=5 * MIB),
                DirtyPoint(interval_us=2_000_000, dirty_bytes=20 * MIB),
            ],
        ),
        dirty_bytes_per_second=10 * MIB,
    )


def with_forecast(**fields: object) -> DirtyRateReport:
    known = report()
    values: dict[str, object] = {
        "destination": "b:7428",
        "bytes_per_second": 110 * MIB,
        "link_source": "assumed: the speed of eth0",
        "max_downtime_us": 500_000,
        "stop_and_copy_us": 2_100_000,
        "pre_copy_us": 180_000,
        "pre_copy_fits": True,
        "rounds": 3,
    }
    known.forecast.CopyFrom(DowntimeForecast(**(values | fields)))  # type: ignore[arg-type]
    return known


def test_an_exact_measurement() -> None:
    text = shown(report())
    assert "It writes to 10 MiB/s: 20 MiB of distinct pages in 2.00 s" in text
    assert "exact" in text and "estimate" not in text
    assert "2 processes, 201 MiB of memory" in text
    assert "5.0 MiB in 200 ms, 20 MiB in 2.00 s" in text
    assert "\x1b[31m" not in text
    assert "(does not travel)" in text


def test_an_estimate_says_so_and_how_sure_it_is() -> None:
    text = shown(report(DirtyMethod.DIRTY_METHOD_SAMPLING))
    assert "give or take 1.0 MiB/s" in text
    assert "an estimate: 51456 pages chosen at random" in text


def test_a_long_table_is_cut_and_says_so() -> None:
    text = shown(report(more=20))
    assert f"{23 - ROWS_SHOWN} other mappings" in text
    assert "1 other mapping, 1.0 MiB: not written to" in shown(report())


def test_a_forecast_that_fits() -> None:
    text = shown(with_forecast())
    assert "stop-and-copy  about 2.10 s" in text
    assert "pre-copy       about 180 ms after 3 rounds" in text
    assert "fits the 500 ms wished for" in text
    assert "assumed, as nothing has moved there yet" in text


def test_a_forecast_that_does_not_fit_says_what_would() -> None:
    text = shown(with_forecast(pre_copy_fits=False, pre_copy_us=900_000, hint="What would do: x.", learnt_from=4))
    assert "about 900 ms, more than the 500 ms wished for" in text
    assert "What would do: x." in text
    assert "learnt from 4 earlier migrations" in text


def test_hosts_that_cannot_pre_copy() -> None:
    assert "not possible: a's kernel cannot" in shown(with_forecast(pre_copy_hindrance="a's kernel cannot"))


def test_a_workload_that_would_be_refused_is_measured_all_the_same() -> None:
    text = shown(with_forecast(refusal="A path is missing on b."))
    assert "as things stand it would be refused: A path is missing on b." in text
    assert "about 180 ms" in text


def test_what_is_asked_for() -> None:
    request = build_request(4711, 3.0, "b.example", "200ms")
    assert (request.destination, request.seconds, request.max_downtime_seconds) == ("b.example:7428", 3.0, 0.2)
    assert build_request(4711, 3.0, "", "0").destination == ""
    with pytest.raises(UsageError, match="--max-downtime"):
        build_request(4711, 3.0, "", "soon")
    with pytest.raises(UsageError):
        build_request(4711, 3.0, "b:port", "0")
