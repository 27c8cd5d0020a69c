"""How every figure looks and how it is saved: sizes, colours, line styles, and the same bytes at every drawing.

Colours are Okabe and Ito's, which people with colour-blindness tell apart; bit-widths, which are ordered, take a part
of viridis. A method keeps its colour in every figure. Nothing here touches pyplot's global state.
"""

from __future__ import annotations

import io
import math
import zlib
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar

from figures.tables import write_bytes

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ONE_COLUMN = 3.25  # inches
TWO_COLUMNS = 6.75
SHEET = Path(__file__).with_name("paper.mplstyle")

GREY = "#8c8c8c"
DARK = "#222222"
METHOD_COLOURS = {
    "full": "#d55e00",
    "linear": GREY,
    "lora": "#0072b2",
    "adaptformer": "#009e73",
    "houlsby": "#e69f00",
    "vpt": "#cc79a7",
    "fact": "#56b4e9",
    "subspace": "#7f3c8d",
}
OTHER_COLOURS = ("#7f3c8d", "#a5aa99", "#80ba5a", "#4b4b8f", "#b0413e")
DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.2, 1.2, 1.2)), (0, (7, 2)))
MARKERS = ("o", "s", "^", "D", "v")
SPACE_NAMES = {"factors": "own tensors move", "merged": "merged matrices move", "full": "all weights move"}
METHOD_NAMES = {
    "full": "full fine-tuning",
    "linear": "linear probe",
    "lora": "LoRA",
    "adaptformer": "AdaptFormer",
    "subspace": "random subspace",
}

SIZES = {"lora": "r", "adaptformer": "h", "subspace": "d"}
"""What the size of a method is called: LoRA r8, AdaptFormer h8."""


def with_unit(text: str, unit: str) -> str:
    """The label of an axis; without a unit where none is known."""
    return f"{text} ({unit})" if unit else text


P = ParamSpec("P")
R = TypeVar("R")


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Run a drawing function under the style sheet and give the caller's settings back afterwards."""

    @wraps(draw)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        import matplotlib.style

        with matplotlib.style.context(["default", SHEET]):
            return draw(*args, **kwargs)

    return wrapper


def new_figure(width: float, height: float, layout: Literal["constrained"] | None = "constrained") -> Figure:
    """An empty figure (inches) that lays itself out and belongs to no window."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout=layout)


def new_axes(ax: Axes | None) -> Axes:
    """``ax``, or the axes of a new figure that a notebook shows."""
    if ax is not None:
        return ax
    from matplotlib import pyplot

    return pyplot.subplots(figsize=(ONE_COLUMN, 2.4), layout="constrained")[1]


@styled
def save(fig: Figure, stem: Path | str) -> list[Path]:
    """Write ``<stem>.pdf`` (vector, fonts embedded as TrueType) and ``<stem>.png`` (300 dpi), each whole or not at all.

    The same figure gives the same bytes: no date, no version and no random identifier is written.
    """
    stem = Path(stem)
    metadata: dict[str, dict[str, Any]] = {
        "pdf": {"CreationDate": None, "ModDate": None, "Creator": "figures", "Producer": "figures", "Title": stem.name},
        "png": {"Software": None},
    }
    engine = fig.get_layout_engine()
    if engine is not None:  # laid out once, so that the two files agree to the point
        fig.draw_without_rendering()
        fig.set_layout_engine(None)
    paths = []
    for kind, keys in metadata.items():
        buffer = io.BytesIO()
        fig.savefig(buffer, format=kind, metadata=keys)
        path = stem.with_name(f"{stem.name}.{kind}")
        write_bytes(path, buffer.getvalue())
        paths.append(path)
    if engine is not None:
        fig.set_layout_engine(engine)
    return paths


def method_colour(method: str) -> str:
    """The fixed colour of a method; one that is not listed always gets the same of the spare colours."""
    spare = OTHER_COLOURS[zlib.crc32(method.encode()) % len(OTHER_COLOURS)]
    return METHOD_COLOURS.get(method, spare)


def bits_colour(bits: float) -> str:
    """The fixed colour of a bit-width: dark at 1 bit, light at 32, by the logarithm."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return to_hex(colormaps["viridis"](0.86 * min(math.log2(max(bits, 1)) / 5, 1.0)))


def looks(frame: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Colour, line style and marker of every label, in the order in which the labels appear.

    Several methods, or one label: the colour says the method, the line style the bits and dim within it. Several labels
    of one method: the colour says the bits, the line style the dim. Where the columns ``method``, ``bits`` and ``dim``
    tell no two of several labels apart, or are not there: a colour each.
    """
    keys = [key for key in ("method", "bits", "dim") if key in frame]
    rows = frame.drop_duplicates("label")[["label", *keys]].to_dict("records")
    alike = len(rows) > 1 and len({tuple(row[key] for key in keys) for row in rows}) == 1
    if alike or (rows and not {"method", "bits"} <= set(keys)):
        palette = [c for name, c in METHOD_COLOURS.items() if name != "linear"] + list(OTHER_COLOURS)
        return {r["label"]: {"color": palette[i % len(palette)], "ls": "-", "marker": "o"} for i, r in enumerate(rows)}
    by_method = len(rows) == 1 or len({row["method"] for row in rows}) > 1
    families: dict[Any, list[Any]] = {}
    for row in sorted(rows, key=lambda row: (-row["bits"], -(row.get("dim") or 0))):
        families.setdefault(row["method"] if by_method else row["bits"], []).append(row["label"])
    found = {}
    for row in rows:
        family = row["method"] if by_method else row["bits"]
        place = families[family].index(row["label"])
        colour = method_colour(str(family)) if by_method else bits_colour(family)
        found[row["label"]] = {
            "color": colour, "ls": DASHES[place % len(DASHES)], "marker": MARKERS[place % len(MARKERS)]
        }  # fmt: skip
    return found


def legend_below(fig: Figure, ax: Axes, title: str = "", columns: int = 3) -> None:
    """One legend for the whole figure, under the panels, where it covers no data."""
    from matplotlib.container import ErrorbarContainer

    handles, labels = ax.get_legend_handles_labels()
    # what was measured first, reference lines after it
    pairs = sorted(zip(handles, labels, strict=True), key=lambda pair: not isinstance(pair[0], ErrorbarContainer))
    kept = [(handle, text) for handle, text in pairs if text]
    if kept:
        columns = min(columns, len(kept))
        fig.legend(
            [h for h, _ in kept], [t for _, t in kept], loc="outside lower center", ncols=columns, title=title or None
        )
    elif title:
        fig.supxlabel(title, fontsize=6.5)


def letter(panels: Sequence[Axes]) -> None:
    """Put a, b, c, ... before the titles of the panels, bold, as a caption refers to them."""
    if len(panels) < 2:
        return
    for index, ax in enumerate(panels):
        ax.annotate(
            chr(ord("a") + index % 26), (0, 1), xycoords="axes fraction", xytext=(-14, 4), textcoords="offset points",
            fontweight="bold", fontsize=8, va="bottom", annotation_clip=False,
        )  # fmt: skip


def percent_axis(ax: Axes) -> None:
    """Keep an axis of accuracies (per cent) within what they can be; an interval of few seeds may reach beyond."""
    bottom, top = ax.get_ylim()
    ax.set_ylim(max(bottom, -2.0), min(top, 102.0))


def bits_axis(ax: Axes, bits: Sequence[int]) -> None:
    """A logarithmic axis of bit-widths with a tick at each width that occurs."""
    from matplotlib.ticker import NullLocator

    ax.set_xscale("log", base=2)
    ax.set_xticks(sorted(set(bits)), [str(int(b)) for b in sorted(set(bits))])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlim(min(bits) / 1.35, max(bits) * 1.35)
    ax.set_xlabel("bits a weight")
