"""The container: layout, round trip, and every way a file can be wrong."""

from __future__ import annotations

import contextlib
import math
import struct

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quant.errors import QuantError
from quant.fake import QuantLinear, fake_quantize
from quant.lowbit import Lowbit, LowbitTensor, checksum, from_bytes, part_bytes, read_lowbit, to_bytes, write_lowbit
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


def adaptformer(dim: int, quantizer: str, **header) -> Lowbit:
    shapes = {"down": (dim, 768), "up": (768, dim)}
    tensors = [
        LowbitTensor.quantised(f"blocks.{i}.adapter.{part}.weight", torch.randn(shape), quantizer=quantizer, bits=1)
        for i in range(12)
        for part, shape in shapes.items()
    ]
    own = {
        "method": "adaptformer", "dim": dim, "bits": 1, "quantizer": quantizer, "scale": 0.1, "head_bits": 32,
        "inputs": "backbone", "img_size": None, "backbone": "vit_base_patch16_224.orig_in21k", "task": "folder:pets",
        "backbone_hash": "".join(f"{i * 37 % 256:02x}" for i in range(32)),
    }  # fmt: skip
    return Lowbit(header={**own, **header}, tensors=tensors)


def test_rule_24_the_papers_adapter_describes_itself_in_the_bytes_of_its_bare_payload():
    """PAPER 1.4: a layer is numel * b / 8 + 8 bytes; AdaptFormer h=1, b=1 is 2,496 bytes."""
    assert sum(adaptformer(1, "released").sizes().values()) == 2496
    assert len(to_bytes(adaptformer(1, "gaussian_l1/f16"))) <= 2496
    imported = adaptformer(1, "released")
    del imported.header["backbone_hash"]
    assert len(to_bytes(imported)) <= 2496 + 64
    assert len(to_bytes(adaptformer(32, "gaussian_l1/f16"))) <= 12 * 2 * (768 * 32 // 8 + 4) + 96


def exists(name: str, bits: int) -> bool:
    try:
        return bool(get(name, bits))
    except QuantError:
        return False


KINDS = [(n, b) for n in names() for b in range(1, 9) if exists(n, b)]
KINDS += [
    (f"{n}{scope}", b)
    for n in names()
    for scope in ("/f16", "/row", "/group7/f16")
    for b in (1, 2, 3, 8)
    if exists(f"{n}{scope}", b)
]


@pytest.mark.parametrize(("name", "bits"), KINDS)
def test_rule_26_a_file_holds_the_values_of_training_bit_for_bit(tmp_path, bits, name):
    if not get(name, bits).trains:
        w = torch.randn(5, 12)
        tensor = LowbitTensor.quantised("w", w, quantizer=name, bits=bits)
        write_lowbit(tmp_path / "w.lowbit", Lowbit(header={}, tensors=[tensor]))
        grid = get(name, bits).fit(w)
        assert torch.equal(read_lowbit(tmp_path / "w.lowbit").tensors[0].dense(), grid.values(grid.codes(w)))
        return
    layer = QuantLinear(13, 5, bits=bits, quantizer=name)
    with torch.no_grad():
        layer.weight[0, 0] = layer.weight.mean()
    tensor = LowbitTensor.on_grid("w", layer.weight, layer.grid())
    write_lowbit(tmp_path / "w.lowbit", Lowbit(header={}, tensors=[tensor]))
    (back,) = read_lowbit(tmp_path / "w.lowbit").tensors
    assert torch.equal(back.dense(), layer.deployed().weight)
    assert torch.equal(back.dense(), layer.grid().values(layer.grid().codes(layer.weight)))
    if not get(name, bits).learned:
        assert torch.equal(LowbitTensor.quantised("w", layer.weight, quantizer=name, bits=bits).dense(), back.dense())
        assert torch.equal(back.dense(), fake_quantize(layer.weight, get(name, bits)))
    assert (back.name, back.shape, back.bits, back.quantizer) == ("w", (5, 13), bits, name)


@on_disk
@given(
    header=st.dictionaries(
        st.text(max_size=5),
        st.none() | st.booleans() | st.integers(-(2**64), 2**64 - 1) | st.text(max_size=5),
        max_size=4,
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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_plain_values_keep_their_type(tmp_path, dtype):
    w = torch.randn(3, 5, dtype=torch.float64).to(dtype)
    write_lowbit(
        tmp_path / "a", Lowbit(header={}, tensors=[LowbitTensor.plain("h", w), LowbitTensor.plain("s", w[0, 0])])
    )
    back, scalar = read_lowbit(tmp_path / "a").tensors
    assert back.dense().dtype == dtype
    assert torch.equal(back.dense(), w)
    assert torch.equal(scalar.dense(), w[0, 0])
    assert (back.bits, back.nbytes) == (8 * dtype.itemsize, 15 * dtype.itemsize)


def test_what_cannot_be_stored_plainly_is_refused():
    with pytest.raises(QuantError, match=r"n: expected values of torch\.float64, .*found torch\.int64"):
        LowbitTensor.plain("n", torch.tensor([1]))
    with pytest.raises(QuantError, match="not empty"):
        LowbitTensor.plain("n", torch.zeros(0))


def test_without_its_head_a_file_names_no_classes():
    with_head = content()
    rest = Lowbit(header={**with_head.header, "classes": ["a", "b"]}, tensors=with_head.tensors).without_head()
    assert rest.header == with_head.header
    assert [t.name for t in rest.tensors] == ["adapter.down.weight", "scale"]


def test_tensors_of_adapter_and_head_may_be_mixed(tmp_path):
    tensors = content().tensors
    mixed = (
        [
            tensors[1],
            tensors[0],
            LowbitTensor.quantised("head.w", torch.randn(4, 5), quantizer="nf", bits=2),
            tensors[2],
        ]
        if "nf" in names()
        else [tensors[1], tensors[0], tensors[2]]
    )
    write_lowbit(tmp_path / "a", Lowbit(header={}, tensors=mixed))
    back = read_lowbit(tmp_path / "a").tensors
    assert [t.name for t in back] == [t.name for t in mixed]
    assert all(torch.equal(a.dense(), b.dense()) for a, b in zip(back, mixed, strict=True))


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


def test_every_flipped_bit_is_refused(tmp_path):
    path = tmp_path / "a.lowbit"
    write_lowbit(path, content())
    whole = path.read_bytes()
    for at in range(8 * len(whole)):
        raw = bytearray(whole)
        raw[at // 8] ^= 1 << at % 8
        path.write_bytes(raw)
        with pytest.raises(QuantError, match=r"a\.lowbit: ") as caught:
            read_lowbit(path)
        assert "\n" not in str(caught.value)


def repeating() -> Lowbit:
    """Hidden units that repeat one another, as those of trained adapters do."""
    torch.manual_seed(0)
    pattern = torch.randn(1, 300)
    units = torch.cat([pattern * (-1) ** i + torch.randn(1, 300) / 2 for i in range(16)])
    tensors = [
        LowbitTensor.quantised("down", units, quantizer="gaussian_l1", bits=1),
        LowbitTensor.quantised("up", units.T.contiguous(), quantizer="gaussian_l2/row", bits=2),
        LowbitTensor.quantised("three", units.reshape(4, 10, 120), quantizer="gaussian_l1", bits=3),
        LowbitTensor.quantised("flat", units[0], quantizer="gaussian_l1", bits=1),
        LowbitTensor.plain("head.weight", torch.randn(3)),
    ]
    return Lowbit(header={}, tensors=tensors)


def test_codes_that_repeat_take_less_and_come_back(tmp_path):
    lowbit, path = repeating(), tmp_path / "a.lowbit"
    dense = len(to_bytes(lowbit, streams=False))
    write_lowbit(path, lowbit)
    assert path.stat().st_size < 0.97 * dense
    assert part_bytes(path)["adapter"] < sum(lowbit.sizes().values()) - 12
    assert part_bytes(path)["head"] == 12
    for old, new in zip(lowbit.tensors, read_lowbit(path).tensors, strict=True):
        assert torch.equal(old.dense(), new.dense())
    whole = path.read_bytes()
    for at in range(6, len(whole) - 8, len(whole) // 12):
        damaged = whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1 :]
        path.write_bytes(damaged)
        with pytest.raises(QuantError, match="checksum"):
            read_lowbit(path)
        path.write_bytes(resealed(damaged[:-8]))
        with contextlib.suppress(QuantError):  # any other exception fails the test
            assert len(read_lowbit(path).tensors) == 5


def test_a_stream_is_taken_only_where_it_wins():
    """Not of codes without structure, and not where a reader could not know that the file holds what it promises."""
    torch.manual_seed(0)
    noise = Lowbit(
        header={}, tensors=[LowbitTensor.quantised("w", torch.randn(8, 99), quantizer="gaussian_l1", bits=1)]
    )
    assert to_bytes(noise) == to_bytes(noise, streams=False)
    codes, statistics = torch.zeros(64, 8000, dtype=torch.uint8), torch.tensor([0.0, 1.0])
    same = LowbitTensor(name="w", shape=(64, 8000), bits=1, quantizer="released", codes=codes, statistics=statistics)
    data = to_bytes(Lowbit(header={}, tensors=[same]))
    assert len(data) >= 64_000 / 256
    assert torch.equal(from_bytes(data).tensors[0].codes, codes)


def test_a_coding_of_a_newer_program_is_refused(monkeypatch):
    import quant.sections

    monkeypatch.setattr(quant.sections, "STREAM", 2)
    data = to_bytes(repeating())
    monkeypatch.undo()
    with pytest.raises(QuantError, match="dense or of coding 1, found 2"):
        from_bytes(data)


def resealed(data: bytes) -> bytes:
    """With a right checksum, whatever it says."""
    return data + checksum(data)


@on_disk
@given(data=st.data())
def test_a_changed_file_with_a_right_checksum_is_an_error_or_a_file(tmp_path, data):
    raw = bytearray(to_bytes(content())[:-8])
    at = data.draw(st.integers(6, len(raw) - 1))
    raw[at] ^= 1 << data.draw(st.integers(0, 7))
    raw = raw[: data.draw(st.sampled_from([len(raw), len(raw) - 1]))]
    path = tmp_path / "a.lowbit"
    path.write_bytes(resealed(bytes(raw)))
    with contextlib.suppress(QuantError):  # any other exception fails the test
        assert len(read_lowbit(path).tensors) == 3


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            lambda d: resealed(b"LOWB" + struct.pack("<H", 2) + d[6:-8]),
            "version 1 of the format or an earlier one, found 2",
        ),
        (lambda d: resealed(d[:-9]), "expected [0-9]+ bytes"),
        (lambda d: resealed(d[:-8] + b"\0"), "expected [0-9]+ bytes by the header"),
        (lambda d: resealed(d[:6]), "no end of it"),
        (lambda d: resealed(d[:6] + b"\xff\xff\xff\xff\x0f" + d[7:-8]), "at least 4294967"),
        (lambda d: resealed(d[:6] + b"\xff" * 9 + d[7:-8]), "no end of it"),
        (lambda d: resealed(d[:7] + b"\xff" * 5 + d[12:-8]), "DEFLATE"),
    ],
)
def test_files_that_contradict_themselves_are_refused(tmp_path, change, text):
    path = tmp_path / "bad.lowbit"
    path.write_bytes(change(to_bytes(content())))
    with pytest.raises(QuantError, match=rf"bad\.lowbit: .*{text}"):
        read_lowbit(path)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"levels": 3}, "tensor 'w': .*found \\(3, 4, 2, "),
        ({"stored": 2}, "tensor 'w'|expected [0-9]+ bytes by the header"),
        ({"name": "gaussian_l7"}, "unknown quantizer 'gaussian_l7'.*nearest: gaussian_l"),
        ({"statistics": 3}, "tensor 'w'"),
        ({"codes": (2, 1)}, "tensor 'w'"),
    ],
)
def test_a_quantiser_that_is_not_ours_is_refused(tmp_path, change, text, monkeypatch):
    import quant.content
    from quant.header import Entry

    original = quant.content.LowbitTensor.entry

    def forged(self) -> Entry:
        e = original(self)
        name, bits, levels, stored = e.storage
        storage = (change.get("name", name), bits, change.get("levels", levels), change.get("stored", stored))
        statistics, codes = change.get("statistics", e.statistics), change.get("codes", e.codes)
        return Entry(name=e.name, shape=e.shape, storage=storage, statistics=statistics, codes=codes)

    tensor = LowbitTensor.quantised("w", torch.randn(2, 2), quantizer="gaussian_l1", bits=2)
    with monkeypatch.context() as patch:
        patch.setattr(quant.content.LowbitTensor, "entry", forged)
        data = to_bytes(Lowbit(header={}, tensors=[tensor]))[:-8]
    more = 4 * (change.get("statistics", 2) - 2)
    (tmp_path / "a").write_bytes(resealed(data + bytes(more)))
    with pytest.raises(QuantError, match=text):
        read_lowbit(tmp_path / "a")


@on_disk
@given(st.binary(max_size=80), st.booleans())
def test_foreign_files_are_refused(tmp_path, data, with_magic):
    path = tmp_path / "foreign"
    path.write_bytes(b"LOWB" * with_magic + data)
    with pytest.raises(QuantError, match="foreign: "):
        read_lowbit(path)


def test_a_missing_file_stays_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_lowbit(tmp_path / "none.lowbit")


def test_content_that_no_file_can_hold_is_refused(tmp_path):
    twin = LowbitTensor.plain("t", torch.ones(2))
    with pytest.raises(QuantError, match="unique tensor names"):
        write_lowbit(tmp_path / "a", Lowbit(header={}, tensors=[twin, twin]))
    for header in ({"a": math.nan}, {"a": object()}, {"a": 2**64}):
        with pytest.raises(QuantError, match="expected"):
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


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int64, torch.bool])
def test_values_of_a_type_that_files_do_not_have_are_refused_by_its_name(dtype):
    with pytest.raises(QuantError, match=rf"^a: expected values of torch\.float64, .*torch\.float16, found {dtype}$"):
        LowbitTensor.plain("a", torch.ones(2).to(dtype))
