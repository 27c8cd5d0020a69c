"""A header's parts: CBOR against the examples of its standard, names in groups, tables that promise much."""

from __future__ import annotations

import math
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quant import cbor
from quant.errors import QuantError
from quant.header import Entry, decode_header, encode_header, is_head
from quant.names import fold, unfold

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**64), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5)
    | st.binary(max_size=5),
    lambda x: st.lists(x, max_size=4) | st.dictionaries(st.text(max_size=3) | st.integers(-9, 300), x, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize(
    ("value", "data"),
    [
        (0, "00"), (10, "0a"), (23, "17"), (24, "1818"), (100, "1864"), (1000, "1903e8"), (1000000, "1a000f4240"),
        (1000000000000, "1b000000e8d4a51000"), (18446744073709551615, "1bffffffffffffffff"), (-1, "20"),
        (-1000, "3903e7"), (-18446744073709551616, "3bffffffffffffffff"), (0.0, "f90000"), (-0.0, "f98000"),
        (1.1, "fb3ff199999999999a"), (1.5, "f93e00"), (65504.0, "f97bff"), (100000.0, "fa47c35000"),
        (3.4028234663852886e38, "fa7f7fffff"), (1.0e300, "fb7e37e43c8800759c"), (5.960464477539063e-8, "f90001"),
        (False, "f4"), (True, "f5"), (None, "f6"), (b"\1\2\3\4", "4401020304"), ("IETF", "6449455446"),
        ("\u6c34", "63e6b0b4"),
        ([1, [2, 3], [4, 5]], "8301820203820405"), ({"a": 1, "b": [2, 3]}, "a26161016162820203"),
        ({1: 2, 3: 4}, "a201020304"),
    ],
)  # fmt: skip
def test_the_examples_of_rfc_8949(value, data):
    assert cbor.encode(value).hex() == data
    back = cbor.decode(bytes.fromhex(data))
    assert back == value
    assert type(back) is type(value)


@given(plain)
def test_plain_data_comes_back_and_the_order_of_keys_is_of_no_account(value):
    data = cbor.encode(value)
    assert cbor.decode(data) == value
    if isinstance(value, dict):
        assert cbor.encode(dict(reversed(value.items()))) == data


@given(st.binary(max_size=40))
def test_other_bytes_are_refused_or_are_the_one_encoding(data):
    try:
        value = cbor.decode(data)
    except QuantError:
        return
    assert cbor.encode(value) == data


@pytest.mark.parametrize(
    "data",
    ["", "1801", "9fff", "9bffffffffffffffff", "7a7fffffff61", "fa3fc00000", "a2616201616101", "a10100f6", "c001",
     "a1f600", "f97e00", "62c328", "81" * 100 + "00", "f7", "a2010101 02"],
)  # fmt: skip
def test_what_is_no_deterministic_encoding_is_refused(data):
    with pytest.raises(QuantError):
        cbor.decode(bytes.fromhex(data))


@pytest.mark.parametrize("value", [math.nan, math.inf, object(), {None: 1}, {True: 1}, 2**64, "\ud800", {1.5: 2}])
def test_what_is_no_plain_data_is_refused(value):
    with pytest.raises(QuantError, match="expected"):
        cbor.encode([value])


def test_what_lies_too_deep_is_refused():
    value: list = []
    for _ in range(40):
        value = [value]
    with pytest.raises(QuantError, match="levels"):
        cbor.encode(value)


def test_blocks_fold_into_one_group():
    entries = [[f"blocks.{i}.adapter.{part}", [2, 3], 0] for i in range(12) for part in ("down", "up")]
    entries.append(["head.weight", [5, 3], 1])
    assert fold(entries) == [
        [12, 0, ["blocks.*.adapter.down", [2, 3], 0], ["blocks.*.adapter.up", [2, 3], 0]],
        [1, 0, ["head.weight", [5, 3], 1]],
    ]


def test_only_what_is_equal_but_for_one_count_folds():
    stages = [[f"layers.{i}.blocks.{j}.w", [2**i]] for i, depth in enumerate([2, 3, 1]) for j in range(depth)]
    assert fold(stages) == [
        [2, 0, ["layers.0.blocks.*.w", [1]]], [3, 0, ["layers.1.blocks.*.w", [2]]], [1, 0, ["layers.2.blocks.0.w", [4]]]
    ]  # fmt: skip
    assert fold([["h.3.q.3", 1], ["h.4.q.4", 1]]) == [[2, 3, ["h.*.q.*", 1]]]
    for names in (["h.1.q.2", "h.2.q.3"], ["h.01", "h.02"], ["h.1", "h.3"], ["h.1*", "h.2*"], ["a1", "b2"]):
        assert fold([[name, 0] for name in names]) == [[1, 0, *([name, 0] for name in names)]]


@given(st.lists(st.tuples(st.from_regex(r"(b|l\.)?[0-9*]{1,2}(\.[0-2])?(w|x\*)", fullmatch=True), st.integers(0, 1))))
def test_folded_names_unfold(entries):
    groups = fold(entries)
    assert unfold(groups) == [list(e) for e in entries]
    assert sum(group[0] * len(group[2:]) for group in groups) == len(entries)


def test_any_size_of_a_folded_block():
    for size in (1, 7, 200):
        entries = [[f"m.{i}.p{chr(97 + k % 26)}{k:03}x", k] for i in range(9, 13) for k in range(size)]
        assert fold(entries)[0][:2] == [4, 9]
        assert unfold(fold(entries)) == entries


low = Entry(name="w", shape=(4, 4), storage=("nf", 2, 4, 4), statistics=1, codes=(4, 4))


def test_the_table_and_the_header_come_back():
    entries = [low, Entry(name="v", shape=(3,), storage="bf16"), Entry(name="s", shape=(), storage="f32")]
    entries.append(Entry(name="p", shape=(6, 4), storage=("pq", 8, 256, 2), statistics=9, codes=(6, 2)))
    header = {"method": "lora", "backbone_hash": "ab" * 32, "own": {"x": [1, None, 0.5]}, "classes": ["a", "é"]}
    data = encode_header(header, entries, [0, [1, 7]])
    assert decode_header(data, 10_000) == (header, entries, [0, [1, 7]])
    assert [e.nbytes for e in entries] == [8, 6, 4, 30]


def test_hexadecimal_text_takes_half():
    hashed = [len(encode_header({"backbone_hash": digest}, [])) for digest in ("0123456789abcdef" * 4, "01234567" * 8)]
    assert max(hashed) <= 45


@given(plain)
def test_any_data_in_place_of_a_header_is_refused(value):
    import zlib

    from quant.dictionary import DICTIONARY

    squeezed = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_DEFAULT_STRATEGY, DICTIONARY)
    with pytest.raises(QuantError):
        decode_header(squeezed.compress(cbor.encode([value, [], [[1]]])) + squeezed.flush(), 100)


def many(count: int, *, shape: tuple[int, ...] = (1,), storage="f32", payload: int = 1000) -> None:
    """Read a header of so many equal tensors."""
    import zlib

    from quant.dictionary import DICTIONARY

    raw = cbor.encode([[], [storage], [[count, 0, ["w*", list(shape), 0, 0]]], {}])
    squeezed = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_DEFAULT_STRATEGY, DICTIONARY)
    decode_header(squeezed.compress(raw) + squeezed.flush(), payload)


def test_a_table_that_promises_gigabytes_allocates_nothing():
    many(10)
    tracemalloc.start()
    try:
        for kinds in (
            {"count": 2**32},
            {"count": 1, "shape": (2**47,) * 8},
            {"count": 2**31, "storage": ["nf", 1, 2, 4]},
        ):
            with pytest.raises(QuantError, match="expected at least"):
                many(**kinds)
        with pytest.raises(QuantError, match="at most 1048576 tensors"):
            many(2**21, payload=2**40)
        with pytest.raises(QuantError, match="ends after at most"):
            decode_header(bomb(), 1000)
        assert tracemalloc.get_traced_memory()[1] < 3_000_000
    finally:
        tracemalloc.stop()


def bomb() -> bytes:
    import zlib

    squeezed = zlib.compressobj(9, zlib.DEFLATED, -15)
    return b"".join(squeezed.compress(bytes(1 << 20)) for _ in range(8)) + squeezed.flush()


def test_a_header_that_no_reader_would_take_is_not_written():
    with pytest.raises(QuantError, match="less repetition"):
        encode_header({"a": "x" * 1_000_000}, [])
    with pytest.raises(QuantError, match="at most 512 characters"):
        encode_header({}, [Entry(name="n" * 513, shape=(), storage="f32")])
    with pytest.raises(QuantError, match="keys of text"):
        encode_header({3: 1}, [])  # type: ignore[dict-item]


def test_what_is_of_the_head():
    assert is_head("head.weight", {})
    assert not is_head("header.weight", {})
    assert not is_head("blocks.0.head.weight", {})
    assert is_head("fc.bias", {"head": "fc"})
    assert is_head("b.weight", {"head": ["a", "b"]})
    assert not is_head("head.weight", {"head": ["a", "b"]})
    for head in (None, 5, True, [1], {"a": 1}):
        with pytest.raises(QuantError, match="expected the names of modules as the header's head"):
            is_head("head.weight", {"head": head})
