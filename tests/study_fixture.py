"""A small study, run once for all tests of the analyses: real images, the shipped backbone, one epoch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Done:
    """A finished study."""

    study: object
    out: Path

    def run(self, method: str, dim: int = 0, bits: int = 32, seed: int = 0) -> Path:
        from analyses.study import Model

        return self.out / "runs" / self.study.spec(Model(method=method, dim=dim, bits=bits), seed).name


@pytest.fixture(scope="session")
def done(tmp_path_factory, worker_id) -> Done:
    from filelock import FileLock

    from analyses.study import Model, Study, run_study

    adapter = [Model(method="adaptformer", dim=dim, bits=bits) for dim, bits in ((32, 1), (1, 32), (8, 32), (8, 1))]
    study = Study(
        name="small",
        task="digits",
        train_size=80,
        test_size=40,
        recipe="short",
        epochs=1,
        batch_size=32,
        seeds=2,
        context=(),
        flatness=(Model(method="full"), adapter[3], Model(method="lora", dim=4, bits=1)),
        precision=tuple(adapter[2:]),
        tradeoff=tuple(adapter[:2]),
        samples=16,
        directions=2,
        extent=0.5,
        points=3,
        noise_levels=(0.0, 0.3),
        noise_draws=2,
        surface_points=3,
        surface_extent=0.5,
    )
    # The processes of one test run share it: the first makes it, the others find it finished.
    base = tmp_path_factory.getbasetemp()
    out = (base if worker_id == "master" else base.parent) / "study"
    with FileLock(f"{out}.lock"):
        run_study(study, out, workers=2, quiet=True)
    return Done(study, out)
