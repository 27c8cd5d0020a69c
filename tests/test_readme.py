"""The README shows what the study wrote, and its commands exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def test_the_table_is_what_the_study_wrote():
    from analyses.publish import BEGIN, END

    shown = README.partition(BEGIN)[2].partition(END)[0]
    assert shown.strip() == (ROOT / "results" / "quick" / "summary.md").read_text().strip()


def test_the_summary_is_that_of_the_published_tables():
    """No number is written by hand: the claims' effects in the text are those of the CSV, whose checksum holds."""
    from figures.tables import read_table

    claims = read_table(ROOT / "results" / "quick" / "tables" / "claims", "claims").frame
    for claim in claims[claims.family.str.startswith("primary")].itertuples():
        assert f"| {claim.statement} | {claim.effect:.3g} [{claim.low:.3g}, {claim.high:.3g}]" in README
        assert f"| **{claim.verdict}** |" in README


def test_pictures_and_links_are_there():
    for path in re.findall(r"\]\((?!https?:)([^)]+)\)", README):
        assert (ROOT / path).exists(), path


def test_every_command_of_the_readme_is_a_module():
    for module in set(re.findall(r"python -m ([a-z]+(?:\.[a-z]+)?)", README)) - {"pip", "pytest"}:
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module
