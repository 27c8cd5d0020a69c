"""Tables come back as they were written, are never half written, and damage is found."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from figures import atomic
from figures.tables import (
    Table,
    TableError,
    finished,
    key_of,
    read_provenance,
    read_table,
    read_tables,
    write_bytes,
    write_tables,
    write_text,
)  # fmt: skip

SETTINGS = {"seed": 0, "alphas": [0.0, 0.5], "space": "full"}
FLOATS = st.floats(width=64, allow_nan=True, allow_infinity=True)
TEXTS = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0\r"), max_size=12)
COLUMNS = {
    "float64": FLOATS,
    "int64": st.integers(-(2**63), 2**63 - 1),
    "uint64": st.integers(0, 2**64 - 1),
    "bool": st.booleans(),
    "str": TEXTS | st.sampled_from(["nan", "inf", "1", "1.50", "True", "", "a,b", 'a"b', "a\nb", " x "]),
}


@pytest.fixture
def frame() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "loss_nats": [0.1 + 0.2, np.nan, np.inf, -np.inf, 5e-324],
            "samples": [1, -2, 3, 2**62, 0],
            "evaluated": [True, False, True, True, False],
            "label": ["AdaptFormer h8, 1 bit", 'the "best"', "nan", "007", ""],
        }
    )


@pytest.fixture
def folder(tmp_path: Path, frame: pd.DataFrame) -> Path:
    return write_tables(tmp_path / "tables" / "curves", {"points": frame}, {"settings": SETTINGS, "baseline": 0.25})


@st.composite
def frames(draw: st.DrawFn) -> pd.DataFrame:
    rows = draw(st.integers(0, 5))
    kinds = draw(st.lists(st.sampled_from(sorted(COLUMNS)), min_size=1, max_size=4))
    names = draw(st.lists(TEXTS.filter(bool), min_size=len(kinds), max_size=len(kinds), unique=True))
    cells = [draw(st.lists(COLUMNS[kind], min_size=rows, max_size=rows)) for kind in kinds]
    return pd.DataFrame({n: pd.Series(c, dtype=k) for n, c, k in zip(names, cells, kinds, strict=True)})


@settings(max_examples=40, deadline=None)
@given(frames())
def test_any_table_comes_back_bit_for_bit(frame: pd.DataFrame):
    with tempfile.TemporaryDirectory() as name:
        back = read_table(write_tables(Path(name) / "a", {"t": frame}, {}), "t").frame
    pd.testing.assert_frame_equal(back, frame, check_exact=True)
    for column in frame.select_dtypes("float64"):
        # the sign of zero counts, which assert_frame_equal does not see
        assert list(np.signbit(back[column])) == list(np.signbit(frame[column])) or frame[column].isna().any()


def test_a_table_comes_back_with_its_provenance(folder: Path, frame: pd.DataFrame):
    table = read_table(folder, "points")
    pd.testing.assert_frame_equal(table.frame, frame, check_exact=True)
    assert table.provenance["analysis"] == "curves"
    assert table.provenance["baseline"] == 0.25
    assert table.provenance["settings"] == SETTINGS
    assert table.provenance["tables"]["points"]["rows"] == 5
    assert {"python", "numpy", "pandas"} <= set(table.provenance["versions"])
    assert list(read_tables(folder)) == ["points"]


def test_narrow_and_nullable_columns_keep_their_values(tmp_path: Path):
    frame = pd.DataFrame(
        {
            "a": np.array([0.1, 2.0], dtype=np.float32),
            "b": pd.array([1, None], dtype="Int64"),
            "c": pd.Series(["x", None], dtype=object),
            "d": pd.Series([1, 2], dtype=object),
            "e": pd.Categorical(["u", "v"]),
        }
    ).set_index(pd.Index([7, 9]))
    back = read_table(write_tables(tmp_path / "t", {"t": frame}, {}), "t").frame
    assert back["a"].tolist() == [float(np.float32(0.1)), 2.0]
    assert back["b"].tolist()[0] == 1.0
    assert np.isnan(back["b"].tolist()[1])
    assert back["c"].tolist() == ["x", ""]
    assert back["d"].dtype == np.int64
    assert back["e"].tolist() == ["u", "v"]


@pytest.mark.parametrize(
    "frame",
    [
        pd.DataFrame({"a": [1, "x"]}),
        pd.DataFrame({"a": [1j]}),
        pd.DataFrame({"a": ["x\0y"]}),
        pd.DataFrame({"a": ["x\ry"]}),
        pd.DataFrame({1: [1.0]}),
        pd.DataFrame(),
        pd.DataFrame([[1, 2]], columns=["a", "a"]),
    ],
    ids=["mixed", "complex", "nul", "return", "number as name", "no columns", "name twice"],
)
def test_what_would_not_come_back_is_refused_and_nothing_is_written(tmp_path: Path, frame: pd.DataFrame):
    with pytest.raises(TableError, match=r"expected|holds"):
        write_tables(tmp_path / "t", {"t": frame}, {})
    assert not (tmp_path / "t").exists()


def test_names_that_leave_the_folder_are_refused(tmp_path: Path, frame: pd.DataFrame):
    with pytest.raises(TableError, match="letters"):
        write_tables(tmp_path / "t", {"../t": frame}, {})


def test_tables_of_other_settings_go_with_their_provenance(tmp_path: Path, frame: pd.DataFrame):
    """And nothing else in the folder: a file of the user's, or what a damaged provenance points at."""
    folder = tmp_path / "tables" / "x"
    write_tables(folder, {"points": frame, "measures": frame}, {"settings": {"a": 1}})
    (folder / "mine.csv").write_text("kept")
    write_tables(folder, {"points": frame}, {"settings": {"a": 2}})
    assert sorted(path.name for path in folder.glob("*.csv")) == ["mine.csv", "points.csv"]
    (tmp_path / "tables" / "outside.csv").write_text("kept")
    provenance = folder / "provenance.json"
    provenance.write_text(provenance.read_text().replace('"points": {', '"../outside": {', 1))
    write_tables(folder, {"measures": frame}, {"settings": {"a": 3}})
    assert (tmp_path / "tables" / "outside.csv").exists()


def test_a_crash_while_writing_leaves_the_old_table(folder: Path, frame: pd.DataFrame, monkeypatch: pytest.MonkeyPatch):
    before = {p.name: p.read_bytes() for p in folder.iterdir()}

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_tables(folder, {"points": frame.head(1)}, {"settings": {"seed": 1}})
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert finished(folder, key_of(SETTINGS))


def test_a_crash_between_two_renames_is_not_taken_for_a_finished_table(folder: Path, frame: pd.DataFrame, monkeypatch):
    replace = Path.replace

    def dies_at_provenance(self: Path, target: Path) -> Path:
        if target.name == "provenance.json":
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", dies_at_provenance)
    with pytest.raises(KeyboardInterrupt):
        write_tables(folder, {"points": frame.head(1)}, {"settings": {"seed": 1}})
    assert not finished(folder, key_of(SETTINGS))
    assert not finished(folder, key_of({"seed": 1}))
    with pytest.raises(TableError, match="checksum"):
        read_table(folder, "points")
    assert sorted(p.name for p in folder.iterdir()) == ["points.csv", "provenance.json"]


def test_write_text_and_bytes_replace_whole_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "new" / "a.txt"
    write_text(path, "old α")
    assert path.read_bytes() == "old α".encode()
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("killed")))
    with pytest.raises(OSError, match="killed"):
        write_bytes(path, b"new")
    assert path.read_bytes() == "old α".encode()
    assert os.listdir(path.parent) == ["a.txt"]  # noqa: PTH208


def test_finished_needs_the_same_key_and_every_table_unchanged(folder: Path):
    key = key_of(SETTINGS)
    assert finished(folder, key)
    assert not finished(folder, key_of({**SETTINGS, "seed": 1}))
    assert not finished(folder / "absent", key)
    csv = folder / "points.csv"
    content = csv.read_bytes()
    csv.write_bytes(content.replace(b"True", b"true", 1))
    assert not finished(folder, key)
    csv.unlink()
    assert not finished(folder, key)
    csv.write_bytes(content)
    assert finished(folder, key)


def test_a_tampered_table_is_not_read(folder: Path):
    csv = folder / "points.csv"
    csv.write_bytes(csv.read_bytes().replace(b"inf", b"0.0", 1))
    with pytest.raises(TableError, match="checksum"):
        read_table(folder, "points")


def test_key_is_the_hash_of_canonical_json():
    text = '{"alphas":[0.0,0.5],"seed":0,"space":"full"}'
    assert key_of(SETTINGS) == hashlib.sha256(text.encode()).hexdigest()[:16]
    assert key_of(dict(reversed(SETTINGS.items()))) == key_of(SETTINGS)
    assert key_of({**SETTINGS, "alphas": np.array([0.0, 0.5])}) == key_of(SETTINGS)
    with pytest.raises(TableError, match="plain data"):
        key_of({"f": object()})


def test_a_wrong_table_name_gets_the_nearest(folder: Path):
    with pytest.raises(TableError, match="did you mean 'points'") as caught:
        read_table(folder, "pionts")
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_damaged_files_are_table_errors_never_crashes(data: st.DataObject):
    with tempfile.TemporaryDirectory() as name:
        folder = write_tables(Path(name), {"t": pd.DataFrame({"a": [1.5, 2.0], "b": ["x", "y"]})}, {})
        path = folder / data.draw(st.sampled_from(["provenance.json", "t.csv"]))
        good = path.read_bytes()
        cut = data.draw(st.integers(0, len(good) - 1))
        bad = data.draw(st.sampled_from([good[:cut], good[:cut] + b"\xff" + good[cut + 1 :]]) | st.binary(max_size=40))
        path.write_bytes(bad)
        try:
            frame = read_table(folder, "t").frame
        except TableError:
            pass
        else:  # a byte that says nothing about the table, inside a version for instance
            pd.testing.assert_frame_equal(frame, pd.DataFrame({"a": [1.5, 2.0], "b": ["x", "y"]}))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=40, deadline=None)
@given(JSON, JSON, JSON)
def test_wrong_provenance_is_a_table_error(tables: object, entry: object, columns: object):
    with tempfile.TemporaryDirectory() as name:
        folder = write_tables(Path(name), {"t": pd.DataFrame({"a": [1.5]})}, {})
        record = json.loads((folder / "provenance.json").read_text())
        sha = record["tables"]["t"]["sha256"]
        for wrong in (tables, {"t": entry}, {"t": {"sha256": sha, "rows": 1, "columns": columns}}):
            (folder / "provenance.json").write_text(json.dumps({**record, "tables": wrong}))
            with pytest.raises(TableError):
                read_table(folder, "t")
        (folder / "provenance.json").write_text(json.dumps(tables))
        with pytest.raises(TableError):
            read_provenance(folder)


def test_checksum_right_but_content_not_as_declared(folder: Path):
    path = folder / "provenance.json"
    record = json.loads(path.read_text())
    for change in ({"rows": 4}, {"columns": {"loss_nats": "float"}}, {"columns": dict.fromkeys("abcd", "int")}):
        path.write_text(json.dumps({**record, "tables": {"points": {**record["tables"]["points"], **change}}}))
        with pytest.raises(TableError):
            read_table(folder, "points")


def test_a_table_shows_itself_in_a_notebook(frame: pd.DataFrame):
    table = Table(frame=frame, provenance={"analysis": "<b>"}, name="points")
    assert "&lt;b&gt; / points" in table._repr_html_()
    copy = table.to_frame()
    copy["label"] = ""
    assert frame["label"][0] == "AdaptFormer h8, 1 bit"
    with pytest.raises(TableError, match="no figure draws"):
        table.plot()
