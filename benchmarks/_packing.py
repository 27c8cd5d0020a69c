"""Weights as bytes: packing beside a loop and numpy's bits, and the lossless stage on files of adapters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from benchmarks._rows import NAN, Row, alternated
from quant.pack import pack, unpack
from quant.quantizers import get

WEIGHTS = 1 << 20
LOOP = 1 << 14
"""Weights that the loop is timed on: it takes a microsecond for each."""


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


def coding_rows(folder: Path | None, repeats: int) -> list[Row]:
    """The lossless stage on every ``.bin`` with a YAML of its name below ``folder``: bytes and speed, both ways."""
    from quant.coding import decode, encode
    from quant.header import is_head
    from quant.petl import config_beside, read_petl

    rows = []
    for path in sorted(folder.rglob("*.bin")) if folder else []:
        lowbit = read_petl(path, config_beside(path))
        tensors = [t for t in lowbit.tensors if t.codes is not None and not is_head(t.name, lowbit.header)]
        matrices = [t.codes.numpy() for t in tensors if t.codes is not None]
        levels = [2**t.bits for t in tensors]
        raw = sum(len(pack(m, t.bits)) for m, t in zip(matrices, tensors, strict=True))
        coded = encode(matrices, levels)
        back = decode(coded, [m.shape for m in matrices], levels)
        assert all(np.array_equal(a, b) for a, b in zip(back, matrices, strict=True))
        seconds = alternated(
            {
                "encode": lambda m=matrices, n=levels: encode(m, n),  # type: ignore[misc]
                "decode": lambda c=coded, m=matrices, n=levels: decode(c, [x.shape for x in m], n),  # type: ignore[misc]
            },
            repeats,
        )
        name = f"{path.parent.name}/{path.stem}"
        rows.append(
            Row(
                what=f"lossless stage, {name}",
                ours=len(coded),
                unit="bytes",
                compared_with="packed codes",
                theirs=raw,
                target=(raw + 16) / raw,
                note=f"{raw / seconds['encode'] / 1000:.0f} kB/s in, {raw / seconds['decode'] / 1000:.0f} kB/s out, "
                "of packed codes; decoded bit for bit",
            )
        )
    return rows


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
