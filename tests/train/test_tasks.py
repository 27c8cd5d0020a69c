"""Tasks: the split's laws, the transform against torchvision, the generated images against what they claim to show."""

from __future__ import annotations

import dataclasses
import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from train.errors import TrainError
from train.tasks import SPLITS, Transform, load, names
from train.tasks import counting as counting_task
from train.tasks import orientation as orientation_task
from train.tasks._sheet import contact_sheet
from train.tasks._source import Source, split, stratified


@pytest.fixture(scope="module")
def digits():
    return load("digits")


def source(labels: dict[str, np.ndarray]) -> Source:
    classes = tuple(str(c) for c in np.unique(np.concatenate(list(labels.values()))))
    return Source(name="made", classes=classes, labels=labels, take=lambda part, rows: np.zeros((len(rows), 4, 4, 3)))


def test_the_kinds_of_tasks_are_the_files():
    assert names() == ["counting", "digits", "folder", "npz", "orientation"]


@pytest.mark.parametrize(
    ("name", "test", "classes"), [("digits", 797, 10), ("counting", 2000, 8), ("orientation", 2000, 8)]
)
def test_shipped_tasks_split_as_vtab_does(name, test, classes):
    task = load(name)
    assert task.counts == {"train": 800, "val": 200, "test": test}
    assert len(task.classes) == classes
    for part in SPLITS:
        images, labels = task.images(part), task.labels(part)
        assert images.shape == (len(labels), 32, 32, 3)
        assert (images.dtype, labels.dtype) == (np.uint8, np.int64)
        shares = np.bincount(labels, minlength=classes) / len(labels)
        assert np.abs(shares - 1 / classes).max() < 0.02  # all three are nearly balanced


def test_the_splits_of_digits_are_the_1797_scans(digits):
    from PIL import Image
    from sklearn.datasets import load_digits

    def as_bytes(scan):
        gray = Image.fromarray(np.round(scan / 16 * 255).astype(np.uint8))
        return np.asarray(gray.convert("RGB").resize((32, 32), Image.Resampling.BICUBIC)).tobytes()

    scans = load_digits()
    expected = sorted((as_bytes(x), int(y)) for x, y in zip(scans.images, scans.target, strict=True))
    found = [(x.tobytes(), int(y)) for p in SPLITS for x, y in zip(digits.images(p), digits.labels(p), strict=True)]
    assert sorted(found) == expected


def test_a_task_is_a_function_of_its_seed(digits):
    again, other = load("digits"), load("digits", data_seed=1)
    assert again.fingerprint == digits.fingerprint != other.fingerprint
    assert np.array_equal(again.images("val"), digits.images("val"))
    assert load("orientation", data_seed=1).fingerprint == load("orientation", data_seed=1).fingerprint
    assert len(digits.fingerprint) == 16


@pytest.mark.parametrize("change", ["pixel", "label", "class", "split", "order"])
def test_the_fingerprint_sees_every_change(digits, change):
    data = {part: (digits.images(part).copy(), digits.labels(part).copy()) for part in SPLITS}
    classes = digits.classes
    if change == "pixel":
        data["test"][0][5, 3, 3, 1] ^= 1
    elif change == "label":
        data["train"][1][7] = (data["train"][1][7] + 1) % 10
    elif change == "class":
        classes = (*classes[:-1], "nine")
    elif change == "split":
        joined = [np.concatenate([data["train"][i], data["val"][i]]) for i in (0, 1)]
        data["train"], data["val"] = ((joined[0][rows], joined[1][rows]) for rows in (slice(801), slice(801, None)))
    else:
        data["val"] = tuple(a[::-1] for a in data["val"])
    assert dataclasses.replace(digits, data=data, classes=classes).fingerprint != digits.fingerprint


def test_the_first_images_of_a_split_are_a_sample_of_it(digits):
    assert len(np.unique(digits.labels("test")[:100])) == 10


def test_a_task_survives_pickling_cannot_be_written_to_and_shows_itself(digits):
    assert pickle.loads(pickle.dumps(digits)).fingerprint == digits.fingerprint
    with pytest.raises(ValueError, match="read-only"):
        digits.images("train")[0] = 0
    frame = digits.to_frame()
    assert frame.to_numpy().sum() == 1797
    assert frame["test"].sum() == 797
    assert "digits" in digits._repr_html_()
    sheet = contact_sheet(digits)
    # The first tile of the first row is the first zero, enlarged.
    first = digits.images("train")[np.flatnonzero(digits.labels("train") == 0)[0]]
    assert np.array_equal(np.asarray(sheet)[2:66:2, 120:184:2], first)


@given(
    counts=st.lists(st.integers(1, 60), min_size=2, max_size=8),
    share=st.floats(0.05, 1),
    seed=st.integers(0, 5),
)
@settings(max_examples=60, deadline=None)
def test_stratified_keeps_each_share_within_an_image(counts, share, seed):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    size = max(1, int(share * len(labels)))
    rows = stratified(labels, size, np.random.default_rng(seed))
    assert len(np.unique(rows)) == size
    drawn = np.bincount(labels[rows], minlength=len(counts))
    quota = size * np.array(counts) / len(labels)
    assert np.abs(drawn - quota).max() < 1 + 1e-9


@given(
    counts=st.lists(st.integers(4, 60), min_size=2, max_size=6),
    given_parts=st.sampled_from([(), ("test",), ("val", "test"), ("val",)]),
    seed=st.integers(0, 3),
)
@settings(max_examples=60, deadline=None)
def test_splits_are_disjoint_complete_and_hold_every_class(counts, given_parts, seed):
    pool = np.repeat(np.arange(len(counts)), counts)
    labels = {"train": pool, **{part: np.arange(len(counts)).repeat(3) for part in given_parts}}
    made = source(labels)
    size = max(len(pool) // 2, 2 * len(counts))
    parts = split(made, train_size=size, test_size=None, seed=seed)
    n = {name: len(rows) for name, (_, rows) in parts.items()}
    assert n["train"] + n["val"] == size
    assert n["val"] == min(round(0.2 * size), 3 * len(counts) if "val" in given_parts else size)
    assert n["test"] == (
        3 * len(counts) if "test" in given_parts else len(pool) - (size if "val" not in given_parts else n["train"])
    )
    rows = [(where, row) for where, chosen in parts.values() for row in chosen]
    assert len(set(rows)) == len(rows)
    assert set(labels[parts["train"][0]][parts["train"][1]]) == set(range(len(counts)))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"train_size": 1798}, "1797 are there"),
        ({"train_size": 1797}, "leaves none to test on"),
        ({"train_size": 11}, "there are 10 classes"),
        ({"train_size": 0}, "there are 10 classes"),
        ({"train_size": -5}, "there are 10 classes"),
        ({"test_size": 798}, "expected 1 to 797"),
        ({"test_size": 0}, "expected 1 to 797"),
        ({"data_seed": -1}, "must not be negative"),
        ({"size": 0}, "at least 1 pixel"),
    ],
)
def test_impossible_splits_are_one_line(options, said):
    with pytest.raises(TrainError, match=said) as caught:
        load("digits", **options)
    assert "\n" not in str(caught.value)


def test_one_class_is_no_task():
    with pytest.raises(TrainError, match="at least two classes, found 1"):
        split(source({"train": np.zeros(50, dtype=int)}), train_size=10, test_size=None, seed=0)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("conting", "nearest: counting"),
        ("images", "unknown task"),
        ("_source", "unknown task"),
        ("", "unknown task"),
        ("digits:5", "takes nothing after its name"),
        ("digits:", "takes nothing after its name"),
        ("folder", "folder:PATH"),
        ("npz:", "npz:PATH"),
    ],
)
def test_wrong_names_are_one_line(name, said):
    with pytest.raises(TrainError, match=said) as caught:
        load(name)
    assert "\n" not in str(caught.value)


def test_a_path_without_its_kind_is_explained(tmp_path):
    with pytest.raises(TrainError, match=f"folder:{tmp_path}"):
        load(str(tmp_path))


def test_an_unknown_split_names_the_nearest(digits):
    with pytest.raises(TrainError, match="nearest: train"):
        digits.images("trian")


def test_test_size_cuts_stratified():
    task = load("digits", test_size=100)
    assert task.counts == {"train": 800, "val": 200, "test": 100}
    assert np.bincount(task.labels("test")).min() >= 9
    assert np.array_equal(task.images("train"), load("digits").images("train"))


@pytest.mark.parametrize("size", [32, 16, 50])
def test_the_transform_is_torchvisions(digits, size):
    import torch
    from PIL import Image
    from torchvision import transforms as tv

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    theirs = tv.Compose(
        [
            tv.Resize((size, size), interpolation=tv.InterpolationMode.BICUBIC),
            tv.ToTensor(),
            tv.Normalize(mean, std),
        ]
    )
    small = dataclasses.replace(digits, data={p: (digits.images(p)[:20], digits.labels(p)[:20]) for p in SPLITS})
    inputs, labels = small.tensors("test", Transform(size=size, mean=mean, std=std))
    expected = torch.stack([theirs(Image.fromarray(x)) for x in small.images("test")])
    assert inputs.shape == (20, 3, size, size)
    assert inputs.dtype == torch.float32
    assert inputs.is_contiguous()
    assert torch.equal(inputs, expected)
    assert labels.dtype == torch.int64
    assert labels.tolist() == small.labels("test").tolist()


def test_the_transform_says_what_it_does_and_refuses_nonsense():
    text = Transform(size=7, mean=(0.5,) * 3, std=(0.25,) * 3, interpolation="bilinear").describe()
    assert all(part in text for part in ("7x7", "bilinear", "(0.5, 0.5, 0.5)", "(0.25, 0.25, 0.25)"))
    for bad in ({"size": 0}, {"size": 8, "std": (1.0, 0.0, 1.0)}, {"size": 8, "mean": (0.5,)}):
        with pytest.raises(TrainError):
            Transform(**bad)
    with pytest.raises(TrainError, match="nearest: bicubic"):
        Transform(size=8, interpolation="bicubik")


def test_moments_are_of_the_training_pixels(digits):
    mean, std = digits.moments()
    pixels = digits.images("train")[..., 0].astype(np.float64) / 255
    assert mean == pytest.approx((pixels.mean(),) * 3, rel=1e-12)
    assert std == pytest.approx((pixels.std(),) * 3, rel=1e-12)


def test_counting_shows_as_many_shapes_as_it_says():
    """On a plain ground without noise, the connected bright regions are counted by scipy."""
    number = np.arange(160) % 8 + 1
    images = counting_task.draw(np.random.default_rng(3), number, noise=0.0, contrast=0.0).astype(int)
    ground = images[:, 0, 0]  # shapes keep a pixel from the border
    contrast = np.abs(images - ground[:, None, None]).max(-1)
    half_covered = contrast > np.maximum(ndimage.maximum_filter(contrast, (1, 5, 5)) / 2, 20)
    found = np.array([ndimage.label(mask, structure=np.ones((3, 3)))[1] for mask in half_covered])
    assert np.array_equal(found, number)


def test_orientation_shows_the_angle_it_says():
    """On a plain ground without noise and discs, the principal axis of the bright pixels has the angle."""
    degrees = np.random.default_rng(0).uniform(0, 180, 200)
    images = orientation_task.draw(np.random.default_rng(1), degrees, noise=0.0, contrast=0.0, discs=0).astype(float)
    weight = np.abs(images - images[:, :1, :1]).max(-1)
    y, x = np.mgrid[:32, :32]
    for angle, w in zip(degrees, weight, strict=True):
        p = w / w.sum()
        dx, dy = x - (p * x).sum(), -(y - (p * y).sum())
        axis = np.rad2deg(0.5 * np.arctan2(2 * (p * dx * dy).sum(), (p * (dx**2 - dy**2)).sum())) % 180
        assert abs((axis - angle + 90) % 180 - 90) < 2


def test_area_alone_does_not_tell_the_count():
    """Neighbouring counts overlap in painted area: a threshold on the mean brightness is not enough."""
    number = np.repeat([4, 5], 300)
    images = counting_task.draw(np.random.default_rng(5), number, noise=0.0, contrast=0.0).astype(int)
    area = (np.abs(images - images[:, :1, :1]).max(-1) > 12).mean((1, 2))
    best = max(((area > t) == (number == 5)).mean() for t in np.quantile(area, np.linspace(0.05, 0.95, 50)))
    assert best < 0.85


def test_importing_tasks_loads_no_torch_and_no_pandas():
    code = (
        "import sys, train.tasks, train.tasks.__main__; print({'torch','timm','pandas','sklearn'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
