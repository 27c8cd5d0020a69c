"""How a backbone is tuned: one file a method, found by its name.

A file ``<name>.py`` here defines ``METHOD = Method(...)``. Names that begin with an underscore are helpers. Listing the
names imports nothing; ``get`` imports the one file asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from train.errors import TrainError, nearest

if TYPE_CHECKING:
    from torch import nn


def _no_tensors(model: nn.Module) -> list[str]:
    return []


@dataclass(frozen=True, kw_only=True)
class Method:
    """How a backbone is tuned: what is inserted, what is trained, what is quantised.

    Parameters
    ----------
    name, title
        The file's name, and the name that people read.
    dim_letter
        The letter before the dimension in labels (h for a hidden size, r for a rank); empty where there is no adapter.
    linear
        Whether the trained change can be folded into dense matrices of the backbone (``merge``).
    parameters
        ``parameters(width, depth, dim)``: trained numbers without the head, in closed form (PAPER section 3).
    insert
        Puts the adapter's modules into a model, in place; None where there are none.
    adapter_names
        Names of the adapter's tensors in a model that has them.
    fold, touched
        Of a linear method: folds a model whose low-bit layers are already dense, in place; names of the dense matrices
        that it changes.
    whole
        Every tensor of the network is trained.
    seeded
        What is trained means something only together with what the run's seed drew beside it.
    """

    name: str
    title: str
    parameters: Callable[..., int]
    dim_letter: str = ""
    linear: bool = False
    whole: bool = False
    seeded: bool = False
    insert: Callable[..., None] | None = None
    adapter_names: Callable[[nn.Module], list[str]] = _no_tensors
    fold: Callable[[nn.Module], None] | None = None
    touched: Callable[[nn.Module], list[str]] = _no_tensors

    @property
    def has_adapter(self) -> bool:
        """Whether the method inserts tensors of a chosen dimension and number of bits."""
        return self.insert is not None

    def apply(
        self,
        model: nn.Module,
        *,
        dim: int = 0,
        bits: int = 32,
        quantizer: str = "gaussian_l1",
        scale: float = 1.0,
        head_bits: int = 32,
    ) -> None:
        """Insert the method's tensors and the head into ``model``, and freeze what is not trained; all in place.

        Draws initial values from torch's global generator: seed it first. A network whose blocks are not of the kind
        that the method knows is a ``TrainError``.
        """
        from train.methods import _parts

        if head_bits != 32:
            _parts.quantise_head(model, bits=head_bits, quantizer=quantizer)
        if self.insert is not None:
            self.insert(model, dim=dim, bits=bits, quantizer=quantizer, scale=scale)
        trained = set(self.trainable(model))
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in trained)

    def trainable(self, model: nn.Module) -> list[str]:
        """Names of the trained tensors, in the model's order: latent weights of the adapter, and the head."""
        names = [name for name, _ in model.named_parameters()]
        if self.whole:
            return names
        adapter = {*self.adapter_names(model), *head_names(model)}
        return [name for name in names if name in adapter]

    def kept(self, model: nn.Module) -> list[str]:
        """Names of the tensors that a run keeps: the trained ones and, of a whole network, its running statistics."""
        return self.trainable(model) + (statistic_names(model) if self.whole else [])

    def train(self, model: nn.Module) -> None:
        """Put ``model`` into training mode, but where its backbone is frozen not the layers with running statistics.

        Their statistics would move with every batch, and a run that trains no whole network does not keep them.
        """
        model.train()
        if not self.whole:
            for name in statistic_names(model):
                model.get_submodule(name.rpartition(".")[0]).training = False

    def merge(self, model: nn.Module) -> nn.Module:
        """Copy of ``model`` as a plain network, the trained change folded into its dense matrices.

        A ``TrainError`` where the method has no merged form.
        """
        self._require_linear()
        from quant.fake import bake

        merged = bake(model)
        assert self.fold is not None
        self.fold(merged)
        return merged

    def balanced(self, model: nn.Module) -> nn.Module:
        """Copy of ``model`` with its factors in the balanced gauge, which any pair of the same product shares.

        A ``TrainError`` where the method has no merged form, or its factors are stored in low bits.
        """
        self._require_linear()
        from train.methods import _gauge

        return _gauge.balanced(model)

    def merged_names(self, model: nn.Module) -> list[str]:
        """Names of the dense matrices that the trained change is folded into.

        A ``TrainError`` where the method has no merged form.
        """
        self._require_linear()
        return self.touched(model)

    def label(self, dim: int) -> str:
        """The method and its size as people read them, like ``AdaptFormer h8``."""
        return f"{self.title} {self.dim_letter}{dim}" if self.has_adapter else self.title

    def _require_linear(self) -> None:
        if not self.linear:
            why = "there is a nonlinearity between its matrices" if self.has_adapter else "it inserts no matrices"
            linear = ", ".join(name for name in names() if get(name).linear)
            raise TrainError(f"{self.title} has no merged form: {why}; methods that have one: {linear}")


def head_names(model: nn.Module) -> list[str]:
    """Names of the tensors of a timm model's classification head: ``head``, ``fc`` or what timm says it is."""
    heads = getattr(model, "pretrained_cfg", {}).get("classifier") or "head"
    prefixes = tuple(f"{head}." for head in ([heads] if isinstance(heads, str) else heads))
    return [name for name, _ in model.named_parameters() if name.startswith(prefixes)]


def statistic_names(model: nn.Module) -> list[str]:
    """Names of what a model stores beside its parameters: the running statistics of BatchNorm and their counters."""
    stored = model.state_dict()
    return [name for name, _ in model.named_buffers() if name in stored]


def names() -> list[str]:
    """Names of all methods: the files of this folder, without importing them."""
    return sorted(p.stem for p in Path(__file__).parent.glob("*.py") if not p.stem.startswith("_"))


def get(name: str) -> Method:
    """The method of that name.

    Raises
    ------
    TrainError
        If there is none.
    """
    if name not in names():
        raise TrainError(unknown("method", name, names()))
    module: Any = importlib.import_module(f"train.methods.{name}")
    return module.METHOD


def unknown(what: str, found: object, valid: list[str]) -> str:
    """One line for a wrong name: what was found, what there is, and the nearest of it."""
    return f"unknown {what} {str(found)!r}: expected one of {', '.join(valid)}{nearest(str(found), valid)}"
