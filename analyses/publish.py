"""Bring a study into ``results/`` and its summary into the README: ``python -m analyses.publish DIR``."""

from __future__ import annotations

import shutil
from pathlib import Path

from tyro.conf import Positional

BEGIN, END = "<!-- study: begin -->", "<!-- study: end -->"
TABLES = {"claims": ("claims",), "flatness": ("summary",), "runs": ("runs",), "tradeoff": ("summary",)}


def with_summary(readme: str, summary: str) -> str:
    """The README's text with what stands between the two marks replaced.

    Raises
    ------
    AnalysisError
        If a mark is missing.
    """
    from analyses.errors import AnalysisError

    head, begin, rest = readme.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        raise AnalysisError(f"expected the marks {BEGIN} and {END} in the README")
    return f"{head}{BEGIN}\n\n{summary.strip()}\n\n{END}{tail}"


def main(study: Positional[Path], /, *, results: Path = Path("results"), readme: Path = Path("README.md")) -> None:
    """Copy what a reader needs of a study: summary, claims, figures as PNG.

    Parameters
    ----------
    study
        The folder that ``python -m analyses.study`` wrote.
    results
        A folder of the study's name is made below this one.
    readme
        Its part between the two marks becomes the summary.
    """
    from figures.tables import read_provenance, read_table, write_bytes, write_text

    target = results / read_provenance(study / "tables" / "claims")["name"]
    shutil.rmtree(target, ignore_errors=True)
    for analysis, names in TABLES.items():
        folder = study / "tables" / analysis
        for name in names:
            read_table(folder, name)  # its checksum
            write_bytes(target / "tables" / analysis / f"{name}.csv", (folder / f"{name}.csv").read_bytes())
        write_bytes(target / "tables" / analysis / "provenance.json", (folder / "provenance.json").read_bytes())
    for figure in sorted((study / "figures").glob("*.png")):
        write_bytes(target / "figures" / figure.name, figure.read_bytes())
    summary = (study / "summary.md").read_text()
    write_text(target / "summary.md", summary)
    write_text(readme, with_summary(readme.read_text(), summary))
    print(target)


if __name__ == "__main__":
    from figures.command import run

    run(main, prog="python -m analyses.publish")
