"""The best file of so many bytes: ``python -m analyses.budget CKPT --bytes 2400``.

Bytes are shared out among the adapter's pairs of matrices, each in fewer bits or with fewer hidden units. What a choice
costs is measured by itself, as the mean KL divergence of the predictions on training images from the checkpoint's; the
choices are made by :mod:`quant.allocate`, which takes these costs to add up. The file that comes out is then measured
as a whole on test images, beside the best of equal bits and units everywhere.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from analyses.command import Analysis
from analyses.errors import AnalysisError
from analyses.options import Options

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd

    from analyses.candidates import Candidates, Choice
    from analyses.checkpoint import Checkpoint
    from analyses.command import OnStep
    from analyses.store import Tables
    from quant.lowbit import Lowbit

    Chosen = dict[tuple[str, ...], Choice]

MOST_ENCODED = 8
"""Files that are encoded to find the one that fits, whatever their number of choices: each takes time."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What the file may take, and what there is to choose from."""

    bytes: int
    """Of the file without its head and class names: header, codes, statistics and checksum."""
    bits: tuple[int, ...] = (1, 2, 3, 4, 6, 8)
    """Bits a weight to choose from."""
    quantizer: str = "gaussian_l1/f16"
    """A quantiser, NAME[/row|/group<N>][/f16]."""


def compute(checkpoint: Checkpoint, options: Options, spec: Budget, on_step: OnStep) -> tuple[Tables, dict[str, Any]]:
    """Tables ``files`` (the allocated one and the best uniform one) and ``allocation``; writes the files beside them.

    A file's name ends in a digest of it, so that no other budget's takes its place before the tables are replaced.
    """
    import pandas as pd

    from analyses.candidates import candidates
    from analyses.measure import labelled
    from analyses.pack import measured
    from analyses.rounding import facts, rounded_space
    from figures.atomic import write_bytes
    from quant.lowbit import to_bytes

    space = rounded_space(checkpoint)
    objective = checkpoint.objectives(space.model, ("train",), options)["train"]
    options_of = candidates(space, objective, spec.quantizer, spec.bits, on_step)
    files, chosen = [], {}
    for how, found in (("allocated", _shared_out), ("uniform", _uniform)):
        low, size, chosen[how] = _fitting(checkpoint, options, spec, options_of, found)
        data = to_bytes(low)
        path = _folder(checkpoint) / _name(how, data)
        write_bytes(path, data)
        files.append({"how": how, "adapter_bytes": size, **measured(checkpoint, path, options)})
    allocation = [
        {
            "tensors": " ".join(names),
            "hidden_units": units,
            "stored_bits": bits,
            "size_bytes": options_of[names][units, bits].nbytes,
            "kl_nats": options_of[names][units, bits].damage,
            "how": how,
        }
        for how, of in chosen.items()
        for names, (units, bits) in of.items()
    ]
    tables = {
        "files": pd.DataFrame(files),
        "allocation": labelled(pd.DataFrame(allocation), checkpoint),
    }
    return tables, {"measured": {space.kind: facts(space, objective, objective.evaluate())}}


def _fitting(
    checkpoint: Checkpoint,
    options: Options,
    spec: Budget,
    found: Candidates,
    choose: Callable[[Candidates, int], Chosen],
) -> tuple[Lowbit, int, Chosen]:
    """The file of least predicted damage that fits, of those that ``choose`` makes of some room; its bytes and choices.

    ``choose`` counts dense bytes and knows nothing of what surrounds the tensors. So the room is sought, between what
    fitted and what did not, at which the file as it is written takes up the budget.

    Raises
    ------
    AnalysisError
        If even the smallest file is larger than the budget.
    """
    from analyses.pack import file_of

    def made(chosen: Chosen) -> tuple[Lowbit, int]:
        low = {t.name: t for group, choice in chosen.items() for t in found[group][choice].tensors}
        bits = max(bits for _, bits in chosen.values())  # the header has one number: no matrix has more
        file = file_of(checkpoint, low, options, bits=bits, quantizer=spec.quantizer)
        return file, _size(file)

    best = choose(found, 0)
    file, size = made(best)
    if size > spec.bytes:
        raise AnalysisError(
            f"--bytes {spec.bytes}: expected a budget of at least {size} bytes, those of the smallest file"
        )
    sizes = {tuple(best.items()): size}
    low, high = _dense(found, best), 1 + sum(max(c.nbytes for c in of.values()) for of in found.values())
    room = spec.bytes
    while high - low > 1:
        if not low < room < high:
            room = (low + high) // 2
        chosen = choose(found, room)
        dense = _dense(found, chosen)
        if (key := tuple(chosen.items())) not in sizes:
            if len(sizes) == MOST_ENCODED:
                break
            other, sizes[key] = made(chosen)
            if sizes[key] <= spec.bytes and _damage(found, chosen) < _damage(found, best):
                file, best = other, chosen
        if (left := spec.bytes - sizes[key]) >= 0:
            low, room = room, room + max(1, left * dense // sizes[key])
        else:
            high, room = dense, dense + left
    return file, sizes[tuple(best.items())], best


def _shared_out(found: Candidates, room: int) -> Chosen:
    """The choices of least damage that take no more than ``room``; where none does, the smallest."""
    from quant.allocate import allocate

    costs = {group: {choice: (c.nbytes, c.damage) for choice, c in of.items()} for group, of in found.items()}
    least = sum(min(nbytes for nbytes, _ in of.values()) for of in costs.values())
    return dict(allocate(costs, max(room, least)).chosen)


def _uniform(found: Candidates, room: int) -> Chosen:
    """The same bits, and the same share of the units, everywhere: as above."""
    ranks = [list(of) for of in found.values()]
    options = [dict(zip(found, choices, strict=True)) for choices in zip(*ranks, strict=True)]
    room = max(room, min(_dense(found, option) for option in options))
    fitting = [option for option in options if _dense(found, option) <= room]
    return min(fitting, key=lambda option: _damage(found, option))


def _dense(found: Candidates, chosen: Chosen) -> int:
    return sum(found[group][choice].nbytes for group, choice in chosen.items())


def _damage(found: Candidates, chosen: Chosen) -> float:
    return sum(found[group][choice].damage for group, choice in chosen.items())


def _size(lowbit: Lowbit) -> int:
    """Bytes of the file without its head and class names."""
    from quant.lowbit import to_bytes

    return len(to_bytes(lowbit.without_head()))


def _name(how: str, data: bytes) -> str:
    return f"{how}-{hashlib.sha256(data).hexdigest()[:16]}.lowbit"


def _made(files: pd.DataFrame, folder: Path) -> bytes | None:
    """The allocated file that the table speaks of; None if it is gone or changed."""
    name = str(files.set_index("how").at["allocated", "file"])
    try:
        data = (folder / name).read_bytes()
    except OSError:
        return None
    return data if name == _name("allocated", data) else None


def _forget(tables: Path, folder: Path) -> None:
    """Tables without the file that they speak of count as unfinished and are made again."""
    from figures.tables import PROVENANCE, TableError, read_table

    try:
        made = _made(read_table(tables, "files").frame, folder)
    except TableError:
        made = None
    if made is None:
        (tables / PROVENANCE).unlink(missing_ok=True)


def _folder(checkpoint: Checkpoint) -> Path:
    return checkpoint.folder / "tables" / "budget-file"


def _choices(checkpoint: Checkpoint, spec: Budget) -> int:
    from analyses.candidates import groups
    from analyses.rounding import rounded_space

    space = rounded_space(checkpoint)
    sizes = [len(space.centre[g[0]]).bit_length() if len(g) == 2 else 1 for g in groups(space)]
    return sum(sizes) * len(spec.bits)


ANALYSIS = Analysis(
    name="budget",
    part="budget-file",
    compute=compute,
    shown=("files",),
    steps=_choices,
    assumed=lambda options, spec: (
        f"{spec.bytes} bytes without the head, {spec.quantizer} at {', '.join(map(str, spec.bits))} bits, "
        f"{options.samples} images of each split"
    ),
    unit="choices",
)


def main(
    checkpoint: Positional[Path],
    /,
    budget: Budget,
    options: Options = Options(),
    output: Annotated[Path | None, arg(aliases=["-o"])] = None,
) -> None:
    """Share out a budget of bytes among an adapter's matrices, write the file, and measure its accuracy.

    Parameters
    ----------
    checkpoint
        A 32-bit run folder, or weights of a whole network with --backbone and --task.
    budget
        What the file may take, and what there is to choose from.
    options
        What every analysis takes.
    output
        The .lowbit file; budget-BYTES.lowbit beside the checkpoint's tables if left out.

    Raises
    ------
    AnalysisError
        If the file that was made is gone before it is written.
    """
    from analyses.checkpoint import open_checkpoint
    from analyses.pack import writable
    from analyses.store import announce
    from figures.atomic import write_bytes

    if output is not None:
        writable(output)
    opened = open_checkpoint(checkpoint, options)
    folder = _folder(opened)
    for tables in ((options.out or opened.folder) / "tables" / ANALYSIS.name, folder):
        _forget(tables, folder)
    made = _made(ANALYSIS.run([checkpoint], options, budget)["files"], folder)
    if made is None:
        raise AnalysisError(f"{folder}: the file was taken away while it was measured: run the command again")
    target = output or opened.folder / f"budget-{budget.bytes}.lowbit"
    write_bytes(target, made)
    announce(options.quiet, f"wrote {target}")


if __name__ == "__main__":
    from figures.command import run

    run(main, prog="python -m analyses.budget")
