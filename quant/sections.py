"""The sections of a .lowbit file: codes, statistics and values of a part of its tensors, as bytes and back.

Codes are dense (quant.pack), or all of a part together as one stream (quant.coding) where that is smaller.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from quant.content import DTYPES, LowbitTensor
from quant.errors import QuantError
from quant.header import MOST_EXPANSION, Entry
from quant.pack import pack, unpack
from quant.quantizers import get

if TYPE_CHECKING:
    from collections.abc import Sequence

DENSE, STREAM = 0, 1
_MENTION = 8
"""Bytes that a stream's mention in the header may take."""


def encode_part(tensors: Sequence[LowbitTensor], *, streams: bool) -> tuple[Any, bytes]:
    """What of it is coded, for the header, and the bytes of the three sections."""
    low = [t for t in tensors if t.codes is not None]
    coded: Any = DENSE
    codes = b"".join(pack(t.codes.cpu(), t.bits, _levels(t)) for t in low if t.codes is not None)
    if streams and len(codes) > _MENTION:
        from quant import coding

        stream = coding.encode([_plane(t) for t in low], [_levels(t) for t in low])
        if len(stream) + _MENTION < len(codes) <= MOST_EXPANSION * len(stream):
            coded, codes = [STREAM, len(stream)], stream
    statistics = b"".join(_statistic_bytes(t) for t in low)
    values = b"".join(_value_bytes(t.values) for t in tensors if t.values is not None)
    return coded, codes + statistics + values


def decode_part(
    entries: Sequence[Entry], coded: Any, *, codes: bytes, statistics: bytes, values: bytes
) -> list[LowbitTensor]:
    """The tensors of a part, from the bytes of its three sections.

    Raises
    ------
    QuantError
        If they are not what the quantiser makes; the tensor is named.
    """
    for e in entries:
        _check_fit(e)
    all_codes = _codes([e for e in entries if not isinstance(e.storage, str)], coded, codes)
    tensors, at_statistic, at_value = [], 0, 0
    for e in entries:
        try:
            if isinstance(e.storage, str):
                raw = values[at_value : at_value + e.value_bytes]
                tensors.append(LowbitTensor.plain(e.name, _values(raw, e)))
            else:
                name, bits, _, size = e.storage
                raw = statistics[at_statistic : at_statistic + e.statistic_bytes]
                tensors.append(
                    LowbitTensor(
                        name=e.name,
                        shape=e.shape,
                        bits=bits,
                        quantizer=name,
                        codes=torch.from_numpy(all_codes[e.name]).reshape(e.codes),
                        statistics=_floats(raw, f"<f{size}").float(),
                    )
                )
        except QuantError as error:
            raise QuantError(f"tensor {e.name!r}: {error}") from None
        at_statistic, at_value = at_statistic + e.statistic_bytes, at_value + e.value_bytes
    return tensors


def _codes(entries: Sequence[Entry], coded: Any, data: bytes) -> dict[str, np.ndarray]:
    """The codes of each tensor.

    Raises
    ------
    QuantError
        If they cannot be decoded.
    """
    storages = {e.name: e.storage for e in entries if not isinstance(e.storage, str)}
    if coded != DENSE:
        if coded[0] != STREAM:
            raise QuantError(
                f"expected codes to be dense or of coding {STREAM}, found {coded[0]}: a newer program's file"
            )
        from quant import coding

        shapes = [_plane_shape(e.codes) for e in entries]
        planes = coding.decode(data, shapes, [storage[2] for storage in storages.values()])
        return {e.name: plane for e, plane in zip(entries, planes, strict=True)}
    found, at = {}, 0
    for e in entries:
        _, bits, levels, _ = storages[e.name]
        try:
            found[e.name] = unpack(data[at : at + e.code_bytes], bits, math.prod(e.codes), levels)
        except QuantError as error:
            raise QuantError(f"tensor {e.name!r}: {error}") from None
        at += e.code_bytes
    return found


def _plane(tensor: LowbitTensor) -> np.ndarray:
    assert tensor.codes is not None
    return tensor.codes.cpu().numpy().reshape(_plane_shape(tuple(tensor.codes.shape)))


def _plane_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """As a matrix: the first axis, and the rest flattened; a tensor of less than two axes is one row."""
    return (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (1, math.prod(shape))


def _levels(tensor: LowbitTensor) -> int:
    return get(tensor.quantizer or "", tensor.bits).levels


def _check_fit(entry: Entry) -> None:
    """Whether the file means by a quantiser's name what we do.

    Raises
    ------
    QuantError
        If it has other levels, statistics or codes.
    """
    if isinstance(entry.storage, str):
        return
    name, bits, levels, size = entry.storage
    ours = get(name, bits)
    count = ours.statistics_count(entry.shape)
    known = (ours.levels, 2 if ours.stored == "float16" else 4, count, tuple(ours.codes_shape(entry.shape)))
    if (found := (levels, size, entry.statistics, entry.codes)) != known:
        raise QuantError(
            f"tensor {entry.name!r}: expected of {name} at {bits} bits levels, bytes a statistic, statistics and shape "
            f"of codes of {known}, found {found}"
        )


def _values(raw: bytes, entry: Entry) -> Tensor:
    dtype = DTYPES[str(entry.storage)]
    if dtype == torch.bfloat16:  # numpy has none
        return torch.from_numpy(np.frombuffer(raw, dtype="<i2").astype(np.int16)).view(dtype).reshape(entry.shape)
    return _floats(raw, f"<f{dtype.itemsize}").reshape(entry.shape)


def _floats(raw: bytes, form: str) -> Tensor:
    return torch.from_numpy(np.frombuffer(raw, dtype=form).astype(form.replace("<", "=")))


def _value_bytes(x: Tensor) -> bytes:
    x = x.detach().cpu().contiguous()
    if x.dtype == torch.bfloat16:
        return x.view(torch.int16).numpy().astype("<i2").tobytes()
    return x.numpy().astype(f"<f{x.dtype.itemsize}").tobytes()


def _statistic_bytes(tensor: LowbitTensor) -> bytes:
    assert tensor.statistics is not None
    half = get(tensor.quantizer or "", tensor.bits).stored == "float16"
    return _value_bytes(tensor.statistics.half() if half else tensor.statistics)
