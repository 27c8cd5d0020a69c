"""Image files in class folders, in a folder or a .tar: ``folder:PATH``.

Layouts: ``<class>/<image>``; ``train/<class>/<image>`` with ``test/`` and ``val/`` beside it where they exist. One
folder around all of it is looked through. Archives are read in memory, never unpacked.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path, PurePosixPath

import numpy as np

from train.errors import TrainError
from train.tasks._source import SPLITS, Source
from train.tasks.images import SUFFIXES, decode_one

TAKES_PATH = True
DEPTH = 4  # a wrapping folder, split, class, image
LAYOUTS = "<class>/<image> or train/<class>/<image> and test/<class>/<image>"


def read(argument: str, *, size: int | None = None, seed: int = 0) -> Source:
    """List the images and their classes; nothing is decoded yet.

    Raises
    ------
    TrainError
        Nothing there, no class folders, an empty class, classes that differ between splits, an archive that is damaged
        or holds unsafe names.
    """
    root = Path(argument).expanduser()
    if not root.exists():
        raise TrainError(f"{root}: no such folder or .tar of images")
    archive = not root.is_dir()
    parts = _layout(_list_archive(root) if archive else list(_list_folder(root)), root)
    classes = sorted({c for files in parts.values() for c in files})
    for part, files in parts.items():
        for name in classes:
            if not files.get(name):
                found = "an empty class folder" if name in files else "no such class folder"
                raise TrainError(
                    f"{root}: class {name!r} has {found} in {part}/; every class needs images in every split"
                )
    listed = {part: [(f, k) for k, c in enumerate(classes) for f in sorted(files[c])] for part, files in parts.items()}

    def take(part: str, rows: np.ndarray) -> np.ndarray:
        names = [listed[part][row][0] for row in rows]
        return _decode(root, names, size, archive)

    return Source(
        name=root.resolve().name.split(".")[0] if archive else root.resolve().name,
        classes=tuple(classes),
        labels={part: np.array([k for _, k in files], dtype=np.int64) for part, files in listed.items()},
        take=take,
    )


def _layout(entries: list[tuple[PurePosixPath, bool]], root: Path) -> dict[str, dict[str, list[str]]]:
    # Sort entries (path, is folder) into part -> class -> files. An unsplit layout is the part train.
    shift = 0
    images = [path for path, folder in entries if not folder]
    while images and len({p.parts[shift] for p in images if len(p.parts) > shift}) == 1 and all(
        len(p.parts) > shift + 2 for p in images
    ):  # fmt: skip
        shift += 1
    paths = [(p.parts[shift:], folder) for p, folder in entries if len(p.parts) > shift]
    split = any(len(p) == 3 and p[0] in SPLITS and not folder for p, folder in paths)
    depth = 1 if split else 0
    parts: dict[str, dict[str, list[str]]] = {}
    prefix = images[0].parts[:shift] if images else ()
    for p, folder in paths:
        part = p[0] if split else "train"
        if part not in SPLITS or len(p) != depth + (1 if folder else 2):
            continue
        files = parts.setdefault(part, {}).setdefault(p[depth], [])
        if not folder:
            files.append("/".join((*prefix, *p)))
    if not any(files for part in parts.values() for files in part.values()):
        raise TrainError(f"{root}: no images found; expected {LAYOUTS} ({', '.join(sorted(SUFFIXES))})")
    if not split and set(parts["train"]) <= set(SPLITS):
        raise TrainError(
            f"{root}: {', '.join(f'{p}/' for p in parts['train'])} hold images directly; expected {LAYOUTS}"
        )
    if "train" not in parts:
        raise TrainError(f"{root}: found {', '.join(f'{p}/' for p in parts)} without train/; expected {LAYOUTS}")
    return {part: parts[part] for part in SPLITS if part in parts}


def _list_folder(root: Path, at: PurePosixPath = PurePosixPath()) -> Iterator[tuple[PurePosixPath, bool]]:
    # Folders and image files below root, hidden ones left out, links followed, no deeper than a layout goes.
    for entry in sorted((root / at).iterdir()):
        path = at / entry.name
        if entry.name.startswith(".") or len(path.parts) > DEPTH:
            continue
        if entry.is_dir():
            yield path, True
            yield from _list_folder(root, path)
        elif entry.suffix.lower() in SUFFIXES:
            yield path, False


def _list_archive(root: Path) -> list[tuple[PurePosixPath, bool]]:
    # The same of a .tar. A name that would leave the archive's folder, a link or a device is refused.
    entries: dict[PurePosixPath, bool] = {}  # of a name that comes twice the last one counts, as in any unpacking
    try:
        with tarfile.open(root) as tar:
            for member in tar:
                path = PurePosixPath(member.name)
                if path.is_absolute() or ".." in path.parts or "\\" in member.name:
                    raise TrainError(f"{root}: unsafe name {member.name!r} in the archive")
                if not (member.isdir() or member.isreg()):
                    raise TrainError(f"{root}: {member.name!r} is a link or a device; expected folders and files only")
                hidden = any(name.startswith(".") for name in path.parts)
                if not hidden and (member.isdir() or path.suffix.lower() in SUFFIXES):
                    entries[path] = member.isdir()
    except TrainError:
        raise
    except Exception as error:  # damaged headers, streams and encodings raise whatever the parser stumbles on
        reason = " ".join(str(error).split()) or type(error).__name__
        raise TrainError(
            f"{root}: expected a folder or a .tar of images, this archive does not read ({reason})"
        ) from error
    return list(entries.items())


def _decode(root: Path, names: list[str], size: int | None, archive: bool) -> np.ndarray:
    # Decode files to one array; without a size they must all be squares of one size.
    images: list[np.ndarray] = []
    with tarfile.open(root) if archive else nullcontext() as tar:
        members = {str(PurePosixPath(member.name)): member for member in tar} if tar else {}
        for name in names:
            where = f"{root}: {name}" if tar else str(root / name)
            image = decode_one(_member(tar, members[name], where) if tar else root / name, size, where)
            first = images[0] if images else image
            if size is None and (image.shape != first.shape or image.shape[0] != image.shape[1]):
                height, width, _ = image.shape
                raise TrainError(
                    f"{where}: {width}x{height} pixels; without a size (--size) images must be squares of one size"
                )
            images.append(image)
    return np.stack(images) if images else np.empty((0, size or 1, size or 1, 3), dtype=np.uint8)


def _member(tar: tarfile.TarFile, member: tarfile.TarInfo, where: str) -> io.BytesIO:
    try:
        file = tar.extractfile(member)
        return io.BytesIO(file.read() if file else b"")
    except Exception as error:  # as above
        raise TrainError(f"{where}: this file does not read from the archive ({error})") from error
