"""Files written whole or not at all, so that a kill or a full disk leaves the old file or none."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def write_text(path: Path | str, text: str) -> None:
    """Write a text file (UTF-8) whole or not at all."""
    write_bytes(path, text.encode())


def write_bytes(path: Path | str, data: bytes) -> None:
    """Write a file under a temporary name beside it, then rename it over the old one. Makes the folder if missing."""
    path = Path(path)
    replace_all(path.parent, {path.name: data})


def replace_all(folder: Path, contents: dict[str, bytes]) -> None:
    """Write several files under temporary names first (a full disk shows here), then rename them in the given order."""
    folder.mkdir(parents=True, exist_ok=True)
    staged: list[tuple[Path, Path]] = []
    try:
        for name, data in contents.items():
            temporary = folder / f".{name}.{os.getpid()}.{secrets.token_hex(4)}.tmp"
            staged.append((temporary, folder / name))
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())  # otherwise a power cut can leave the new name with no content
        for temporary, final in staged:
            temporary.replace(final)
    finally:
        for temporary, _ in staged:
            temporary.unlink(missing_ok=True)
