"""A reader written from docs/lowbit.md alone, sharing no code with the package: the page is enough and true."""

from __future__ import annotations

import hashlib
import math
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from quant.errors import QuantError
from quant.lowbit import Lowbit, LowbitTensor, to_bytes
from quant.quantizers import get, names

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "lowbit.md").read_text()
KEYS = re.findall(r"^\| \d+ \| (\w+) \|", PAGE, flags=re.MULTILINE)
TYPES = {"f16": (2, "<f2"), "bf16": (2, None), "f32": (4, "<f4"), "f64": (8, "<f8")}


def dictionary() -> bytes:
    data = bytes.fromhex(re.search(r"```dictionary\n(.*?)```", PAGE, flags=re.DOTALL)[1])
    assert hashlib.sha256(data).hexdigest() in PAGE
    return data


def item(data: bytes, at: int) -> tuple:
    """One item of CBOR and where it ends."""
    kind, low = divmod(data[at], 32)
    at += 1
    if kind == 7 and low in (25, 26, 27):
        size = {25: 2, 26: 4, 27: 8}[low]
        return struct.unpack({2: ">e", 4: ">f", 8: ">d"}[size], data[at : at + size])[0], at + size
    if low >= 24:
        size = 2 ** (low - 24)
        low, at = int.from_bytes(data[at : at + size], "big"), at + size
    if kind == 0:
        return low, at
    if kind == 1:
        return -1 - low, at
    if kind in (2, 3):
        part = data[at : at + low]
        return (part if kind == 2 else part.decode("utf-8")), at + low
    if kind == 7:
        return {20: False, 21: True, 22: None}[low], at
    found = []
    for _ in range(low * (2 if kind == 5 else 1)):
        value, at = item(data, at)
        found.append(value)
    return (dict(zip(found[::2], found[1::2], strict=True)) if kind == 5 else found), at


def read(data: bytes) -> tuple[dict, dict]:
    """The header, and of each tensor its plain values or (quantizer, bits, codes, statistics)."""
    assert data[:4] == b"LOWB"
    assert data[4:6] == b"\1\0"
    assert hashlib.sha256(data[:-8]).digest()[:8] == data[-8:]
    length, at = 0, 6
    for shift in range(0, 35, 7):
        length += (data[at] & 127) << shift
        at += 1
        if data[at - 1] < 128:
            break
    inflate = zlib.decompressobj(-15, zdict=dictionary())
    (coded, storages, groups, said), end = item(raw := inflate.decompress(data[at : at + length]), 0)
    assert (end, inflate.eof, inflate.unused_data) == (len(raw), True, b"")
    assert coded == []
    header = {KEYS[k] if isinstance(k, int) else k: v.hex() if isinstance(v, bytes) else v for k, v in said.items()}
    table = []
    for count, first, *tensors in groups:
        for i in range(count):
            table += [(t[0].replace("*", str(first + i)) if count > 1 else t[0], *t[1:]) for t in tensors]
    heads = header.get("head", "head")
    heads = [heads] if isinstance(heads, str) else heads
    at += length
    found: dict = {name: None for name, *_ in table}
    for of_head in (False, True):
        own = [t for t in table if any(t[0].startswith(h + ".") for h in heads) == of_head]
        low = [t for t in own if not isinstance(storages[t[2]], str)]
        codes = {}
        for name, shape, storage, _, *other in low:
            shape_of_codes = other[0] if other else shape
            codes[name], at = numbers(data, at, storages[storage][2], math.prod(shape_of_codes))
        for name, _, storage, count, *_ in low:
            quantizer, bits, _, width = storages[storage]
            stored = np.frombuffer(data[at : at + count * width], f"<f{width}").astype(np.float32)
            found[name], at = (quantizer, bits, codes[name], stored), at + count * width
        for name, shape, storage, *_ in [t for t in own if isinstance(storages[t[2]], str)]:
            width, form = TYPES[storages[storage]]
            part = data[at : (at := at + width * math.prod(shape))]
            if form is None:
                part = b"".join(b"\0\0" + part[i : i + 2] for i in range(0, len(part), 2))
            found[name] = np.frombuffer(part, form or "<f4").reshape(shape)
    assert at == len(data) - 8
    return header, found


def numbers(data: bytes, at: int, levels: int, count: int) -> tuple[list[int], int]:
    """So many dense codes, and where they end."""
    pairs = [(max(k for k in range(65) if levels**k <= 256**m), m) for m in range(1, 9)]
    k, m = min(pairs, key=lambda pair: (pair[1] / pair[0], pair[1]))
    codes: list[int] = []
    while len(codes) < count:
        digits = min(k, count - len(codes))
        size = m if digits == k else min(n for n in range(9) if levels**digits <= 256**n)
        number = int.from_bytes(data[at : at + size], "little")
        at += size
        for _ in range(digits):
            number, digit = divmod(number, levels)
            codes.append(digit)
        assert number == 0
    return codes, at


def everything() -> Lowbit:
    torch.manual_seed(0)
    tensors = [
        LowbitTensor.quantised(f"blocks.{i}.{part}.weight", torch.randn(shape), quantizer="gaussian_l1/f16", bits=1)
        for i in range(11)
        for part, shape in (("down", (3, 13)), ("up", (13, 3)))
    ]
    tensors.append(LowbitTensor.plain("head.bias", torch.randn(4)))
    tensors += [
        LowbitTensor.quantised(f"{name}{bits}", torch.randn(8, 12), quantizer=name, bits=bits)
        for name in names()
        for bits in (2, 3, 4, 8)
        if exists(name, bits)
    ]
    tensors.append(LowbitTensor.quantised("head.weight", torch.randn(4, 5), quantizer="released", bits=1))
    types = (torch.float16, torch.bfloat16, torch.float64)
    tensors += [LowbitTensor.plain(f"v.{dtype}", torch.randn(2, 3).to(dtype)) for dtype in types]
    tensors.append(LowbitTensor.plain("one*", torch.tensor(0.25)))
    header = {
        "method": "lora",
        "dim": 3,
        "scale": 0.1,
        "backbone_hash": "0f" * 32,
        "classes": ["a", "b"],
        "n": [1, None],
    }
    return Lowbit(header=header, tensors=tensors)


def exists(name: str, bits: int) -> bool:
    try:
        return get(name, bits) is not None
    except QuantError:
        return False


@pytest.mark.parametrize("lowbit", [everything(), Lowbit(header={}, tensors=[])], ids=["everything", "empty"])
def test_the_page_is_enough_to_read_a_file(lowbit):
    header, found = read(to_bytes(lowbit, streams=False))
    assert header == lowbit.header
    assert list(found) == [t.name for t in lowbit.tensors]
    for t in lowbit.tensors:
        if t.values is not None:
            np.testing.assert_array_equal(found[t.name], t.values.float() if t.bits < 64 else t.values)
            continue
        quantizer, bits, codes, statistics = found[t.name]
        assert (quantizer, bits) == (t.quantizer, t.bits)
        assert codes == t.codes.flatten().tolist()
        np.testing.assert_array_equal(statistics, t.statistics)


def test_the_page_is_enough_for_the_values_of_the_papers_quantiser():
    """The value of code c is v_c * deviation + mean in float32; of rows, all means and then all deviations."""
    torch.manual_seed(1)
    w = torch.randn(4, 9)
    for name, v in (
        ("gaussian_l1", 0.6744897501960817),
        ("released", 0.6744897501960817),
        ("gaussian_l2", 0.7978845608028654),
    ):
        assert str(v) in PAGE
        for scope in ("", "/row", "/row/f16"):
            tensor = LowbitTensor.quantised("w", w, quantizer=name + scope, bits=1)
            _, found = read(to_bytes(Lowbit(header={}, tensors=[tensor]), streams=False))
            _, _, codes, statistics = found["w"]
            mean, std = statistics.reshape(2, -1)[:, :, None]
            signs = np.where(np.reshape(codes, (4, 9)) == 1, np.float32(v), np.float32(-v))
            np.testing.assert_array_equal(signs * std + mean, tensor.dense())


def test_the_pages_table_of_groups_is_right():
    rows = [
        [int(x) for x in re.findall(r"\d+", line)]
        for line in re.findall(r"^\| (?:levels|k codes|in m bytes) .*", PAGE, flags=re.MULTILINE)
    ]
    for levels, k, m in zip(*rows, strict=True):
        _, end = numbers(bytes(100), 0, levels, k)
        assert end == m
        assert numbers(bytes(100), 0, levels, k + 1)[1] > m
