"""Small files that promise much: what reading one holds is bounded by what the file can honestly hold."""

from __future__ import annotations

import os
import tracemalloc
import zlib
from contextlib import contextmanager

import numpy as np
import pytest

from quant import _units, cbor, coding
from quant.dictionary import DICTIONARY
from quant.errors import QuantError
from quant.header import Entry, decode_header, encode_header
from quant.lowbit import _START, _length_bytes, checksum, from_bytes

MB = 1 << 20


@contextmanager
def holds_at_most(size: int):
    """What is allocated within has at no time more bytes."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < size
    finally:
        tracemalloc.stop()


def file_of(header: bytes, *payload: bytes) -> bytes:
    body = b"".join([_START.pack(b"LOWB", 1), _length_bytes(len(header)), header, *payload])
    return body + checksum(body)


def squeezed(raw: bytes) -> bytes:
    stream = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_DEFAULT_STRATEGY, DICTIONARY)
    return stream.compress(raw) + stream.flush()


def test_a_stream_of_noise_for_a_large_matrix_holds_little_more_than_its_codes():
    shape = (100, 100_000)
    stream = bytes([1, 0, 0]) + (2**33).to_bytes(6, "little") + os.urandom(5000)
    entry = Entry(name="a", shape=shape, storage=("gaussian_l1", 1, 2, 4), statistics=2, codes=shape)
    data = file_of(encode_header({}, [entry], [[1, len(stream)], 0]), stream, b"\0\0\0\0\0\0\x80?")
    with holds_at_most(16 * MB + 4 * shape[0] * shape[1]), pytest.raises(QuantError, match="coded stream"):
        from_bytes(data)


def test_many_small_tiles_are_taken_in_runs_of_bounded_features():
    model = _units.Units(tiles=20_000, units=5, context=10, penalty=8, context_penalty=60)
    lanes = model.lanes()
    assert [i for run in lanes for i in range(run.start, run.stop)] == list(range(20_000))
    assert max(run.stop - run.start for run in lanes) * 64 * model.weights.shape[2] <= _units._MOST_HELD


def test_how_many_tiles_are_taken_at_a_time_changes_no_byte(monkeypatch):
    rng = np.random.default_rng(1)
    common = rng.standard_normal((2, 150))
    down = [(rng.standard_normal((6, 2)) @ common > rng.standard_normal((6, 150))).astype(np.uint8) for _ in range(5)]
    matrices = [m for x in down for m in (x, x[::-1].T.copy())]
    data = coding.encode(matrices, [2] * 10)
    assert data[1] & 15, "the tiles before are seen"
    monkeypatch.setattr(_units, "_MOST_HELD", 2 * 64 * 40)
    assert coding.encode(matrices, [2] * 10) == data
    found = coding.decode(data, [m.shape for m in matrices], [2] * 10)
    assert all(np.array_equal(a, b) for a, b in zip(found, matrices, strict=True))


def test_a_header_of_millions_of_items_is_refused_before_they_are_made():
    count = 1_000_000
    noise = os.urandom(count // 64)  # without it the header would compress beyond its limit
    raw = bytes([0x84, 0x80, 0x80, 0x80, 0xA2, 0x61, 0x78]) + cbor._head(4, count) + b"\x80" * count
    header = squeezed(raw + b"\x61\x79" + cbor._head(2, len(noise)) + noise)
    with holds_at_most(8 * MB), pytest.raises(QuantError, match=r"^expected at most \d+ items in a header"):
        from_bytes(file_of(header))


def test_a_header_of_more_items_than_a_reader_takes_is_not_written():
    with pytest.raises(QuantError, match="expected at most"):
        encode_header({"a": [[]] * 1_000_000, "b": os.urandom(20_000)}, [])
    assert cbor.count_items(cbor.encode({"a": [1, "xy"], "b": 2.0}), 100) == 7
    assert cbor.count_items(cbor.encode([[]] * 50), 20) == 21


def test_a_long_table_of_names_that_do_not_fold_is_taken():
    names = {f"{n:08x}" for n in np.random.default_rng(2).integers(0, 2**32, 30_000)}
    raw = cbor.encode([[], ["f16"], [[1, 0, *([name, [1, 1, 1], 0, 0] for name in sorted(names))]], {}])
    _, entries, _ = decode_header(squeezed(raw), 2 * len(names))
    assert [e.name for e in entries] == sorted(names)


def test_a_million_tensors_of_codes_cost_their_statistics():
    raw = cbor.encode([[[1, 5000], 0], [["gaussian_l1", 1, 2, 4]], [[1 << 20, 0, ["w*", [1], 0, 0]]], {}])
    with holds_at_most(MB), pytest.raises(QuantError, match="at least one statistic"):
        from_bytes(file_of(squeezed(raw), bytes(5000)))
