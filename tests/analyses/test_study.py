"""The study from training to verdicts, and again without changing anything."""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest

from figures.tables import read_table, read_tables


def state(folder) -> dict:
    return {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_second_study_changes_nothing(done):
    from analyses.study import run_study

    before = state(done.out)
    run_study(done.study, done.out, workers=1, quiet=True)
    after = state(done.out)
    assert after == before


def test_a_figure_that_cannot_be_drawn_does_not_keep_the_verdicts(done, monkeypatch):
    from analyses.study import run_study
    from figures import redraw
    from figures.tables import TableError

    def refuse(*_):
        raise TableError("runs/surface not drawn: no finite loss")

    monkeypatch.setattr(redraw, "redraw", refuse)
    told = done.out / "summary.md"
    text = told.read_text()
    told.unlink()
    with pytest.warns(UserWarning, match="no finite loss"):
        claims = run_study(done.study, done.out, workers=1, quiet=True)
    assert told.read_text() == text
    assert len(claims)


def test_the_numbers_of_a_run_do_not_depend_on_the_workers(done, tmp_path):
    """Rule 2: the study used two workers; one run alone gives the same bytes."""
    from analyses.parallel import each
    from analyses.study import Model

    spec = done.study.spec(Model(method="adaptformer", dim=8, bits=1), 0)
    (name,) = each(functools.partial(train_and_measure, runs=tmp_path), [spec], workers=1)
    ours, theirs = tmp_path / name, done.run("adaptformer", 8, 1)
    for file in ("trained.safetensors", "adapter.lowbit", "tables/lines/curves.csv"):
        assert (ours / file).read_bytes() == (theirs / file).read_bytes()


def train_and_measure(spec, *, runs) -> str:
    from analyses.flatness import Lines
    from analyses.options import Options
    from analyses.study import Job, measure
    from analyses.sweep import train_one

    name = train_one(spec, runs=runs, device="cpu")
    lines = Lines(directions=2, extent=0.5, points=3)
    measure(Job(analysis="flatness", path=runs / name, options=Options(samples=16, quiet=True), spec=lines))
    return name


def test_what_workers_measured_is_found_and_not_measured_again(done):
    """Joined tables hold the rows of the runs' own, made with the one thread of a worker."""
    joined = read_table(done.out / "tables" / "flatness", "curves").frame
    own = read_table(done.run("lora", 4, 1) / "tables" / "lines", "curves")
    assert own.provenance["machine"]["threads"] == own.provenance["settings"]["threads"] == 1
    rows = joined[joined.run == done.run("lora", 4, 1).name]
    assert rows.loss_nats.tolist() == own.frame.loss_nats.tolist()


def test_claims_come_from_the_tables(done):
    """The effect of claim 4 is the mean difference of the accuracies in the run folders."""
    claims = read_table(done.out / "tables" / "claims", "claims").frame
    accuracy = {}
    for dim, bits in ((32, 1), (1, 32)):
        records = [json.loads((done.run("adaptformer", dim, bits, s) / "run.json").read_text()) for s in (0, 1)]
        accuracy[dim, bits] = np.mean([record["metrics"]["test_accuracy"] for record in records])
    row = claims[(claims.claim == 4) & claims.family.str.startswith("primary")].iloc[0]
    assert row.effect == pytest.approx(accuracy[32, 1] - accuracy[1, 32])
    assert set(claims.claim) == {1, 2, 3, 4}
    assert set(claims.verdict) <= {"holds", "does not hold", "undecided"}
    assert (claims.n == 2).all()


def test_equal_bytes_are_equal(done):
    points = read_table(done.out / "tables" / "tradeoff", "points").frame
    payload = points.adapter_bytes - 8 * 12  # statistics of twelve matrices, or none at 32 bits
    assert points[points.bits == 32].adapter_bytes.nunique() == 1
    assert payload[points.bits == 1].iloc[0] == pytest.approx(points[points.bits == 32].adapter_bytes.iloc[0], rel=0.02)


def test_every_table_says_what_it_is(done):
    """Rule 28."""
    for folder in (done.run("full"), done.run("lora", 4, 1)):
        for table in read_tables(folder / "tables" / "lines").values():
            p = table.provenance
            assert {"settings", "versions", "machine", "command", "seconds", "measured"} <= set(p)
            for facts in p["measured"].values():
                assert {
                    "directions",
                    "policy",
                    "space",
                    "mode",
                    "objectives",
                    "baseline",
                    "dtype",
                    "device",
                    "cost",
                } <= set(facts)
                assert facts["objectives"]["train"]["fingerprint"]
            assert p["settings"]["seed"] == 0


def test_all_models_saw_the_same_images(done):
    """Rule 5."""
    prints = {
        facts["objectives"]["train"]["fingerprint"]
        for folder in (done.run("full"), done.run("lora", 4, 1), done.run("adaptformer", 8, 1, 1))
        for facts in read_table(folder / "tables" / "lines", "curves").provenance["measured"].values()
    }
    assert len(prints) == 1


def test_the_summary_is_made_of_the_tables(done):
    from analyses.study import summary

    text = summary(done.out)
    assert text == (done.out / "summary.md").read_text()
    assert "AdaptFormer h8, 1 bit" in text
    assert any(verdict in text for verdict in ("holds", "does not hold", "undecided"))


def test_the_plan_says_what_it_will_cost(done):
    from analyses.study import passes, plan

    lines = "\n".join(plan(done.study, workers=2))
    assert "6 configurations x 2 seeds = 12 runs" in lines
    assert "minutes with 2 workers" in lines
    # spaces: full 1, adaptformer 2, lora 3; then seeds, directions, points, splits, images
    assert passes(done.study)["flatness"] == 6 * 2 * 2 * 3 * 2 * 16


def test_every_figure_is_drawn(done):
    names = {p.stem for p in (done.out / "figures").glob("*.pdf")}
    assert names == {p.stem for p in (done.out / "figures").glob("*.png")}
    assert {"claims", "flatness", "flatness_curves", "noise", "precision", "surfaces", "tradeoff", "weights"} <= names


def test_publish_writes_the_summary_between_the_marks(done, tmp_path):
    from analyses.publish import BEGIN, END, main

    readme = tmp_path / "README.md"
    readme.write_text(f"top\n{BEGIN}\nold\n{END}\nbottom\n")
    main(done.out, results=tmp_path / "results", readme=readme)
    text = readme.read_text()
    assert (done.out / "summary.md").read_text().strip() in text
    assert "old" not in text
    assert text.startswith("top\n")
    assert text.endswith("bottom\n")
    assert (tmp_path / "results" / "small" / "tables" / "claims" / "claims.csv").exists()


def test_an_unknown_study_is_one_line_and_exit_2(command):
    done = command("analyses.study", "quik")
    assert done.returncode == 2
    assert done.stderr.strip() == "error: unknown study 'quik', expected one of quick (did you mean 'quick'?)"
