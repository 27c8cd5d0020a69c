"""Write the tables of ``docs/quantizers.md`` anew, from what the quantisers say of themselves.

``python -m quant.quantizers`` prints them; with the page's path it puts them there, between its two marks.
"""

from __future__ import annotations

import sys
from itertools import groupby
from pathlib import Path

from figures.atomic import write_bytes
from quant.quantizers import get, names, widths

BEGIN, END = "<!-- written by python -m quant.quantizers -->", "<!-- end -->"


def tables() -> str:
    """Markdown: what each quantiser is, and where its laws hold."""
    from quant.quantizers.base import LAWS

    about: list[tuple[str, ...]] = [
        ("quantiser", "value of a weight", "bits", "statistics of a group", "trains", "source")
    ]
    laws: list[tuple[str, ...]] = [("quantiser", *LAWS)]
    for name in names():
        every = [get(name, bits) for bits in widths(name)]
        q = every[-1]
        about.append(
            (f"`{name}`", f"`{q.formula}`", _ranges(list(widths(name))), _statistics(name), _trains(name), q.source)
        )
        laws.append((f"`{name}`", *(_ranges([q.bits for q in every if law in q.laws]) for law in LAWS)))
    meanings = "\n".join(f"- **{law}**: {meaning}." for law, meaning in LAWS.items())
    return f"{_markdown(about)}\n\nLaws, and the bits at which they hold:\n\n{meanings}\n\n{_markdown(laws)}"


def page(text: str) -> str:
    """The page with its tables written anew; they stand between two marks."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{tables()}\n\n{END}{rest.partition(END)[2]}"


def _statistics(name: str) -> str:
    q = get(name, widths(name)[-1])
    if not q.elementwise:
        return "4 values x 2^b"
    parts = [
        f"{part} x 2^b" if n > 1 else part for part, n in ((k, len(list(g))) for k, g in groupby(q.statistic_names))
    ]
    return ", ".join(parts)


def _trains(name: str) -> str:
    q = get(name, widths(name)[-1])
    return ("step learned" if q.learned else "yes") if q.trains else "no"


def _ranges(bits: list[int]) -> str:
    runs = [[b for _, b in run] for _, run in groupby(enumerate(bits), lambda pair: pair[1] - pair[0])]
    return ", ".join(f"{r[0]}-{r[-1]}" if len(r) > 1 else str(r[0]) for r in runs) or "-"


def _markdown(rows: list[tuple[str, ...]]) -> str:
    head, *body = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body])


if __name__ == "__main__":
    if len(sys.argv) > 1:
        path = Path(sys.argv[1])
        write_bytes(path, page(path.read_text()).encode())
    else:
        print(tables())
