"""``python -m figures DIR``: redraw every figure whose tables lie below a folder; needs no torch and no run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro


def main(
    folder: tyro.conf.Positional[Path], /, out: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
) -> int:
    """Redraw all figures from their tables and print the files that were written.

    Parameters
    ----------
    folder
        A run, an --out folder of an analysis, or any folder above them.
    out
        Where the PDFs and PNGs go; FOLDER/figures by default.

    Returns
    -------
    int
        The exit code.

    Raises
    ------
    TableError
        If the folder does not exist or holds nothing that can be drawn.
    """
    from figures.redraw import redraw
    from figures.tables import TableError

    if not folder.is_dir():
        raise TableError(f"expected a folder with tables, found none at {folder}")
    for path in redraw(folder, out or folder / "figures"):
        print(path)
    return 0


if __name__ == "__main__":
    from figures.command import run

    run(main, prog="python -m figures", description="Redraw every figure whose tables lie below a folder.")
