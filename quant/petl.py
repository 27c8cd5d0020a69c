"""The files of the low-bit adapter paper's code: a headerless ``.bin`` and the YAML beside it (PAPER 1.4), in and out.

Per matrix, in the order of the network: packed codes, mean and standard deviation as float32; then the head: codes, or
float32 weights and biases. Everything else is in the YAML: backbone, bit, dataset, dim, method, num_class, scale.

Departs from the paper's code where that loses weights without a word: a matrix whose codes fill no whole bytes, the
last of which it does not write, is refused here, and so is a 32-bit adapter of ours, of which it writes the head alone.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from quant.errors import QuantError, unknown
from quant.lowbit import Lowbit, LowbitTensor
from quant.pack import pack, packed_bytes, unpack

QUANTIZER = "released"
METHODS = ("adaptformer", "lora")
BIHEAD = "-bihead"
BITS = (1, 2, 4, 8, 32)
FIELDS: dict[str, Any] = {
    "backbone": str,
    "bit": int,
    "dataset": str,
    "dim": int,
    "method": str,
    "num_class": int,
    "scale": (int, float),
}

Layer = tuple[str, tuple[int, ...], int]

_SIZES = {"tiny": (12, 192), "small": (12, 384), "base": (12, 768), "large": (24, 1024), "huge": (32, 1280)}
"""Blocks and width of a ViT or DeiT, by the word in its name."""


def read_petl(path: Path | str, config: Path | str, *, blocks: int | None = None, width: int | None = None) -> Lowbit:
    """Read a ``.bin`` and its YAML.

    Parameters
    ----------
    path, config
        The two files.
    blocks, width
        Of the backbone, where its name does not say.

    Raises
    ------
    QuantError
        If the YAML lacks a field or has an impossible value, or the file's length is not what it says.
    """
    fields = _read_config(Path(config))
    header = _header(fields)
    try:
        layers = _layers(header, fields["num_class"], _shape(header["backbone"], blocks, width))
        return Lowbit(header=header, tensors=_decode(Path(path).read_bytes(), layers))
    except QuantError as error:
        raise QuantError(f"{path}: {error}") from None


def write_petl(folder: Path | str, lowbit: Lowbit) -> list[Path]:
    """Write ``DATASET-bitB-dimD.bin`` and its ``.yaml`` into a folder; gives their paths.

    The errors are those of ``petl_bytes`` and ``petl_config``.
    """
    from figures.atomic import replace_all

    data, fields = petl_bytes(lowbit), petl_config(lowbit)
    task = re.sub(r"[^A-Za-z0-9._-]+", "_", str(fields["dataset"]))
    stem = f"{task}-bit{fields['bit']}-dim{fields['dim']}"
    folder = Path(folder)
    replace_all(folder, {f"{stem}.bin": data, f"{stem}.yaml": _dump(fields).encode()})
    return [folder / f"{stem}.bin", folder / f"{stem}.yaml"]


def config_beside(path: Path | str) -> Path:
    """The YAML of a ``.bin``: of its name beside it, or in ``configs`` where the release keeps its files.

    Raises
    ------
    QuantError
        If there is none.
    """
    path = Path(path)
    released = path.parent.parent.parent / "configs" / path.parent.name / path.name
    places = [place.with_suffix(suffix) for place in (path, released) for suffix in (".yaml", ".yml")]
    for place in places:
        if place.is_file():
            return place
    raise QuantError(f"{path}: expected its YAML as {places[0]} or given by --config, found none")


def petl_config(lowbit: Lowbit) -> dict[str, Any]:
    """What the YAML says of a file's content.

    Raises
    ------
    QuantError
        If the header lacks what it must say or says it wrongly, or there is no head.
    """
    header = lowbit.header
    lacking = [name for name in ("backbone", "bits", "task", "dim", "method", "scale") if header.get(name) is None]
    head = next((t for t in lowbit.tensors if t.name == "head.weight"), None)
    if lacking or head is None:
        raise QuantError(f"expected {', '.join(lacking) or 'head.weight'} for a file of the paper, found none")
    if header["method"] not in METHODS:
        raise QuantError(unknown("method of the paper's files", header["method"], METHODS))
    if not isinstance(others := header.get("petl", {}), dict):
        raise QuantError(f"expected other fields of the YAML as the header's petl, found {str(others)[:80]}")
    fields = {
        **others,
        "backbone": header["backbone"],
        "bit": header["bits"],
        "dataset": header["task"],
        "dim": header["dim"],
        "method": header["method"] + (BIHEAD if head.bits == 1 else ""),
        "num_class": head.shape[0],
        "scale": header["scale"],
    }
    _check_fields(fields)
    return fields


def petl_bytes(lowbit: Lowbit) -> bytes:
    """The ``.bin`` of a file's content.

    Raises
    ------
    QuantError
        If the paper's code has no place for the content: another method, another head, values other than those of
        ``released``, other tensors than the header says.
    """
    fields = petl_config(lowbit)
    tensors = {t.name: t for t in lowbit.tensors}
    low = [t for t in lowbit.tensors if t.codes is not None]
    count = len([t for t in tensors if t.endswith(".down.weight")]) // (2 if lowbit.header["method"] == "lora" else 1)
    width = tensors["head.weight"].shape[1]
    _check_head(tensors)
    header = {**lowbit.header, "head_bits": 1 if fields["method"].endswith(BIHEAD) else 32}
    layers = _layers(header, fields["num_class"], (count, width))
    wanted = {name: (shape, bits) for name, shape, bits in layers}
    found = {t.name: (t.shape, t.bits) for t in lowbit.tensors}
    if wanted != found:
        name = next(name for name in (*wanted, *found) if wanted.get(name) != found.get(name))
        both = [f"of shape {of[name][0]} at {of[name][1]} bits" if name in of else "none" for of in (wanted, found)]
        raise QuantError(
            f"expected the tensors of {fields['method']} with dim {fields['dim']} at {fields['bit']} bits, "
            f"found others: of {name} expected {both[0]}, found {both[1]}"
        )
    for t in low:
        if not _has_released_values(t):
            raise QuantError(
                f"{t.name}: the paper's files hold codes of {QUANTIZER!r} alone, or of equal values; "
                f"found {t.quantizer!r} at {t.bits} bits"
            )
    return b"".join(_layer_bytes(tensors[name]) for name, _, _ in layers)


def _check_head(tensors: dict[str, LowbitTensor]) -> None:
    """Refuse a head that the paper's files cannot hold.

    Raises
    ------
    QuantError
        If it is neither of 1 bit without bias nor of 32 bits with one.
    """
    bits, bias = tensors["head.weight"].bits, "head.bias" in tensors
    if bits not in (1, 32):
        raise QuantError(f"the paper's files hold heads of 1 or 32 bits, found head.weight at {bits} bits")
    if bias == (bits == 1):
        held = "1-bit heads without bias, found head.bias" if bias else "32-bit heads with bias, found no head.bias"
        raise QuantError(f"the paper's files hold {held}")


def _has_released_values(tensor: LowbitTensor) -> bool:
    """Whether the codes and statistics have under ``released`` the very values that they have now."""
    if tensor.quantizer == QUANTIZER:
        return True
    try:
        same = replace(tensor, quantizer=QUANTIZER)
    except QuantError:  # other codes or statistics
        return False
    return torch.equal(same.dense(), tensor.dense())


def _read_config(path: Path) -> dict[str, Any]:
    """The fields of the YAML, each of its type.

    Raises
    ------
    QuantError
        If it is no YAML of the paper's.
    """
    import yaml

    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise QuantError(f"{path}: expected YAML, found none ({' '.join(str(error).split())[:120]})") from None
    if not isinstance(fields, dict) or (lacking := sorted(set(FIELDS) - set(fields))):
        found = f"none of {', '.join(lacking)}" if isinstance(fields, dict) else type(fields).__name__
        raise QuantError(f"{path}: expected the fields {', '.join(FIELDS)}, found {found}")
    try:
        _check_fields(fields)
    except QuantError as error:
        raise QuantError(f"{path}: {error}") from None
    return fields


def _check_fields(fields: dict[str, Any]) -> None:
    """Refuse fields that the paper's code cannot read.

    Raises
    ------
    QuantError
        If one is of another type, not positive or finite, or names bits or a method that it does not know.
    """
    for name, kind in FIELDS.items():
        value = fields[name]
        number = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf
        if not isinstance(value, kind) or not (number or isinstance(value, str)):
            wanted = "text" if kind is str else "a whole number above 0" if kind is int else "a number above 0"
            raise QuantError(f"expected {name} to be {wanted}, found {value!r}")
    if fields["bit"] not in BITS:
        raise QuantError(f"expected bit to be one of {', '.join(map(str, BITS))}, found {fields['bit']}")
    if fields["method"].removesuffix(BIHEAD) not in METHODS:
        raise QuantError(unknown("method", fields["method"], [*METHODS, *(name + BIHEAD for name in METHODS)]))


def _header(fields: dict[str, Any]) -> dict[str, Any]:
    others = {name: value for name, value in fields.items() if name not in FIELDS}
    return {
        "method": fields["method"].removesuffix(BIHEAD),
        "dim": fields["dim"],
        "bits": fields["bit"],
        "quantizer": QUANTIZER,
        "scale": fields["scale"],
        "head_bits": 1 if fields["method"].endswith(BIHEAD) else 32,
        "inputs": "unit",  # PAPER 1.5: pixels from 0 to 1, not normalised
        "backbone": fields["backbone"],
        "task": fields["dataset"],
        **({"petl": others} if others else {}),
    }


def _shape(backbone: str, blocks: int | None, width: int | None) -> tuple[int, int]:
    """Blocks and width, given or from the backbone's name.

    Raises
    ------
    QuantError
        If neither says them.
    """
    word = re.search(r"(?:vit|deit3?)_(" + "|".join(_SIZES) + ")_", backbone)
    named = _SIZES[word[1]] if word else (None, None)
    both = blocks or named[0], width or named[1]
    if both[0] is None or both[1] is None:
        raise QuantError(f"expected a ViT {', '.join(_SIZES)} as backbone, or --blocks and --width; found {backbone!r}")
    return both[0], both[1]


def _layers(header: dict[str, Any], classes: int, backbone: tuple[int, int]) -> list[Layer]:
    """Name, shape and bits of every tensor, in the order of the file."""
    layers: list[Layer] = []
    (blocks, width), dim = backbone, header["dim"]
    branches = ("adapter",) if header["method"] == "adaptformer" else ("attn.qkv.lora_q", "attn.qkv.lora_v")
    if header["bits"] < 32:
        for i in range(blocks):
            for branch in branches:
                layers.append((f"blocks.{i}.{branch}.down.weight", (dim, width), header["bits"]))
                layers.append((f"blocks.{i}.{branch}.up.weight", (width, dim), header["bits"]))
    layers.append(("head.weight", (classes, width), header["head_bits"]))
    return layers if header["head_bits"] < 32 else [*layers, ("head.bias", (classes,), 32)]


def _decode(data: bytes, layers: list[Layer]) -> list[LowbitTensor]:
    sizes = [_size(name, shape, bits) for name, shape, bits in layers]
    if sum(sizes) != len(data):
        raise QuantError(
            f"expected {sum(sizes)} bytes by its YAML ({len(layers)} tensors, the first {layers[0][1]}), "
            f"found {len(data)}"
        )
    tensors, at = [], 0
    for (name, shape, bits), size in zip(layers, sizes, strict=True):
        raw = data[at : at + size]
        at += size
        if bits == 32:
            tensors.append(LowbitTensor.plain(name, _floats(raw).reshape(shape)))
            continue
        codes = torch.from_numpy(unpack(raw[:-8], bits, math.prod(shape))).reshape(shape)
        tensors.append(
            LowbitTensor(
                name=name, shape=shape, bits=bits, quantizer=QUANTIZER, codes=codes, statistics=_floats(raw[-8:])
            )
        )
    return tensors


def _size(name: str, shape: tuple[int, ...], bits: int) -> int:
    """Bytes of a layer: numel b / 8 + 8.

    Raises
    ------
    QuantError
        If its codes fill no whole bytes.
    """
    count = math.prod(shape)
    if bits < 32 and count * bits % 8:
        raise QuantError(
            f"{name}: {count} codes of {bits} bits fill no whole bytes; the paper's code does not write the last ones"
        )
    return 4 * count if bits == 32 else packed_bytes(count, bits) + 8


def _layer_bytes(tensor: LowbitTensor) -> bytes:
    _size(tensor.name, tensor.shape, tensor.bits)
    if tensor.codes is None or tensor.statistics is None:
        return tensor.dense().numpy().astype("<f4").tobytes()
    return pack(tensor.codes, tensor.bits) + tensor.statistics.numpy().astype("<f4").tobytes()


def _floats(raw: bytes) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(raw, dtype="<f4").astype(np.float32))


def _dump(fields: dict[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(fields)
