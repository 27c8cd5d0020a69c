"""Files of version 0, forged here by its layout: they still open, and every way that one can be wrong is an error."""

from __future__ import annotations

import hashlib
import json
import math
import struct
import tracemalloc

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quant.errors import QuantError
from quant.lowbit import LowbitTensor, read_lowbit
from quant.pack import pack

on_disk = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def forge(entries: list[dict], payload: bytes = b"", *, version: int = 0, text: bytes | None = None) -> bytes:
    """A file with a right checksum, whatever it says."""
    text = json.dumps({"header": {}, "tensors": entries}).encode() if text is None else text
    body = b"LOWB" + struct.pack("<HI", version, len(text)) + text + payload
    return body + hashlib.sha256(body).digest()


def entry(**changes) -> dict:
    return {"name": "w", "shape": [2, 2], "bits": 1, "quantizer": "gaussian_l1", "statistics": 2, **changes}


GOOD = b"\x05" + struct.pack("<2f", 0.0, 1.0)


def files() -> list[LowbitTensor]:
    generator = torch.Generator().manual_seed(0)
    down = torch.randn(3, 7, generator=generator)
    return [
        LowbitTensor.quantised("adapter.down.weight", down, quantizer="gaussian_l1", bits=3),
        LowbitTensor.plain("head.weight", torch.randn(2, 3, generator=generator)),
        LowbitTensor.plain("scale", torch.tensor(0.5)),
    ]


def test_a_file_of_version_0_opens(tmp_path):
    entries, payload = [], b""
    for t in files():
        low = t.codes is not None
        count = 2 if low else 0
        entries.append(
            {"name": t.name, "shape": list(t.shape), "bits": t.bits, "quantizer": t.quantizer, "statistics": count}
        )
        payload += pack(t.codes, 3) + struct.pack("<2f", *t.statistics.tolist()) if low else b""
        payload += b"" if low else struct.pack(f"<{t.values.numel()}f", *t.values.flatten().tolist())
    text = json.dumps({"header": {"method": "adaptformer", "scale": 0.1}, "tensors": entries}).encode()
    path = tmp_path / "old.lowbit"
    path.write_bytes(forge([], payload, text=text))
    back = read_lowbit(path)
    assert back.header == {"method": "adaptformer", "scale": 0.1}
    for old, new in zip(files(), back.tensors, strict=True):
        assert (old.name, old.shape, old.bits, old.quantizer) == (new.name, new.shape, new.bits, new.quantizer)
        assert torch.equal(old.dense(), new.dense())
    data = path.read_bytes()
    for cut in (data[:n] for n in range(len(data))):
        path.write_bytes(cut)
        with pytest.raises(QuantError, match=r"old\.lowbit: expected"):
            read_lowbit(path)
    for at in range(len(data)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
        with pytest.raises(QuantError, match=r"old\.lowbit: .*expected"):
            read_lowbit(path)


@on_disk
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=3),
        lambda x: st.lists(x) | st.dictionaries(st.sampled_from(["header", "tensors", "name"]), x),
    )
)
def test_any_json_as_header_is_an_error_or_a_file(tmp_path, value):
    path = tmp_path / "a"
    path.write_bytes(forge([], text=json.dumps(value).encode()))
    try:
        assert read_lowbit(path).tensors == []
        assert value["tensors"] == []
    except QuantError:
        pass


@pytest.mark.parametrize(
    "data",
    [
        b"LOWB" + struct.pack("<HI", 0, 2**32 - 1) + b"{}" + bytes(40),
        forge([entry(shape=[2**20, 2**20])], GOOD),
        forge([entry(shape=[2**47] * 8, bits=32, quantizer=None, statistics=0)]),
        forge([entry(statistics=2**31)], GOOD),
    ],
)
def test_a_header_that_promises_gigabytes_allocates_nothing(tmp_path, data):
    path = tmp_path / "big.lowbit"
    path.write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(QuantError, match=r"big\.lowbit: expected \d+ bytes|at least \d+ bytes"):
            read_lowbit(path)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_the_forged_file_of_these_tests_is_good(tmp_path):
    (tmp_path / "a").write_bytes(forge([entry()], GOOD))
    (tensor,) = read_lowbit(tmp_path / "a").tensors
    torch.testing.assert_close(tensor.dense(), torch.tensor([[1.0, -1], [1, -1]]) * 0.67449, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (forge([entry(quantizer="gaussian")], GOOD), "unknown quantizer 'gaussian'.*nearest: gaussian_l"),
        (forge([entry(quantizer=None)], GOOD), "expected a quantizer"),
        (forge([entry(statistics=1)], GOOD[:5]), "expected 2 float32 statistics"),
        (forge([entry()], b"\x05" + struct.pack("<2f", 0, -1)), "standard deviation of at least 0"),
        (forge([entry()], b"\x05" + struct.pack("<2f", math.nan, 1)), "all finite"),
        (forge([entry()], b"\x15" + GOOD[1:]), "expected zeros after the last"),
        (forge([entry(), entry()], GOOD * 2), "unique names of tensors, found 'w'"),
        (forge([entry(name=3)], GOOD), "unique names"),
        (forge([entry(shape=[-2, -2])], GOOD), "expected a shape"),
        (forge([entry(shape=[0])], GOOD[1:]), "expected a shape"),
        (forge([entry(shape=[True, 4])], GOOD), "expected a shape"),
        (forge([entry(shape=4)], GOOD), "expected a shape"),
        (forge([entry(shape=[1] * 9)], GOOD), "at most 8 sizes"),
        (forge([entry(bits=True)], GOOD), "bits from 1 to 8, or 32, found True"),
        (forge([entry(bits=16)], GOOD), "found 16"),
        (forge([entry(bits="1")], GOOD), "found 1"),
        (forge([entry(bits=32, quantizer=None)], bytes(24)), "no statistics at 32 bits"),
        (forge([entry(bits=32)], bytes(24)), "expected a quantizer and statistics below 32"),
        (forge([entry(more=1)], GOOD), "other fields"),
        (forge([], text=b"[" * 100_000), "header of JSON"),
        (forge([], text=b"\xff{}"), "header of JSON"),
        (forge([], text=b'{"header": 1, "tensors": []}'), "an object as 'header'"),
    ],
)
def test_files_that_contradict_themselves_are_refused(tmp_path, data, text):
    path = tmp_path / "bad.lowbit"
    path.write_bytes(data)
    with pytest.raises(QuantError, match=rf"bad\.lowbit: .*{text}"):
        read_lowbit(path)
