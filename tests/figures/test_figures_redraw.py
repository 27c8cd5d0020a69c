"""Every figure draws from its tables; twice gives the same bytes; torch is never needed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from synthetic_tables import MODELS, everything, labelled, points, surface, tradeoff, write_everything

import figures
from figures import style
from figures.redraw import redraw
from figures.tables import Table, TableError, read_table, write_tables

ROOT = Path(__file__).resolve().parents[2]
WITHOUT_TORCH = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "timm", "torchvision"):
            raise ImportError(f"{name} is blocked in this test")
sys.meta_path.insert(0, Blocked())
sys.argv = ["figures", *sys.argv[1:]]
import runpy
try:
    runpy.run_module("figures", run_name="__main__", alter_sys=True)
finally:
    ours = {name.split(".")[0] for name in sys.modules} & {"torch", "landscape", "quant", "train", "analyses"}
    assert not ours, ours
"""


def test_importing_the_package_is_light():
    code = "import sys, figures, figures.command, figures.tables, figures.redraw; figures.names();"
    code += "print(sorted({'pandas', 'matplotlib', 'torch', 'seaborn', 'scipy', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_lazy_names_resolve_and_others_do_not():
    assert figures.TableError is TableError
    assert all(hasattr(figures, name) for name in figures.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = figures.nothing


def test_every_file_but_the_helpers_is_a_figure():
    expected = (
        "bits claims collapse connectivity curves density dimension flatness history noise "
        "precision spectra surfaces surfaces_3d survive tradeoff trajectory units weights"
    )
    assert figures.names() == expected.split()
    for name in figures.names():
        module = import_module(f"figures.{name}")
        assert callable(module.draw)
        assert callable(module.plot)
        assert all(isinstance(tables, tuple) for tables in module.TABLES.values())


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The synthetic tables and all figures of them, drawn in this process."""
    folder = tmp_path_factory.mktemp("figures")
    write_everything(folder)
    before = dict(mpl.rcParams)
    paths = redraw(folder, folder / "here")
    assert dict(mpl.rcParams) == before
    assert {path.stem for path in paths} == {*figures.names(), "flatness_curves"}
    return folder


def test_a_second_process_without_torch_draws_the_same_bytes(drawn: Path):
    some, out = drawn / "some", drawn / "there"
    for analysis in (
        "claims",
        "gaussianity",
        "noise",
        "surface",
        "tradeoff",
    ):  # every kind of drawing, half of the time
        shutil.copytree(drawn / "tables" / analysis, some / "tables" / analysis)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, str(some), "-o", str(out)], cwd=ROOT, capture_output=True, text=True,
        check=False, env={**os.environ, "PYTHONHASHSEED": "12345", "TZ": "Asia/Tokyo"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    here = {path.name: path.read_bytes() for path in (drawn / "here").iterdir()}
    there = {path.name: path.read_bytes() for path in out.iterdir()}
    assert len(there) == 16
    assert [name for name in there if here[name] != there[name]] == []
    assert sorted(Path(line).name for line in done.stdout.splitlines()) == sorted(there)


def test_pdfs_embed_truetype_and_carry_no_date(drawn: Path):
    for path in (drawn / "here").glob("*.pdf"):
        data = path.read_bytes()
        assert b"/CreationDate" not in data
        assert b"/Subtype /Type3" not in data
        assert b"Matplotlib" not in data


def test_nothing_drawn_lies_outside_its_page(drawn: Path):
    """A legend or a label that is cut off shows as ink on the page's edge."""
    from PIL import Image

    for path in (drawn / "here").glob("*.png"):
        ink = np.asarray(Image.open(path).convert("L")) < 230
        edges = {"top": ink[0], "bottom": ink[-1], "left": ink[:, 0], "right": ink[:, -1]}
        assert [name for name, edge in edges.items() if edge.any()] == [], path.name


def test_what_cannot_be_found_is_a_line(tmp_path: Path):
    with pytest.raises(TableError, match="none that a figure draws"):
        redraw(tmp_path, tmp_path / "out")


def test_places_tasks_shards_and_damage(tmp_path: Path):
    table = pd.concat([tradeoff().assign(task=task) for task in ("digits", "folder:my data")], ignore_index=True)
    write_tables(tmp_path / "runs" / "a" / "tables" / "tradeoff", {"points": table}, {})
    write_tables(tmp_path / "tables" / "tradeoff" / "parts" / "0", {"points": table}, {"analysis": "tradeoff"})
    write_tables(tmp_path / "tables" / "unknown", {"points": table}, {})
    write_tables(tmp_path / "tables" / "precision", {"points": table.drop(columns="bits")}, {})
    damaged = write_tables(tmp_path / "tables" / "noise", {"points": table}, {})
    (damaged / "points.csv").write_text("a\n1\n")
    with pytest.raises(TableError, match=r"checksum.*'bits'.*4 files were drawn"):
        redraw(tmp_path, tmp_path / "out")
    names = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.pdf"))
    assert names == ["runs/a/tradeoff_digits.pdf", "runs/a/tradeoff_folder-my-data.pdf"]


def test_an_analysis_named_draws_its_own_figures_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for name in ("tradeoff", "precision"):
        write_tables(tmp_path / "tables" / name, {"points": tradeoff()}, {})
    (tmp_path / "history.csv").write_text("not read")
    assert [p.name for p in redraw(tmp_path, tmp_path / "out", "tradeoff")] == ["tradeoff.pdf", "tradeoff.png"]
    assert redraw(tmp_path, tmp_path / "out", "nothing that a figure reads") == []
    (tmp_path / "tables" / "tradeoff" / "points.csv").write_text("a\n1\n")
    assert redraw(tmp_path, tmp_path / "out", "tradeoff") == []
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: tradeoff not drawn: ")
    assert "checksum" in line


def test_what_cannot_be_drawn_is_told_after_all_else_is_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    broken, whole = (surface(MODELS[:1], 5).assign(task=task) for task in ("a", "b"))
    broken["rise_nats"] = np.nan
    frame = pd.concat([broken, whole], ignore_index=True)
    write_tables(tmp_path / "tables" / "surface", {"points": frame}, {})
    reason = r"surface_a not drawn: figure 'surfaces': the loss is inf or NaN in 25 of 25 cells"
    with pytest.raises(TableError, match=f"^{reason} \\(4 files were drawn\\)$"):
        redraw(tmp_path, tmp_path / "all")
    assert capsys.readouterr().err == ""
    names = ["surfaces_3d_b.pdf", "surfaces_3d_b.png", "surfaces_b.pdf", "surfaces_b.png"]
    assert sorted(path.name for path in redraw(tmp_path, tmp_path / "own", "surface")) == names
    assert capsys.readouterr().err == f"warning: {reason}\n"
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == names


def test_histories_of_runs_become_one_figure(tmp_path: Path):
    for seed in (0, 1):
        run = tmp_path / "runs" / f"digits.s{seed}"
        run.mkdir(parents=True)
        spec = {"task": "digits", "method": "lora", "dim": 8, "bits": 1, "seed": seed, "head_bits": 1}
        (run / "run.json").write_text(json.dumps({"spec": spec}))
        (run / "history.csv").write_text("epoch,train_loss_nats,val_accuracy\n0,2.0,\n1,1.5,\n")
    assert [p.name for p in redraw(tmp_path, tmp_path / "out")] == ["history.pdf", "history.png"]
    (run / "run.json").write_text("{")
    with pytest.raises(TableError, match=r"digits.s1: its run.json"):
        redraw(tmp_path, tmp_path / "out")


@pytest.mark.parametrize("analysis", sorted(everything()))
def test_a_table_plots_itself_on_given_axes(analysis: str, tmp_path: Path):
    from matplotlib.figure import Figure

    tables = everything()[analysis]
    name = {"gaussianity": "histogram"}.get(analysis, next(iter(tables)))
    table = Table(frame=tables[name], provenance={"analysis": analysis}, name=name)
    ax = Figure().subplots()
    assert table.plot(ax) is ax
    assert ax.has_data()


def test_a_table_plots_on_new_axes_and_in_relief():
    from matplotlib import pyplot

    from figures import surfaces_3d

    mpl.use("agg", force=True)
    ax = Table(frame=tradeoff(), provenance={"analysis": "tradeoff"}, name="points").plot()
    assert surfaces_3d.plot(surface(n=5)).get_zlim()[0] == 0
    assert ax.has_data()
    pyplot.close("all")


def test_one_model_with_one_seed_direction_and_no_labels_draws(tmp_path: Path):
    """What a notebook or a first run has: no repeats, other splits, holes, an overflow."""
    alphas = np.linspace(-1, 1, 5)
    frame = points(alphas, seeds=1, directions=1, models=MODELS[1:2]).assign(split="mine")
    frame.loc[3, ["rise_nats", "accuracy"]] = np.nan
    frame.loc[4, "rise_nats"] = np.inf
    bare = frame[["space", "split", "alpha", "rise_nats", "accuracy"]]
    for name in ("curves", "noise"):
        module = import_module(f"figures.{name}")
        assert len(module.draw({"points": frame}).axes) == 2
        module.draw({"points": bare})
    holes = surface(MODELS[:1], 5).drop(columns=["label", "space"])
    holes.loc[[0, 7], "rise_nats"] = [np.inf, np.nan]
    for name in ("surfaces", "surfaces_3d"):
        import_module(f"figures.{name}").draw({"points": holes})
    one = tradeoff().query("seed == 0 and dim * bits == 8 and method == 'lora'")
    ax = import_module("figures.tradeoff").draw({"points": one}).axes[0]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["1\n8", "2\n4", "4\n2", "8\n1"]
    import_module("figures.precision").draw({"points": one})


def test_histograms_of_several_seeds_are_averaged():
    frame = pd.DataFrame(
        {
            "label": "a", "run": ["s0", "s0", "s1", "s1"], "tensor": "all", "left": [0.0, 1.0, 0.0, 1.0],
            "right": [1.0, 2.0, 1.0, 2.0], "density": [0.2, 0.8, 0.4, 0.6], "normal_density": 0.5,
        }
    )  # fmt: skip
    values, edges, _ = import_module("figures.weights").plot(frame).patches[0].get_data()
    np.testing.assert_allclose(values, [0.3, 0.7])
    np.testing.assert_allclose(edges, [0, 1, 2])


def test_an_accuracy_axis_stays_within_what_an_accuracy_can_be():
    frame = points(np.array([0, 0.5, 1.0]), seeds=2, directions=1, models=MODELS[1:2])
    frame["accuracy"] = np.where(frame["seed"] == 0, 0.99, 0.2)
    for name in ("noise", "curves"):
        bottom, top = import_module(f"figures.{name}").draw({"points": frame}).axes[-1].get_ylim()
        assert bottom >= -2
        assert top <= 102


def test_looks_keep_a_method_colour_and_tell_labels_apart():
    frame = pd.DataFrame([labelled(model, 0) for model in MODELS])
    found = style.looks(frame)
    assert [look["color"] for look in found.values()] == [style.METHOD_COLOURS[m[1]] for m in MODELS]
    assert len({(look["color"], look["ls"]) for look in found.values()}) == len(MODELS)
    alone = style.looks(frame[frame["method"] == "lora"])
    assert [look["color"] for look in alone.values()] == [style.bits_colour(32), style.bits_colour(1)]
    recipes = pd.DataFrame(
        [labelled(MODELS[0], 0) | {"label": f"Full fine-tuning, lr {lr}"} for lr in (0.1, 0.01, 0.001)]
    )
    assert len({look["color"] for look in style.looks(recipes).values()}) == 3
    assert style.method_colour("ssf") == style.method_colour("ssf")


def test_colours_differ_for_colour_blind_readers():
    """Simulated deuteranopia and protanopia (Vienot 1999, linear RGB): the methods of the claims stay apart."""
    from matplotlib.colors import to_rgb

    def linear(hex_colour: str) -> np.ndarray:
        c = np.array(to_rgb(hex_colour))
        return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)

    matrices = {
        "protan": [[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]],
        "deutan": [[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]],
    }
    colours = [style.METHOD_COLOURS[name] for name in ("full", "lora", "adaptformer")]
    for matrix in matrices.values():
        seen = [np.array(matrix) @ linear(c) for c in colours]
        for i, a in enumerate(seen):
            for b in seen[i + 1 :]:
                assert np.abs(a - b).max() > 0.1


def test_save_keeps_the_layout_engine_and_the_tables_are_what_was_read(tmp_path: Path, drawn: Path):
    fig = style.new_figure(style.ONE_COLUMN, 2.0)
    fig.subplots().plot([0, 1])
    first = [path.read_bytes() for path in style.save(fig, tmp_path / "a" / "x")]
    assert fig.get_layout_engine() is not None
    assert [path.read_bytes() for path in style.save(fig, tmp_path / "a" / "x")] == first
    assert read_table(drawn / "tables" / "claims", "claims").provenance["settings"] == {"synthetic": True}
