"""Adapter folders of peft (adapter_config.json and adapter_model.safetensors) in and out; plain safetensors out.

Nothing is known of the model: tensors keep their names, and the configuration goes into the header as it is. peft
itself is not needed.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quant.content import DTYPES
from quant.errors import QuantError
from quant.lowbit import Lowbit, LowbitTensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_FACTOR = re.compile(
    r"(?:.*\.)?(?:lora_(?:embedding_)?[AB]|hada_w[12]_[ab]|lokr_w[12](?:_[ab])?)(?:\.(?:\w+\.)?weight)?"
)
"""Names of what peft trains as factors of a product: LoRA's, LoHa's and LoKr's."""


def read_peft(folder: Path | str, *, bits: int = 32, quantizer: str = "gaussian_l1") -> Lowbit:
    """Read an adapter folder; with fewer ``bits`` its low-rank factors are quantised, and nothing else.

    Embeddings and modules that were saved whole, rows of them that were trained, prompts and vectors stay as they are.

    Tensors are ordered as a person would count: layer 2 before layer 10.

    Raises
    ------
    QuantError
        If it is no such folder, a file is damaged, or a tensor's values are no floats of 16 to 64 bits.
    """
    folder = Path(folder)
    config, state = _read(folder)
    saved = config.get("modules_to_save") or []
    if not isinstance(saved, list):
        raise QuantError(f"{folder / CONFIG}: expected a list of names as modules_to_save, found {str(saved)[:80]}")
    heads: set[str] = set()
    tensors = []
    for name in sorted(state, key=_natural):
        head = _saved_module(name, saved)
        heads |= {head} if head else set()
        if state[name].dtype not in DTYPES.values():
            raise QuantError(f"{folder}: {name}: expected floats of 16, 32 or 64 bits, found {state[name].dtype}")
        try:
            if bits < 32 and state[name].dim() >= 2 and head is None and _FACTOR.fullmatch(name):
                tensors.append(LowbitTensor.quantised(name, state[name], quantizer=quantizer, bits=bits))
            else:
                tensors.append(LowbitTensor.plain(name, state[name]))
        except QuantError as error:
            text = str(error).removeprefix(f"{name}: ")
            raise QuantError(f"{folder}: {name}: {text}") from None
    header: dict[str, Any] = {"peft": config, **({"head": sorted(heads)} if heads else {})}
    return Lowbit(header=header, tensors=tensors)


def is_peft(path: Path | str) -> bool:
    """Whether there is an adapter folder of peft's."""
    return (Path(path) / CONFIG).is_file()


def write_peft(folder: Path | str, lowbit: Lowbit) -> list[Path]:
    """Write the folder that peft opens, quantised tensors as float32 at their values; gives the paths.

    Raises
    ------
    QuantError
        If the content did not come from such a folder: its header has no ``peft``.
    """
    from safetensors.torch import save

    from figures.atomic import replace_all

    config = lowbit.header.get("peft")
    if not isinstance(config, dict):
        raise QuantError("expected a file imported from a peft folder, found none of its configuration in the header")
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    weights = save({t.name: t.dense() for t in lowbit.tensors}, metadata={"format": "pt"})
    replace_all(Path(folder), {WEIGHTS: weights, CONFIG: text.encode()})
    return [Path(folder) / CONFIG, Path(folder) / WEIGHTS]


def write_safetensors(path: Path | str, lowbit: Lowbit) -> list[Path]:
    """Write the tensors at their values, the header as JSON in the metadata; gives the path."""
    from safetensors.torch import save

    from figures.atomic import write_bytes

    metadata = {"header": json.dumps(lowbit.header, sort_keys=True, ensure_ascii=False)}
    write_bytes(path, save({t.name: t.dense() for t in lowbit.tensors}, metadata=metadata))
    return [Path(path)]


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Configuration and tensors of a folder.

    Raises
    ------
    QuantError
        If a file is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not (folder / CONFIG).is_file():
        raise QuantError(f"{folder}: expected a folder with {CONFIG}, found none")
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise QuantError(f"{folder / CONFIG}: expected JSON, found a damaged file ({error})") from None
    if not isinstance(config, dict) or not isinstance(config.get("peft_type"), str):
        raise QuantError(f"{folder / CONFIG}: expected a configuration with peft_type, found none")
    if not (folder / WEIGHTS).is_file():
        pickled = "; adapter_model.bin is a pickle and is not opened: save it again as safetensors"
        extra = pickled if (folder / "adapter_model.bin").is_file() else ""
        raise QuantError(f"{folder}: expected {WEIGHTS}, found none{extra}")
    try:
        return config, load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise QuantError(f"{folder / WEIGHTS}: expected tensors, found a damaged file ({error})") from None


def _saved_module(name: str, saved: Sequence[object]) -> str | None:
    """The module that a tensor is of if peft saved it whole: one whose name ends as ``modules_to_save`` says."""
    found = (re.match(rf".*?{re.escape(str(part))}(?=\.)", name) for part in saved)
    return next((m[0] for m in found if m), None) if ".lora_" not in name else None


def _natural(name: str) -> list[tuple[int, str]]:
    """Numbers in a name by their size, text by its letters."""
    parts = re.split(r"([0-9]+)", name)
    return [(int(part), part) if i % 2 else (-1, part) for i, part in enumerate(parts)]
