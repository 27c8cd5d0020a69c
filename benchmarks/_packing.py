"""Weights as bytes: packing beside a loop and numpy's bits, and the lossless stage on files of adapters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks._rows import NAN, Row, alternated
from quant.pack import pack, unpack
from quant.quantizers import get

WEIGHTS = 1 << 20
LOOP = 1 << 14
"""Weights that the loop is timed on: it takes a microsecond for each."""
WIDE = (100, 768), (397, 768), (768, 768), (1000, 768)
"""Shapes of single matrices that are coded."""


def pack_rows(repeats: int, weights: int = WEIGHTS) -> list[Row]:
    """Codes to bytes and back at 1 bit: beside a Python loop over weights, and numpy's bits; then from weights."""
    quantizer = get("gaussian_l1", 1)
    w = torch.randn(weights, generator=torch.Generator().manual_seed(0))
    grid = quantizer.fit(w)
    codes = grid.codes(w).numpy()
    packed, few = pack(codes, 1), codes[:LOOP].tolist()
    raw = np.frombuffer(packed, dtype=np.uint8)
    assert packed == np.packbits(codes, bitorder="little").tobytes()
    assert bytes(_loop_pack(few)) == packed[: LOOP // 8]
    assert _loop_unpack(packed[: LOOP // 8]) == few
    seconds = alternated(
        {
            "pack": lambda: pack(codes, 1),
            "unpack": lambda: unpack(packed, 1, weights),
            "packbits": lambda: np.packbits(codes, bitorder="little").tobytes(),
            "unpackbits": lambda: np.unpackbits(raw, count=weights, bitorder="little"),
            "loop": lambda: _loop_pack(few),
            "unloop": lambda: _loop_unpack(packed[: LOOP // 8]),
            "quantise": lambda: pack(grid.codes(w).numpy(), 1),
            "dequantise": lambda: grid.values(torch.from_numpy(unpack(packed, 1, weights))),
        },
        repeats,
    )
    each = {name: taken / (LOOP if "loop" in name else weights) for name, taken in seconds.items()}
    compared = (
        ("codes to bytes", "pack", "loop", "a Python loop over weights", 500.0),
        ("bytes to codes", "unpack", "unloop", "a Python loop over weights", 500.0),
        ("codes to bytes", "pack", "packbits", "numpy.packbits", 0.25),
        ("bytes to codes", "unpack", "unpackbits", "numpy.unpackbits", 0.25),
        ("weights to bytes, quantised", "quantise", "packbits", "numpy.packbits on ready codes", NAN),
        ("bytes to weights, dequantised", "dequantise", "unpackbits", "numpy.unpackbits", NAN),
    )
    return [
        Row(
            what=f"{what} at 1 bit, a weight",
            ours=each[ours],
            compared_with=other,
            theirs=each[theirs],
            kind="speedup",
            target=target,
            note="equal, checked",
        )
        for what, ours, theirs, other, target in compared
    ]


def coding_rows(folder: Path | None, repeats: int, wide: Sequence[tuple[int, int]]) -> list[Row]:
    """The lossless stage, bytes and speed both ways: on single matrices as of heads and projections, of related units
    (signs of normal numbers, half of whose variance all units share), and on every ``.bin`` with a YAML of its name
    below ``folder``.
    """
    from quant.header import is_head
    from quant.petl import config_beside, read_petl

    rng = np.random.default_rng(0)
    rows = []
    for shape in wide:
        shared = rng.standard_normal((4, shape[1])) / 8**0.5
        matrix = rng.standard_normal(shape) / 2**0.5 + rng.standard_normal((shape[0], 4)) @ shared
        rows.append(_coded(f"one matrix of {shape[0]} x {shape[1]}", [(matrix > 0).astype(np.uint8)], [2], repeats))
    for path in sorted(folder.rglob("*.bin")) if folder else []:
        lowbit = read_petl(path, config_beside(path))
        for part in (False, True):
            tensors = [t for t in lowbit.tensors if is_head(t.name, lowbit.header) == part]
            codes = [t.codes.numpy() for t in tensors if t.codes is not None]
            if codes:
                name = f"{path.parent.name}/{path.stem}{', head' if part else ''}"
                rows.append(_coded(name, codes, [2**t.bits for t in tensors if t.codes is not None], repeats))
    return rows


def _coded(name: str, matrices: list[np.ndarray], levels: list[int], repeats: int) -> Row:
    from quant.coding import decode, encode

    shapes = [m.shape for m in matrices]
    raw = sum(len(pack(m, (k - 1).bit_length())) for m, k in zip(matrices, levels, strict=True))
    coded = encode(matrices, levels)
    back = decode(coded, shapes, levels)
    assert all(np.array_equal(a, b) for a, b in zip(back, matrices, strict=True))
    seconds = alternated(
        {"encode": lambda: encode(matrices, levels), "decode": lambda: decode(coded, shapes, levels)}, repeats
    )
    return Row(
        what=f"lossless stage, {name}",
        ours=len(coded),
        unit="bytes",
        compared_with="packed codes",
        theirs=raw,
        target=(raw + 16) / raw,
        note=f"{raw / seconds['encode'] / 1000:.0f} kB/s in, {raw / seconds['decode'] / 1000:.0f} kB/s out, "
        "of packed codes; decoded bit for bit",
    )


def _loop_pack(codes: list[int]) -> bytearray:
    packed = bytearray((len(codes) + 7) // 8)
    for i, code in enumerate(codes):
        packed[i // 8] |= code << (i % 8)
    return packed


def _loop_unpack(packed: bytes) -> list[int]:
    codes = []
    for i in range(8 * len(packed)):
        codes.append(packed[i // 8] >> (i % 8) & 1)  # noqa: PERF401  (a loop over weights is what is measured)
    return codes
