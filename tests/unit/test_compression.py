"""Frames: what goes in comes out, what is no frame is an error, and neither end holds more than one of them."""

from __future__ import annotations

import os
import random

import pytest
from backports import zstd
from hypothesis import given
from hypothesis import strategies as st

from phaul.errors import TransferError
from phaul.transfer.compression import (
    FAST_LINK,
    FRAME_BYTES,
    FRAME_HEADER,
    WORTH_WHILE,
    Compressibility,
    Compressor,
    choose,
    frame_content,
    frame_sizes,
    measure,
)

RATES = st.floats(1e4, 1e11)
SAMPLES = st.builds(Compressibility, st.floats(1, 1000), st.floats(1e6, 1e10))


@st.composite
def contents(draw: st.DrawFn, most: int = 5000) -> bytes:
    """Anything from noise to nothing but zeros, of at most a frame."""
    noise = random.Random(draw(st.integers(0, 2**16))).randbytes(draw(st.integers(0, most)))
    return (noise + bytes(draw(st.integers(0, most))) + draw(st.binary(min_size=1, max_size=200)))[:FRAME_BYTES]


def take_apart(frame: bytes) -> bytes:
    content, packed = frame_sizes(bytes(frame[: FRAME_HEADER.size]))
    assert len(frame) == FRAME_HEADER.size + packed
    return bytes(frame_content(memoryview(frame)[FRAME_HEADER.size :], content))


@given(st.lists(contents(), min_size=1, max_size=5))
def test_what_goes_in_comes_out(pieces: list[bytes]) -> None:
    compressor = Compressor()
    for piece in pieces:
        frame = compressor.frame(memoryview(piece))
        assert take_apart(frame) == piece
        assert len(frame) <= FRAME_HEADER.size + len(piece)


@pytest.mark.parametrize("content", [bytes(FRAME_BYTES), os.urandom(FRAME_BYTES), b"\0", b"ab" * (FRAME_BYTES // 2)])
def test_a_full_frame_and_a_single_byte(content: bytes) -> None:
    assert take_apart(Compressor().frame(memoryview(content))) == content


@given(contents(), st.data())
def test_a_flipped_bit_is_an_error_or_seen_in_the_content(content: bytes, data: st.DataObject) -> None:
    frame = bytearray(Compressor().frame(memoryview(content)))
    at = data.draw(st.integers(0, 8 * len(frame) - 1))
    frame[at // 8] ^= 1 << at % 8
    stored = len(frame) == FRAME_HEADER.size + len(content)
    try:
        sizes = frame_sizes(bytes(frame[: FRAME_HEADER.size]))
        if len(frame) != FRAME_HEADER.size + sizes[1]:
            return  # the reader waits for what never comes, or reads the rest as another header
        found = bytes(frame_content(memoryview(frame)[FRAME_HEADER.size :], sizes[0]))
    except TransferError:
        return
    assert stored or found == content, "a bit of the frame that means nothing"


@given(st.binary(min_size=1, max_size=300), st.integers(2, FRAME_BYTES))
def test_rubbish_is_an_error(rubbish: bytes, content: int) -> None:
    if len(rubbish) == content:
        return
    try:
        assert len(frame_content(rubbish, content)) == content
    except TransferError as error:
        assert "frame" in error.message


@pytest.mark.parametrize("sizes", [(0, 0), (0, 1), (5, 0), (5, 6), (FRAME_BYTES + 1, 10), (2**32 - 1, 2**32 - 1)])
def test_sizes_that_no_compressor_writes(sizes: tuple[int, int]) -> None:
    with pytest.raises(TransferError, match="frame of"):
        frame_sizes(FRAME_HEADER.pack(*sizes))


@pytest.mark.parametrize("told", [1, 100, FRAME_BYTES - 1])
def test_a_bomb_does_not_go_off(told: int) -> None:
    bomb = zstd.compress(bytes(1 << 26), 1)
    with pytest.raises(TransferError):
        frame_content(bomb, max(told, len(bomb) + 1) if told < FRAME_BYTES - 1 else told)


def test_a_frame_that_wants_a_large_window_is_refused() -> None:
    options: dict[int, int] = {zstd.CompressionParameter.window_log: 27, zstd.CompressionParameter.content_size_flag: 0}
    compressor = zstd.ZstdCompressor(options=options)
    content = bytes(1000)
    packed = compressor.compress(content) + compressor.flush()
    with pytest.raises(TransferError, match="damaged"):
        frame_content(packed, len(content))


def test_a_frame_with_more_behind_it_is_refused() -> None:
    content = bytes(5000)
    frame = Compressor().frame(memoryview(content))
    with pytest.raises(TransferError, match="announced"):
        frame_content(frame[FRAME_HEADER.size :] + b"more", len(content))
    with pytest.raises(TransferError, match="announced"):
        frame_content(frame[FRAME_HEADER.size :], len(content) + 1)
    with pytest.raises(TransferError, match="announced"):
        frame_content(frame[FRAME_HEADER.size : -1], len(content))


def test_a_sample_tells_noise_from_what_repeats() -> None:
    noise = measure([os.urandom(1 << 18)] * 2)
    half = measure([bytes(1 << 17) + os.urandom(1 << 17)] * 2)
    assert noise is not None
    assert half is not None
    assert noise.ratio == 1
    assert 1.9 < half.ratio < 2.1
    assert noise.bytes_per_second > 0
    assert measure([]) is None


@given(RATES, RATES, SAMPLES)
def test_what_is_chosen_at_a_rate_is_chosen_at_every_lower_one(
    one: float, other: float, sample: Compressibility
) -> None:
    slower, faster = sorted((one, other))
    assert choose(slower, sample) or not choose(faster, sample)


@given(RATES, SAMPLES)
def test_what_is_chosen_gains(link: float, sample: Compressibility) -> None:
    """Fast links lose nothing: neither the link nor the processor may make it slower than the link alone."""
    if choose(link, sample):
        assert link * sample.ratio >= link * WORTH_WHILE
        assert sample.bytes_per_second >= link * WORTH_WHILE
        assert link <= FAST_LINK


@given(RATES, SAMPLES)
def test_better_memory_is_never_worse(link: float, sample: Compressibility) -> None:
    better = Compressibility(sample.ratio * 2, sample.bytes_per_second * 2)
    assert choose(link, better) or not choose(link, sample)


def test_the_rule_of_thumb() -> None:
    """What memory of these kinds was measured to do with zstd -1 on one core, at 1 Gbit/s, at 400 MB/s and above."""
    gigabit, text, heap = 117e6, Compressibility(3.3, 450e6), Compressibility(11.6, 1280e6)
    noise = Compressibility(1.0, 2000e6)
    assert choose(gigabit, text)
    assert not choose(0, text)  # nobody knows
    assert choose(gigabit, heap)
    assert not choose(gigabit, noise)
    assert choose(400e6, heap)
    assert not choose(400e6, text)
    assert not choose(1200e6, heap)
