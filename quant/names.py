"""Many similar entries in few: those that repeat from block to block but for a counted number in their names.

A group is ``[count, first, entry, ...]``, an entry ``[name, ...]``. It stands for ``count`` times its entries: in the
names of the first time each ``*`` is ``first``, in those of the next ``first + 1``, and so on. With a count of 1 names
are as they are. Nothing is known of any model: ``blocks.3.mlp.weight`` and ``h.3.attn.c_attn`` fold alike.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

MARK = "*"
_MOST_IN_A_BLOCK = 256
_NUMBER = re.compile(r"(?<![0-9])(0|[1-9][0-9]{0,8})(?![0-9])")

Entry = Sequence[Any]
"""A name and what else is equal in every block."""


def fold(entries: Sequence[Entry]) -> list[list[Any]]:
    """Groups that stand for the entries, in their order."""
    groups: list[list[Any]] = []
    at, single = 0, False
    while at < len(entries):
        count, first, block = _longest(entries, at)
        if count > 1:
            groups.append([count, first, *block])
        elif single:
            groups[-1].append(list(entries[at]))
        else:
            groups.append([1, 0, list(entries[at])])
        single = count == 1
        at += count * len(block)
    return groups


def unfold(groups: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """The entries that groups stand for: as many as the counts say, so check these first."""
    return [
        [name.replace(MARK, str(first + i)) if count > 1 else name, *rest]
        for count, first, *block in groups
        for i in range(count)
        for name, *rest in block
    ]


def _longest(entries: Sequence[Entry], at: int) -> tuple[int, int, list[list[Any]]]:
    """The group from ``at`` that stands for the most entries; of equal ones that with the smallest block."""
    best: tuple[int, int, list[list[Any]]] = (1, 0, [list(entries[at])])
    for size in range(1, min(_MOST_IN_A_BLOCK, (len(entries) - at) // 2) + 1):
        stepped = _template(entries[at][0], entries[at + size][0])
        if stepped is None:
            continue
        first, block = stepped[0], []
        for one, next_one in zip(entries[at : at + size], entries[at + size : at + 2 * size], strict=True):
            stepped = _template(one[0], next_one[0])
            if stepped is None or stepped[0] != first or list(one[1:]) != list(next_one[1:]):
                break
            block.append([stepped[1], *one[1:]])
        if len(block) < size:
            continue
        count = 2
        while _is_block(entries, at + count * size, block, first + count):
            count += 1
        if count * size > best[0] * len(best[2]):
            best = (count, first, block)
    return best


def _is_block(entries: Sequence[Entry], at: int, block: Sequence[Entry], number: int) -> bool:
    there = entries[at : at + len(block)]
    return len(there) == len(block) and all(
        one[0] == name.replace(MARK, str(number)) and list(one[1:]) == rest
        for one, (name, *rest) in zip(there, block, strict=True)
    )


def _template(one: str, other: str) -> tuple[int, str] | None:
    """The number that is one more in the other name, and the name with a mark in its place; None if there is none."""
    if MARK in one or MARK in other:
        return None
    parts, other_parts = _NUMBER.split(one), _NUMBER.split(other)
    if len(parts) != len(other_parts):
        return None
    changed = [i for i, (a, b) in enumerate(zip(parts, other_parts, strict=True)) if a != b]
    if not changed or any(i % 2 == 0 or int(other_parts[i]) != int(parts[i]) + 1 for i in changed):
        return None
    if len({parts[i] for i in changed}) != 1:
        return None
    first = int(parts[changed[0]])
    for i in changed:
        parts[i] = MARK
    return first, "".join(parts)
