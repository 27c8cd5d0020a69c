"""The container: layout, round trip, and every way a file can be wrong."""

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
from quant.fake import QuantLinear, fake_quantize
from quant.lowbit import Lowbit, LowbitTensor, read_lowbit, write_lowbit
from quant.quantizers import get, names

on_disk = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def content(seed: int = 0) -> Lowbit:
    generator = torch.Generator().manual_seed(seed)
    down = torch.randn(3, 7, generator=generator)
    tensors = [
        LowbitTensor.quantised("adapter.down.weight", down, quantizer="gaussian_l1", bits=3),
        LowbitTensor.plain("head.weight", torch.randn(2, 3, generator=generator)),
        LowbitTensor.plain("scale", torch.tensor(0.5)),
    ]
    return Lowbit(header={"method": "adaptformer", "scale": 0.1}, tensors=tensors)


def forge(entries: list[dict], payload: bytes = b"", *, version: int = 0, text: bytes | None = None) -> bytes:
    """A file with a right checksum, whatever it says."""
    text = json.dumps({"header": {}, "tensors": entries}).encode() if text is None else text
    body = b"LOWB" + struct.pack("<HI", version, len(text)) + text + payload
    return body + hashlib.sha256(body).digest()


def entry(**changes) -> dict:
    return {"name": "w", "shape": [2, 2], "bits": 1, "quantizer": "gaussian_l1", "statistics": 2, **changes}


GOOD = b"\x05" + struct.pack("<2f", 0.0, 1.0)


def test_the_layout_read_by_hand(tmp_path):
    path, lowbit = tmp_path / "a.lowbit", content()
    write_lowbit(path, lowbit)
    data = path.read_bytes()
    magic, version, length = struct.unpack_from("<4sHI", data)
    header = json.loads(data[10 : 10 + length])
    payload, digest = data[10 + length : -32], data[-32:]
    assert (magic, version, digest) == (b"LOWB", 0, hashlib.sha256(data[:-32]).digest())
    assert header["header"] == {"method": "adaptformer", "scale": 0.1}
    down, head, scale = lowbit.tensors
    number = sum(int(c) << 3 * i for i, c in enumerate(down.codes.flatten()))
    expected = number.to_bytes(8, "little") + struct.pack("<2f", *down.statistics.tolist())
    assert payload == expected + struct.pack("<6f", *head.values.flatten().tolist()) + struct.pack("<f", 0.5)
    assert lowbit.sizes() == {"adapter.down.weight": 16, "head.weight": 24, "scale": 4}
    assert sum(lowbit.sizes().values()) == len(payload)
    assert scale.shape == ()


def test_rule_24_bytes_of_the_papers_adapter(tmp_path):
    """PAPER 1.4: a layer is numel * b / 8 + 8 bytes; AdaptFormer h=1, b=1 is 2,496 bytes."""
    layers = [torch.randn(*s) for _ in range(12) for s in ((1, 768), (768, 1))]
    tensors = [LowbitTensor.quantised(f"{i}", w, quantizer="released", bits=1) for i, w in enumerate(layers)]
    lowbit = Lowbit(header={}, tensors=tensors)
    assert sum(lowbit.sizes().values()) == 2496
    write_lowbit(tmp_path / "a.lowbit", lowbit)
    size = (tmp_path / "a.lowbit").stat().st_size
    assert size == 2496 + 42 + struct.unpack_from("<I", (tmp_path / "a.lowbit").read_bytes(), 6)[0]


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("name", names())
def test_rule_26_a_file_holds_the_values_of_training_bit_for_bit(tmp_path, bits, name):
    layer = QuantLinear(13, 5, bits=bits, quantizer=name)
    with torch.no_grad():
        layer.weight[0, 0] = layer.weight.mean()
    tensor = LowbitTensor.quantised("w", layer.weight, quantizer=name, bits=bits)
    write_lowbit(tmp_path / "w.lowbit", Lowbit(header={}, tensors=[tensor]))
    (back,) = read_lowbit(tmp_path / "w.lowbit").tensors
    assert torch.equal(back.dense(), fake_quantize(layer.weight, get(name, bits)))
    assert torch.equal(back.dense(), layer.deployed().weight)
    assert (back.name, back.shape, back.bits, back.quantizer) == ("w", (5, 13), bits, name)


@on_disk
@given(
    header=st.dictionaries(
        st.text(max_size=5), st.none() | st.booleans() | st.integers() | st.text(max_size=5), max_size=4
    ),
    shapes=st.lists(st.lists(st.integers(1, 5), max_size=4), max_size=4),
    bits=st.sampled_from([1, 2, 3, 4, 5, 6, 7, 8, 32]),
)
def test_what_is_written_is_read(tmp_path, header, shapes, bits):
    weights = [torch.randn(shape) for shape in shapes]
    tensors = [
        LowbitTensor.plain(f"t{i}", w)
        if bits == 32
        else LowbitTensor.quantised(f"t{i}", w, quantizer="gaussian_l2", bits=bits)
        for i, w in enumerate(weights)
    ]
    write_lowbit(tmp_path / "a.lowbit", Lowbit(header=header, tensors=tensors))
    back = read_lowbit(tmp_path / "a.lowbit")
    assert back.header == header
    assert [t.name for t in back.tensors] == [t.name for t in tensors]
    for old, new, w in zip(tensors, back.tensors, weights, strict=True):
        assert torch.equal(old.dense(), new.dense())
        assert new.dense().shape == w.shape
        assert bits < 32 or torch.equal(new.dense(), w)


def test_values_that_are_no_numbers_survive(tmp_path):
    write_lowbit(
        tmp_path / "a", Lowbit(header={}, tensors=[LowbitTensor.plain("h", torch.tensor([math.inf, math.nan, -0.0]))])
    )
    dense = read_lowbit(tmp_path / "a").tensors[0].dense()
    assert (dense[0] == math.inf, bool(dense[1].isnan()), bool(dense[2].signbit())) == (True, True, True)


def test_equal_content_gives_equal_bytes_and_replaces(tmp_path):
    for name in ("a", "b", "b"):
        write_lowbit(tmp_path / name, content())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_every_truncation_and_extension_is_refused(tmp_path):
    path = tmp_path / "a.lowbit"
    write_lowbit(path, content())
    data = path.read_bytes()
    for cut in [*(data[:n] for n in range(len(data))), data + b"\0"]:
        path.write_bytes(cut)
        with pytest.raises(QuantError, match=r"a\.lowbit: expected"):
            read_lowbit(path)


@on_disk
@given(data=st.data())
def test_every_flipped_bit_is_refused(tmp_path, data):
    path = tmp_path / "a.lowbit"
    write_lowbit(path, content())
    raw = bytearray(path.read_bytes())
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(raw)
    with pytest.raises(QuantError, match=r"a\.lowbit: ") as caught:
        read_lowbit(path)
    assert "\n" not in str(caught.value)


@on_disk
@given(st.binary(max_size=80), st.booleans())
def test_foreign_files_are_refused(tmp_path, data, with_magic):
    path = tmp_path / "foreign"
    path.write_bytes(b"LOWB" * with_magic + data)
    with pytest.raises(QuantError, match="foreign: "):
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
        (forge([entry()], GOOD, version=1), "version 0 of the format, found 1"),
        (forge([entry(quantizer="gaussian")], GOOD), "unknown quantizer 'gaussian'.*nearest: gaussian_l"),
        (forge([entry(quantizer=None)], GOOD), "expected a quantizer"),
        (forge([entry(statistics=1)], GOOD[:5]), "expected 2 float32 statistics"),
        (forge([entry()], b"\x05" + struct.pack("<2f", 0, -1)), "standard deviation of at least 0"),
        (forge([entry()], b"\x05" + struct.pack("<2f", math.nan, 1)), "finite mean"),
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


def test_a_missing_file_stays_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_lowbit(tmp_path / "none.lowbit")


def test_content_that_no_file_can_hold_is_refused(tmp_path):
    twin = LowbitTensor.plain("t", torch.ones(2))
    with pytest.raises(QuantError, match="unique tensor names"):
        write_lowbit(tmp_path / "a", Lowbit(header={}, tensors=[twin, twin]))
    for header in ({"a": math.nan}, {"a": object()}):
        with pytest.raises(QuantError, match="plain JSON"):
            write_lowbit(tmp_path / "a", Lowbit(header=header, tensors=[]))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "parts",
    [
        {"bits": 32},
        {"bits": 32, "values": torch.ones(3)},
        {"bits": 32, "values": torch.ones(2, dtype=torch.float64)},
        {"bits": 32, "values": torch.ones(2), "quantizer": "released"},
        {
            "bits": 2,
            "quantizer": "released",
            "codes": torch.tensor([4, 0], dtype=torch.uint8),
            "statistics": torch.ones(2),
        },
        {"bits": 2, "quantizer": "released", "codes": torch.tensor([1, 0]), "statistics": torch.ones(2)},
        {"bits": 2, "quantizer": "released", "codes": torch.zeros(2, dtype=torch.uint8)},
        {"bits": 9, "quantizer": "released", "codes": torch.zeros(2, dtype=torch.uint8), "statistics": torch.ones(2)},
    ],
)
def test_parts_that_do_not_fit_together_are_refused(parts):
    with pytest.raises(QuantError):
        LowbitTensor(name="t", shape=(2,), **parts)


def test_shown_as_a_table():
    frame = content().to_frame()
    assert list(frame.size_bytes) == [16, 24, 4]
    assert list(frame["shape"]) == ["3x7", "2x3", ""]
    assert "adapter.down.weight" in content()._repr_html_()
