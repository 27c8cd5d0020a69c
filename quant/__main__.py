"""Files of low-bit adapters: ``python -m quant import | export | inspect``."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

DESCRIPTION = """Bring adapters into .lowbit files and out of them, and see what a file holds.

import takes a .bin of the low-bit adapter paper with its YAML, or an adapter folder of peft; export writes these again,
or plain safetensors; inspect says what is in a file and what each part costs in bytes."""


@dataclass(frozen=True, kw_only=True)
class Import:
    """Make a .lowbit file of the paper's .bin with its YAML, or of a peft folder."""

    source: tyro.conf.Positional[Path]
    """The .bin, or the folder."""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """The .lowbit file to write."""
    config: Path | None = None
    """The .bin's YAML; the one beside it if left out."""
    kind: Annotated[Literal["petl", "peft"] | None, tyro.conf.arg(name="from")] = None
    """What the source is; seen from it if left out."""
    bits: int = 32
    """Of a peft folder's low-rank factors: 1 to 8, or 32 to keep them as they are. A .bin keeps its own."""
    quantizer: str = "gaussian_l1"
    """What quantises them, with its scope: nf, uniform_mse/row, gaussian_l1/f16 and others."""
    dense: bool = False
    """Leave codes dense where entropy coding would make the file smaller: faster, for files of many megabytes."""
    blocks: int | None = None
    """Blocks of a .bin's backbone, where its name does not say."""
    width: int | None = None
    """Width of a .bin's backbone, where its name does not say."""


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write a .lowbit file as the paper's .bin and YAML, as a peft folder, or as plain safetensors."""

    source: tyro.conf.Positional[Path]
    """The .lowbit file."""
    to: Literal["petl", "peft", "safetensors"]
    """petl: DATASET-bitB-dimD.bin and .yaml; peft: an adapter folder; safetensors: one file of dense values."""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """The folder to write into; for safetensors the file."""


@dataclass(frozen=True, kw_only=True)
class Inspect:
    """Say what a file holds and what each part of it costs in bytes, with the head and without."""

    source: tyro.conf.Positional[Path]
    """A .lowbit file, a .bin of the paper's, or a peft folder."""
    config: Path | None = None
    """A .bin's YAML; the one beside it if left out."""
    json: Annotated[bool, tyro.conf.arg(name="json")] = False
    """The result as JSON, with every tensor and the header."""
    blocks: int | None = None
    """Blocks of a .bin's backbone, where its name does not say."""
    width: int | None = None
    """Width of a .bin's backbone, where its name does not say."""


def main(
    action: Annotated[Import, tyro.conf.subcommand("import", prefix_name=False)]
    | Annotated[Export, tyro.conf.subcommand("export", prefix_name=False)]
    | Annotated[Inspect, tyro.conf.subcommand("inspect", prefix_name=False)],
) -> None:
    """Import, export or inspect a file."""
    if isinstance(action, Import):
        bring_in(action)
    elif isinstance(action, Export):
        bring_out(action)
    else:
        show(action)


def bring_in(options: Import) -> None:
    """Import.

    Raises
    ------
    QuantError
        If the source is none that can be imported, or an option does not fit it.
    """
    from quant.errors import QuantError
    from quant.lowbit import write_lowbit
    from quant.peft import read_peft
    from quant.petl import config_beside, read_petl

    source, kind = options.source, options.kind or ("peft" if options.source.is_dir() else "petl")
    if kind == "peft":
        given = {"--config": options.config, "--blocks": options.blocks, "--width": options.width}
        if useless := [flag for flag, value in given.items() if value is not None]:
            raise QuantError(f"a peft folder says all of itself: expected no {' and no '.join(useless)}")
        lowbit = read_peft(source, bits=options.bits, quantizer=options.quantizer)
    elif options.bits != 32:
        raise QuantError("the codes of a .bin are imported as they are: expected no --bits")
    else:
        config = options.config or config_beside(source)
        lowbit = read_petl(source, config, blocks=options.blocks, width=options.width)
    try:
        write_lowbit(options.out, lowbit, streams=not options.dense)
    except QuantError as error:  # what a YAML or a configuration says may have no place in the header
        raise QuantError(f"{source}: {error}") from None
    print(f"{options.out}: {options.out.stat().st_size} bytes", file=sys.stderr)


def bring_out(options: Export) -> None:
    """Export.

    Raises
    ------
    QuantError
        If safetensors should be written where a folder is.
    """
    from quant.errors import QuantError
    from quant.lowbit import read_lowbit
    from quant.peft import write_peft, write_safetensors
    from quant.petl import write_petl

    lowbit = read_lowbit(options.source)
    if options.to == "petl":
        written = write_petl(options.out, lowbit)
    elif options.to == "peft":
        written = write_peft(options.out, lowbit)
    elif options.out.is_dir():
        raise QuantError(f"{options.out}: expected a file to write, found a folder")
    else:
        written = write_safetensors(options.out, lowbit)
    for path in written:
        print(f"{path}: {path.stat().st_size} bytes", file=sys.stderr)


def show(options: Inspect) -> None:
    """Inspect."""
    import json

    from figures.command import emit
    from quant.contents import contents

    found = contents(options.source, options.config, blocks=options.blocks, width=options.width)
    if options.json:
        print(json.dumps(found.to_dict(), indent=1, ensure_ascii=False))
        return
    print(found.summary(), file=sys.stderr)
    emit(found.to_frame())


if __name__ == "__main__":
    from figures.command import run

    run(main, prog="python -m quant", description=DESCRIPTION)
