"""How much is measured, and of which models; the models are trained when they are first asked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from benchmarks._subjects import Subject, opened, tiny, trained


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes of the measurements; the defaults are those of the published table.

    Attributes
    ----------
    samples, batch
        Images of the surfaces, and of the curvature.
    repeats, block
        Alternated repeats, and points along an axis of the grid that is timed at a time.
    axis
        Points along an axis of the whole surface.
    products, points
        Products with the Hessian that its opening is spread over; points over which memory is watched.
    full_grids
        Whether the error of adaptive surfaces is checked against all their points.
    most
        An attempt of another tool is stopped after this many times our seconds (at least a minute).
    landscaper
        Interpreter of an environment with landscaper, whose dependencies ask for another NumPy.
    """

    samples: int = 200
    batch: int = 256
    repeats: int = 4
    block: int = 5
    axis: int = 51
    products: int = 20
    points: int = 1000
    full_grids: bool = False
    most: float = 10.0
    landscaper: Path | None = None


@dataclass(kw_only=True)
class Subjects:
    """The models by name: ``sharp``, ``calm``, ``lora``, ``adaptformer``.

    Attributes
    ----------
    out
        Where they are trained.
    epochs
        How long.
    runs
        Run folders to measure in place of ``sharp`` and ``calm``.
    small
        Whether a tiny net stands for each of them.
    """

    out: Path
    epochs: int
    runs: tuple[Path, ...] = ()
    small: bool = False
    made: dict[str, Subject] = field(default_factory=dict)

    def surfaces(self) -> list[Subject]:
        """Those whose surfaces are measured."""
        if self.runs:
            return [self._run(path) for path in self.runs]
        return [self["calm"], self["sharp"]]

    def whole(self) -> Subject:
        """The one whose curvature by all parameters is measured."""
        return self._run(self.runs[0]) if self.runs else self["sharp"]

    def adapters(self) -> list[Subject]:
        """Those whose curvature by the adapter's parameters is measured."""
        return [tiny("adapters")] if self.small else [self["lora"], self["adaptformer"]]

    def __getitem__(self, name: str) -> Subject:
        if name not in self.made:
            self.made[name] = tiny(name) if self.small else trained(name, self.out, epochs=self.epochs)
        return self.made[name]

    def _run(self, path: Path) -> Subject:
        if str(path) not in self.made:
            self.made[str(path)] = opened(path)
        return self.made[str(path)]
