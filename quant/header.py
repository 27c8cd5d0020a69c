"""What a .lowbit file says about itself: the writer's header and a table of tensors, in few bytes.

The CBOR (quant.cbor) of ``[coded, storages, groups, header]``, compressed by DEFLATE with a preset dictionary: see
docs/lowbit.md. Tensors are listed in groups (quant.names). Whatever a header says, reading it costs no more memory than
the file is long, and a table is expanded only if the file could hold what it promises.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from quant import cbor
from quant.dictionary import DICTIONARY
from quant.errors import QuantError
from quant.names import fold, unfold
from quant.pack import packed_bytes

KEYS = (
    "method", "dim", "bits", "quantizer", "scale", "head_bits", "inputs", "img_size", "backbone", "task", "classes",
    "head", "backbone_hash", "peft",
)  # fmt: skip
"""Keys of the writer's header that are stored as their place here."""

PLAIN_BYTES = {"f16": 2, "bf16": 2, "f32": 4, "f64": 8}
"""Bytes of a value of a tensor without codes."""

PARTS = ("adapter", "head")
"""In the order of the file; what is of the head says :func:`is_head`."""

Storage = str | tuple[str, int, int, int]

MOST_EXPANSION = 256
"""A coded stream stands for at most so many times its bytes of dense codes; what is smaller is written densely."""

_MOST_DIMS, _MOST_SIZE, _MOST_TENSORS, _LONGEST_NAME = 8, 1 << 48, 1 << 20, 512
_HEX = re.compile(r"(?:[0-9a-f]{2}){8,}")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A tensor as the table lists it.

    ``storage`` is a type of :data:`PLAIN_BYTES`, or ``(quantizer, bits, levels, bytes of a statistic)``; ``statistics``
    is their number, ``codes`` the shape of the codes.
    """

    name: str
    shape: tuple[int, ...]
    storage: Storage
    statistics: int = 0
    codes: tuple[int, ...] = ()

    @property
    def code_bytes(self) -> int:
        """Bytes of its codes if these are dense; 0 of a tensor without."""
        if isinstance(self.storage, str):
            return 0
        _, bits, levels, _ = self.storage
        return packed_bytes(math.prod(self.codes), bits, levels)

    @property
    def statistic_bytes(self) -> int:
        """Bytes of its statistics."""
        return 0 if isinstance(self.storage, str) else self.statistics * self.storage[3]

    @property
    def value_bytes(self) -> int:
        """Bytes of its values; 0 of a tensor of codes."""
        return PLAIN_BYTES[self.storage] * math.prod(self.shape) if isinstance(self.storage, str) else 0

    @property
    def nbytes(self) -> int:
        """All bytes of it, its codes dense."""
        return self.code_bytes + self.statistic_bytes + self.value_bytes


def encode_header(header: dict[str, Any], entries: Sequence[Entry], coded: Sequence[Any] = ()) -> bytes:
    """The compressed header. ``coded``: of each part, adapter and head, 0 or ``[coding, bytes]``; empty for no coding.

    Raises
    ------
    QuantError
        If the header is not plain data, or it or a name is longer than a reader would take.
    """
    storages: list[Storage] = []
    table = []
    for e in entries:
        if len(e.name) > _LONGEST_NAME:
            raise QuantError(f"expected names of at most {_LONGEST_NAME} characters, found {e.name[:80]}...")
        if e.storage not in storages:
            storages.append(e.storage)
        other = [] if isinstance(e.storage, str) or e.codes == e.shape else [list(e.codes)]
        table.append([e.name, list(e.shape), storages.index(e.storage), e.statistics, *other])
    raw = cbor.encode([list(coded), storages, fold(table), _short(header)])
    squeezed = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_DEFAULT_STRATEGY, DICTIONARY)
    data = squeezed.compress(raw) + squeezed.flush()
    if len(raw) > _most_inflated(len(data)):
        raise QuantError(f"expected a header of less repetition, found {len(raw)} bytes that compress to {len(data)}")
    _check_items(raw, len(data))
    return data


def decode_header(data: bytes, payload: int) -> tuple[dict[str, Any], list[Entry], list[Any]]:
    """The writer's header, the table of tensors, and what is coded; ``payload``: bytes of the file after the header.

    Raises
    ------
    QuantError
        If it is damaged, contradicts itself, or promises more than so many bytes can hold.
    """
    raw = _inflate(data)
    _check_items(raw, len(data))
    whole = cbor.decode(raw)
    if not isinstance(whole, list) or [type(x) for x in whole] != [list, list, list, dict]:
        raise QuantError("expected a header of coded parts, storages, groups of tensors and the writer's header")
    coded, storages, groups, header = whole
    for part in coded:
        pair = isinstance(part, list) and len(part) == 2 and _is_int(part[0], 1, 255) and _is_int(part[1], 1, payload)
        if not (pair or _is_int(part, 0, 0)) or len(coded) != 2:
            raise QuantError(f"expected a coding and its bytes for both parts, found {str(coded)[:80]}")
    for storage in storages:
        _check_storage(storage)
    tensors = dense = least = 0
    for group in groups:
        block = _check_group(group, storages)
        tensors += group[0] * len(block)
        dense += group[0] * sum(e.code_bytes for e in block)
        least += group[0] * sum(e.statistic_bytes + e.value_bytes for e in block)
    most = MOST_EXPANSION * sum(part[1] for part in coded if part) if any(coded) else 0
    if least > payload or dense > max(most, 0) + payload:
        raise QuantError(
            f"expected at least {least + dense} bytes of tensors by the header, found {payload}: truncated"
        )
    if tensors > _MOST_TENSORS:
        raise QuantError(f"expected at most {_MOST_TENSORS} tensors, found {tensors}")
    entries = [_entry(e, storages) for e in unfold(groups)]
    if len({e.name for e in entries}) != len(entries):
        raise QuantError("expected unique names of tensors, found one twice")
    return _long(header), entries, coded


def sections(header: dict[str, Any], entries: Sequence[Entry], coded: Sequence[Any]) -> dict[tuple[str, str], int]:
    """Bytes of the sections of the payload, in their order, under (adapter or head, codes, statistics or values)."""
    sizes = {}
    for i, part in enumerate(PARTS):
        own = [e for e in entries if is_head(e.name, header) == (part == "head")]
        dense = sum(e.code_bytes for e in own)
        sizes[part, "codes"] = coded[i][1] if coded and coded[i] else dense
        sizes[part, "statistics"] = sum(e.statistic_bytes for e in own)
        sizes[part, "values"] = sum(e.value_bytes for e in own)
    return sizes


def is_head(name: str, header: dict[str, Any]) -> bool:
    """Whether a tensor is of the head: of the module ``head``, or those that the writer's header names under it.

    Raises
    ------
    QuantError
        If the header names no modules there.
    """
    heads = header.get("head", "head")
    heads = [heads] if isinstance(heads, str) else heads
    if not isinstance(heads, list | tuple) or not all(isinstance(head, str) for head in heads):
        raise QuantError(f"expected the names of modules as the header's head, found {str(heads)[:80]}")
    return name.startswith(tuple(f"{head}." for head in heads))


def _most_inflated(size: int) -> int:
    return (1 << 16) + 64 * size


def _check_items(raw: bytes, size: int) -> None:
    """Whether a header that compresses to ``size`` bytes has few enough items to be read: each takes some 100 bytes.

    Raises
    ------
    QuantError
        If it has more.
    """
    most = (1 << 16) + 4 * size
    if cbor.count_items(raw, most) > most:
        raise QuantError(f"expected at most {most} items in a header that compresses to {size} bytes, found more")


def _inflate(data: bytes) -> bytes:
    most = _most_inflated(len(data))
    stream = zlib.decompressobj(-15, DICTIONARY)
    try:
        raw = stream.decompress(data, most + 1)
    except zlib.error as error:
        raise QuantError(f"expected a header compressed by DEFLATE, found a damaged one ({error})") from None
    if len(raw) > most or not stream.eof or stream.unused_data:
        raise QuantError(f"expected a header that ends after at most {most} bytes, found another length")
    return raw


def _short(header: dict[str, Any]) -> dict[str | int, Any]:
    """The writer's header with frequent keys as numbers and hexadecimal text as bytes.

    Raises
    ------
    QuantError
        If a key is no text.
    """
    short: dict[str | int, Any] = {}
    for key, value in header.items():
        if not isinstance(key, str):
            raise QuantError(f"expected keys of text in the header, found {key!r}")
        is_hex = isinstance(value, str) and _HEX.fullmatch(value)
        short[KEYS.index(key) if key in KEYS else key] = bytes.fromhex(value) if is_hex else value
    return short


def _long(short: dict[str | int, Any]) -> dict[str, Any]:
    header = {}
    for key, value in short.items():
        if isinstance(key, int) and not 0 <= key < len(KEYS):
            raise QuantError(f"expected keys of the header below {len(KEYS)}, found {key}")
        name = KEYS[key] if isinstance(key, int) else key
        header[name] = value.hex() if isinstance(value, bytes) else value
    return header


def _check_storage(storage: Any) -> None:
    if isinstance(storage, str) and storage in PLAIN_BYTES:
        return
    if not isinstance(storage, list) or len(storage) != 4 or not isinstance(storage[0], str):
        raise QuantError(
            f"expected a storage of {', '.join(PLAIN_BYTES)} or of quantizer, bits, levels and bytes of a statistic, "
            f"found {str(storage)[:80]}"
        )
    _, bits, levels, size = storage
    if not (_is_int(bits, 1, 8) and _is_int(levels, 2, 1 << bits) and (_is_int(size, 2, 2) or _is_int(size, 4, 4))):
        raise QuantError(f"expected bits from 1 to 8, levels, and 2 or 4 bytes a statistic, found {storage[1:]}")


def _check_group(group: Any, storages: list[Any]) -> list[Entry]:
    """The entries of a group as its first block has them, each known to be of the right types and sizes.

    Raises
    ------
    QuantError
        If a part of it is missing or out of its range.
    """
    if not isinstance(group, list) or len(group) < 3 or not _is_int(group[0], 1, 1 << 32):
        raise QuantError(f"expected a group of a count, a first number and tensors, found {str(group)[:80]}")
    if not _is_int(group[1], 0, 1 << 32):
        raise QuantError(f"expected a first number of a group, found {str(group[1])[:80]}")
    for e in group[2:]:
        if not isinstance(e, list) or len(e) not in (4, 5) or not isinstance(e[0], str):
            raise QuantError(f"expected name, shape, storage and statistics of a tensor, found {str(e)[:80]}")
        if len(e[0]) > _LONGEST_NAME:
            raise QuantError(f"expected names of at most {_LONGEST_NAME} characters, found one of {len(e[0])}")
        if not _is_int(e[2], 0, len(storages) - 1) or not _is_int(e[3], 0, _MOST_SIZE):
            raise QuantError(f"{e[0]}: expected one of {len(storages)} storages and a number of statistics")
        for shape in (e[1], *e[4:]):
            if (
                not isinstance(shape, list)
                or len(shape) > _MOST_DIMS
                or not all(_is_int(n, 1, _MOST_SIZE) for n in shape)
            ):
                raise QuantError(
                    f"{e[0]}: expected a shape of at most {_MOST_DIMS} sizes from 1, found {str(shape)[:80]}"
                )
        if isinstance(storages[e[2]], str) and (e[3] or len(e) == 5):
            raise QuantError(f"{e[0]}: expected no statistics and no codes of a tensor of {storages[e[2]]}")
        if not isinstance(storages[e[2]], str) and not e[3]:
            raise QuantError(f"{e[0]}: expected at least one statistic of a tensor of codes, found none")
    return [_entry(e, storages) for e in group[2:]]


def _entry(e: list[Any], storages: list[Any]) -> Entry:
    name, shape, index, statistics = e[:4]
    storage = storages[index]
    codes = () if isinstance(storage, str) else tuple(e[4] if len(e) == 5 else shape)
    kept = storage if isinstance(storage, str) else tuple(storage)
    return Entry(name=name, shape=tuple(shape), storage=kept, statistics=statistics, codes=codes)


def _is_int(x: object, low: int, high: int) -> bool:
    return isinstance(x, int) and not isinstance(x, bool) and low <= x <= high
