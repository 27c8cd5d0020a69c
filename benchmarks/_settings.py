"""How much is measured, and of which models; the models are trained when they are first asked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from benchmarks._subjects import TRAINED, Subject, opened, tiny, trained


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes of the measurements; the defaults are those of the published table.

    Attributes
    ----------
    samples, batch, spectrum
        Images of the surfaces, of Hessian products, and of eigenvalues and densities.
    repeats, block
        Alternated repeats, and points along an axis of the grid that is timed at a time.
    axis
        Points along an axis of the whole surface.
    products, points
        Products with the Hessian that its opening is spread over; points over which memory is watched.
    full_grids
        Whether the error of the whole adaptive surface is checked against all its points.
    check_axis, check_samples, check_seeds
        Points along an axis, images and planes a model where stated errors are checked on many surfaces.
    device
        Where the share of the matmul peak is measured.
    most
        An attempt of another tool is stopped after this many times our seconds (at least a minute).
    landscaper
        Interpreter of an environment with landscaper, whose dependencies ask for another NumPy.
    """

    samples: int = 200
    batch: int = 256
    spectrum: int = 64
    repeats: int = 3
    block: int = 9
    axis: int = 51
    products: int = 20
    points: int = 1000
    full_grids: bool = False
    check_axis: int = 25
    check_samples: int = 64
    check_seeds: int = 8
    device: str = "cpu"
    most: float = 1.5
    landscaper: Path | None = None


@dataclass(kw_only=True)
class Subjects:
    """The models by name: ``sharp``, ``calm``, ``lora``, ``adaptformer``, ``onebit``.

    Attributes
    ----------
    out
        Where they are trained.
    epochs
        How long.
    runs
        Run folders to measure in place of ``sharp`` and ``calm``.
    also
        Run folders whose whole adaptive surface is drawn too, and its stated error checked, of 128 images.
    small
        Whether a tiny net stands for each of them.
    """

    out: Path
    epochs: int
    runs: tuple[Path, ...] = ()
    also: tuple[Path, ...] = ()
    small: bool = False
    made: dict[str, Subject] = field(default_factory=dict)

    def surfaces(self) -> list[Subject]:
        """Those whose surfaces are measured."""
        if self.runs:
            return [self._run(path) for path in self.runs]
        return [self["calm"], self["sharp"]]

    def whole_surfaces(self, settings: Settings) -> list[tuple[Subject, int]]:
        """Those whose whole adaptive surface is drawn, each with its images; with full grids of adapters too."""
        more = [] if self.runs or not settings.full_grids else [self["adaptformer"], self["onebit"]]
        here = [(subject, settings.samples) for subject in [*self.surfaces(), *more]]
        return here + [(self._run(path), 2 * settings.check_samples) for path in self.also]

    def whole(self) -> Subject:
        """The one whose curvature by all parameters is measured."""
        return self._run(self.runs[0]) if self.runs else self["sharp"]

    def adapters(self) -> list[Subject]:
        """Those whose curvature by the adapter's parameters is measured."""
        return [tiny("adapters")] if self.small else [self["lora"], self["adaptformer"]]

    def checked(self, settings: Settings) -> list[tuple[Subject, int, int]]:
        """Those whose stated errors are checked, each with its images and planes."""
        names = ["sharp"] if self.small else list(TRAINED)
        return [(self[name], settings.check_samples, settings.check_seeds) for name in names]

    def __getitem__(self, name: str) -> Subject:
        if name not in self.made:
            self.made[name] = tiny(name) if self.small else trained(name, self.out, epochs=self.epochs)
        return self.made[name]

    def _run(self, path: Path) -> Subject:
        if str(path) not in self.made:
            self.made[str(path)] = opened(path, name=path.name)
        return self.made[str(path)]
