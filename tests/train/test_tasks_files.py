"""Tasks from files: what is read is what was written, and whatever is wrong is one line that names the file."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from train.errors import TrainError
from train.tasks import SPLITS, load

SMALL = {"train_size": 10, "data_seed": 3}
FUZZ = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def picture(seed: int, size: tuple[int, int] = (8, 8)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def write_folder(root: Path, per_class: int = 12, classes=("ant", "bee"), size=(8, 8), first: int = 0) -> Path:
    for k, name in enumerate(classes):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(per_class):
            Image.fromarray(picture(first + 1000 * k + i, size)).save(root / name / f"{i:03d}.png")
    return root


def write_tar(path: Path, folder: Path, prefix: str = ".") -> Path:
    with tarfile.open(path, "w") as tar:
        tar.add(folder, arcname=prefix)
    return path


def contents(task) -> set[tuple[str, int, bytes]]:
    return {
        (part, int(y), x.tobytes())
        for part in SPLITS
        for x, y in zip(task.images(part), task.labels(part), strict=True)
    }


def refused(name: str, *said: str, **options) -> None:
    with pytest.raises(TrainError) as caught:
        load(name, **{**SMALL, **options})
    text = str(caught.value)
    assert "\n" not in text
    assert all(s in text for s in said), text


def one_line_or_fine(name: str, **options) -> None:
    said = None
    try:
        load(name, **{**SMALL, **options})
    except TrainError as error:
        said = str(error)
    assert said is None or ("damaged" in said and "\n" not in said)


# ----------------------------------------------------------------------------------------------------------- folders


def test_an_unsplit_folder_is_split(tmp_path):
    root = write_folder(tmp_path / "insects")
    (root / "README.txt").write_text("not an image")
    (root / ".hidden").mkdir()
    task = load(f"folder:{root}", **SMALL)
    assert (task.name, task.classes, task.size) == ("insects", ("ant", "bee"), 8)
    assert task.counts == {"train": 8, "val": 2, "test": 14}
    expected = {(k, picture(1000 * k + i).tobytes()) for k in (0, 1) for i in range(12)}
    assert {(y, x) for _, y, x in contents(task)} == expected


def test_given_parts_are_kept(tmp_path):
    write_folder(tmp_path / "train", 20)
    write_folder(tmp_path / "test", 5, first=100)
    task = load(f"folder:{tmp_path}", **SMALL)
    assert task.counts == {"train": 8, "val": 2, "test": 10}
    assert {(y, x) for p, y, x in contents(task) if p == "test"} == {
        (k, picture(100 + 1000 * k + i).tobytes()) for k in (0, 1) for i in range(5)
    }
    write_folder(tmp_path / "val", 4, first=200)
    given_val = {picture(200 + 1000 * k + i).tobytes() for k in (0, 1) for i in range(4)}
    task = load(f"folder:{tmp_path}", **SMALL)
    assert task.counts == {"train": 8, "val": 2, "test": 10}
    assert {x for p, _, x in contents(task) if p == "val"} <= given_val
    assert load(f"folder:{tmp_path}", train_size=48).counts == {"train": 40, "val": 8, "test": 10}


def test_a_class_may_be_called_train(tmp_path):
    root = write_folder(tmp_path, classes=("bus", "train"))
    assert load(f"folder:{root}", **SMALL).classes == ("bus", "train")


@pytest.mark.parametrize("layout", ["flat", "wrapped", "split", "dotted"])
def test_a_tar_is_the_folder(tmp_path, layout):
    root = tmp_path / "insects"
    if layout == "split":
        write_folder(root / "train", 20)
        write_folder(root / "test", 5, first=100)
    else:
        write_folder(root)
    prefix = {"wrapped": "insects", "split": "insects", "dotted": "./", "flat": ""}[layout]
    archive = tmp_path / "insects.tar"
    with tarfile.open(archive, "w") as tar:
        for entry in sorted(root.iterdir()):
            tar.add(entry, arcname=os.path.join(prefix, entry.name))  # noqa: PTH118  ("./x" must keep its dot)
    expected, found = load(f"folder:{root}", **SMALL), load(f"folder:{archive}", **SMALL)
    assert found.fingerprint == expected.fingerprint
    assert found.name == expected.name == "insects"


def test_the_path_does_not_matter(tmp_path):
    one, two = write_folder(tmp_path / "here" / "x"), write_folder(tmp_path / "there" / "y")
    assert load(f"folder:{one}", **SMALL).fingerprint == load(f"folder:{two}", **SMALL).fingerprint


def test_images_are_decoded_at_the_size_asked_for(tmp_path):
    root = write_folder(tmp_path / "wide", size=(6, 10))
    refused(f"folder:{root}", "10x6 pixels", "--size")
    task = load(f"folder:{root}", size=16, **SMALL)
    assert task.size == 16
    expected = {
        np.asarray(Image.fromarray(picture(i, (6, 10))).resize((16, 16), Image.Resampling.BICUBIC)).tobytes()
        for i in range(12)
    }
    assert {x for _, y, x in contents(task) if y == 0} == expected


def test_images_of_several_sizes_need_a_size(tmp_path):
    root = write_folder(tmp_path)
    write_folder(root, per_class=6, size=(9, 9))
    refused(f"folder:{root}", "squares of one size")
    assert load(f"folder:{root}", size=8, **SMALL).counts["test"] == 14


def test_gray_and_palette_images_become_rgb_and_sixteen_bits_are_refused(tmp_path):
    root = write_folder(tmp_path)
    Image.fromarray(picture(0)[..., 0]).save(root / "ant" / "000.png")
    Image.fromarray(picture(1)).convert("P").save(root / "ant" / "001.png")
    assert load(f"folder:{root}", train_size=23, data_seed=0).images("train").shape == (18, 8, 8, 3)
    Image.fromarray(picture(0)[..., 0].astype(np.uint16) * 257).save(root / "ant" / "000.png")
    refused(f"folder:{root}", "ant/000.png", "8 bits", train_size=23)


def test_missing_empty_and_mismatched_folders(tmp_path):
    refused(f"folder:{tmp_path / 'nowhere'}", "nowhere", "no such folder")
    refused(f"folder:{tmp_path}", "no images found", "<class>/<image>")
    write_folder(tmp_path / "one", classes=("ant",))
    refused(f"folder:{tmp_path / 'one'}", "at least two classes")
    root = write_folder(tmp_path / "two")
    (root / "cow").mkdir()
    refused(f"folder:{root}", "'cow'", "empty class folder")
    flat = tmp_path / "flat"
    for part in ("train", "test"):
        write_folder(flat, classes=(part,))
    refused(f"folder:{flat}", "hold images directly")
    mixed = tmp_path / "mixed"
    write_folder(mixed / "train", 20)
    write_folder(mixed / "test", 3, classes=("ant", "bea"))
    refused(f"folder:{mixed}", "'bea'", "train/")
    lone = tmp_path / "lone"
    write_folder(lone / "test", 20)
    write_folder(lone / "val", 20)
    refused(f"folder:{lone}", "without train/")
    refused(f"folder:{write_folder(tmp_path / 'few')}", "24 are there", train_size=25)


def test_an_image_that_does_not_decode_is_named(tmp_path):
    root = write_folder(tmp_path / "x")
    (root / "bee" / "005.png").write_bytes(b"this is no image")
    refused(f"folder:{root}", "bee/005.png", "does not decode", train_size=23)
    refused(f"folder:{write_tar(tmp_path / 'x.tar', root)}", "bee/005.png", "does not decode", train_size=23)


@given(cut=st.floats(0, 1), at=st.floats(0, 1), byte=st.integers(0, 255))
@FUZZ
def test_damaged_images_are_refused_or_read(tmp_path, cut, at, byte):
    from train.tasks.images import decode_one

    whole = io.BytesIO()
    Image.fromarray(picture(0, (20, 20))).save(whole, "JPEG" if byte % 2 else "PNG")
    data = bytearray(whole.getvalue())
    data[int(at * (len(data) - 1))] = byte
    for damaged in (data, data[: int(cut * len(data))]):
        said = None
        try:
            assert decode_one(io.BytesIO(bytes(damaged)), 8, "damaged.png").shape == (8, 8, 3)
        except TrainError as error:
            said = str(error)
        assert said is None or (said.startswith("damaged.png: ") and "\n" not in said)


# -------------------------------------------------------------------------------------------------------------- tars


@pytest.mark.parametrize("name", ["../evil/x.png", "/etc/ant/x.png", "ant/../../x.png", "ant\\..\\x.png"])
def test_names_that_leave_the_archive_are_refused(tmp_path, name):
    archive = tmp_path / "x.tar"
    with tarfile.open(archive, "w") as tar:
        tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    refused(f"folder:{archive}", "unsafe name")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(tmp_path, kind):
    archive = tmp_path / "x.tar"
    with tarfile.open(archive, "w") as tar:
        member = tarfile.TarInfo("ant/x.png")
        member.type, member.linkname = kind, "/etc/passwd"
        tar.addfile(member)
    refused(f"folder:{archive}", "link or a device")


def test_a_file_that_is_no_tar_is_refused(tmp_path):
    (tmp_path / "x.tar").write_bytes(b"nothing of the kind" * 100)
    refused(f"folder:{tmp_path / 'x.tar'}", "x.tar", "expected a folder or a .tar")
    (tmp_path / "empty.tar").write_bytes(b"")
    refused(f"folder:{tmp_path / 'empty.tar'}", "empty.tar")


@given(cut=st.floats(0, 1), hits=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=5))
@FUZZ
def test_damaged_tars_are_refused_or_read(tmp_path, cut, hits):
    source = tmp_path / "source.tar"
    if not source.exists():
        write_tar(source, write_folder(tmp_path / "source"))
    data = bytearray(source.read_bytes())
    for at, byte in hits:
        data[int(at * (len(data) - 1))] = byte
    damaged = tmp_path / "damaged.tar"
    damaged.write_bytes(bytes(data[: int(cut * len(data))]) if cut < 0.9 else bytes(data))
    one_line_or_fine(f"folder:{damaged}", size=8)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["damaged.tar", "source", "source.tar"]  # nothing was unpacked


# -------------------------------------------------------------------------------------------------------------- npz


def arrays(n: int = 30, shape=(8, 8, 3), seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, *shape), dtype=np.uint8), np.arange(n) % 3


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 1), (8, 8, 3)])
def test_an_npz_of_images_and_labels(tmp_path, shape):
    images, labels = arrays(shape=shape)
    path = tmp_path / "some.npz"
    np.savez(path, images=images, labels=labels + 5)
    task = load(f"npz:{path}", **SMALL)
    assert (task.name, task.classes) == ("some", ("5", "6", "7"))
    assert task.counts == {"train": 8, "val": 2, "test": 20}
    rgb = np.stack(
        [images.reshape(30, 8, 8, -1)[..., c % shape[2] if len(shape) == 3 else 0] for c in range(3)], axis=-1
    )
    assert {(y, x) for _, y, x in contents(task)} == {(int(y), x.tobytes()) for x, y in zip(rgb, labels, strict=True)}


def test_an_npz_as_medmnist_has_it(tmp_path):
    path = tmp_path / "med.npz"
    parts = {
        part: arrays(n, (28, 28), seed) for seed, (part, n) in enumerate([("train", 60), ("val", 12), ("test", 21)])
    }
    np.savez_compressed(
        path, **{f"{p}_{k}": v for p, (x, y) in parts.items() for k, v in (("images", x), ("labels", y[:, None]))}
    )
    task = load(f"npz:{path}", train_size=20)
    assert task.counts == {"train": 16, "val": 4, "test": 21}
    assert task.size == 28
    expected = {np.repeat(x[..., None], 3, -1).tobytes() for x in parts["test"][0]}
    assert {x.tobytes() for x in task.images("test")} == expected
    assert {x.tobytes() for x in task.images("val")} <= {
        np.repeat(x[..., None], 3, -1).tobytes() for x in parts["val"][0]
    }
    assert load(f"npz:{path}", train_size=20, size=14).size == 14


def test_string_labels_are_class_names(tmp_path):
    images, labels = arrays()
    np.savez(tmp_path / "s.npz", images=images, labels=np.array(["cat", "ant", "bee"])[labels])
    assert load(f"npz:{tmp_path / 's.npz'}", **SMALL).classes == ("ant", "bee", "cat")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"images": None}, "found labels"),
        ({"labels": None}, "without labels"),
        ({"images": np.zeros((30, 8, 8))}, "expected uint8"),
        ({"images": np.zeros((30, 8, 8, 4), np.uint8)}, "expected uint8"),
        ({"images": np.zeros((30, 64), np.uint8)}, "expected uint8"),
        ({"images": np.zeros((0, 8, 8), np.uint8), "labels": np.zeros(0, int)}, "no images"),
        ({"images": np.zeros((30, 8, 9), np.uint8)}, "not square"),
        ({"labels": np.zeros(29, int)}, "30 integers"),
        ({"labels": np.zeros((30, 14), int)}, "30 integers"),
        ({"labels": np.zeros(30)}, "30 integers"),
        ({"labels": np.zeros(30, int)}, "at least two classes"),
        ({"labels": np.array([None] * 30)}, "does not read"),
    ],
)
def test_malformed_arrays_are_refused(tmp_path, change, said):
    images, labels = arrays()
    content = {k: v for k, v in {"images": images, "labels": labels, **change}.items() if v is not None}
    np.savez(tmp_path / "bad.npz", **content)
    refused(f"npz:{tmp_path / 'bad.npz'}", "bad", said)


def test_parts_must_agree(tmp_path):
    x, y = arrays()
    path = tmp_path / "p.npz"
    np.savez(path, train_images=x, train_labels=y, test_images=x, test_labels=y + 1)
    refused(f"npz:{path}", "label 3 occurs in test")
    np.savez(path, train_images=x, train_labels=y, test_images=x[:, :4, :4], test_labels=y)
    refused(f"npz:{path}", "different sizes")
    np.savez(path, test_images=x, test_labels=y)
    refused(f"npz:{path}", "expected the keys")
    refused(f"npz:{tmp_path / 'none.npz'}", "no such .npz")
    np.save(tmp_path / "a.npy", x)
    refused(f"npz:{tmp_path / 'a.npy'}", "a.npy", "does not read")


@given(cut=st.floats(0, 1), hits=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=5))
@FUZZ
def test_damaged_npz_files_are_refused_or_read(tmp_path, cut, hits):
    source = tmp_path / "source.npz"
    if not source.exists():
        np.savez_compressed(source, images=np.zeros((30, 8, 8), np.uint8), labels=np.arange(30) % 3)
    data = bytearray(source.read_bytes())
    for at, byte in hits:
        data[int(at * (len(data) - 1))] = byte
    damaged = tmp_path / "damaged.npz"
    damaged.write_bytes(bytes(data[: int(cut * len(data))]) if cut < 0.9 else bytes(data))
    one_line_or_fine(f"npz:{damaged}")
