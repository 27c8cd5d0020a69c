"""Checkpoints seen in a plane: the one that their own displacements span best, or any other.

Principal component analysis as in Li et al. 2018 (Visualizing the Loss Landscape of Neural Nets, section 7.2), by the
T x T Gram matrix of the displacements: tensors are read one after another, and nothing of size P x P is ever made.
Departures: displacements are taken from the checkpoint that the plane goes through and are not centred a second time,
so that plane and explained share speak of the same thing; coordinates are orthogonal projections also where two
directions are neither orthogonal nor of norm 1; and what the plane does not show of a checkpoint stands beside it.

T checkpoints, P parameters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from landscape.directions import Direction, from_tensors
from landscape.errors import LandscapeError, nearest
from landscape.guard import same_bits
from landscape.space import Space, half

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from landscape.surface import Surface

State = Mapping[str, Tensor]
Floats = NDArray[np.float64]
CHUNK = 1 << 20  # entries of a tensor that are held at once in float64, for all checkpoints
_FLAT = 1e-13  # second over first eigenvalue below which float64 sums tell no plane from a line


@dataclass(frozen=True, kw_only=True, eq=False)
class Trajectory:
    """Checkpoints in a plane through one point.

    Attributes
    ----------
    directions
        The two that span the plane; ``plane(objectives, space, *directions, xs, ys)`` draws the loss beneath.
    labels
        A name for each of the T checkpoints, in their order.
    coordinates
        (T, 2), in units of the directions: the point of the plane nearest to each checkpoint. (0, 0) is the space's
        centre.
    norms
        (T,) Frobenius norm of each displacement from the space's centre.
    outside_share
        (T,) share of each squared displacement that is orthogonal to the plane: 0 lies in it, 1 is not shown at all.
    explained_share
        Share of all squared displacements together that lies in the plane.
    provenance
        How the plane was chosen, which point it goes through, the shares of all principal directions.
    """

    directions: tuple[Direction, Direction]
    labels: tuple[str, ...]
    coordinates: Floats
    norms: Floats
    outside_share: Floats
    explained_share: float
    provenance: dict[str, Any]

    @property
    def reach(self) -> tuple[float, float]:
        """The largest absolute coordinate on each axis: how far a surface must go to lie beneath all checkpoints."""
        x, y = np.abs(self.coordinates).max(axis=0)
        return float(x), float(y)

    def to_frame(self) -> pd.DataFrame:
        """One row a checkpoint: checkpoint, x, y, norm, outside_share."""
        import pandas as pd

        x, y = self.coordinates.T
        return pd.DataFrame(
            {"checkpoint": self.labels, "x": x, "y": y, "norm": self.norms, "outside_share": self.outside_share}
        )

    def plot(self, ax: Axes | None = None, surface: Surface | None = None) -> Axes:
        """Draw the checkpoints as the paper's figure does, over the contours of a surface in the same plane."""
        from figures import trajectory as figure

        return figure.plot(self.to_frame(), ax, None if surface is None else surface.to_frame())

    def _repr_html_(self) -> str:
        return f"<p>{self}</p>" + self.to_frame().to_html(index=False, max_rows=20)

    def __repr__(self) -> str:
        worst = float(np.max(self.outside_share))
        return (
            f"Trajectory({len(self.labels)} checkpoints, {self.explained_share:.1%} of their displacements in the "
            f"plane, up to {worst:.1%} of one outside)"
        )


def principal(
    space: Space, states: Sequence[State], *, labels: Sequence[str] | None = None, through: int | None = -1
) -> Trajectory:
    """Checkpoints in the plane that leaves out least of their displacements from the point it goes through.

    Parameters
    ----------
    space
        Made on a model with the weights that the plane goes through. In merged space (dense matrices as the effective
        ones, W0 + s B A) checkpoints of different ranks share a plane.
    states
        T mappings of tensors by name, each with all tensors of the space; others are ignored. One tensor of each is
        read at a time, so a mapping may load from disk.
    labels
        Of the checkpoints; default: their numbers from 0.
    through
        Which of them the space's centre is: the last one by default, so that (0, 0) is the deployed model. None: none
        of them, such as an average.

    A tensor that is missing, of another shape or not finite, a centre that is not the checkpoint it should be, and
    checkpoints on one line are a ``LandscapeError``.
    """
    names = _labels(space, states, labels, through)
    gram_TT = _gram(space, states, names)
    pair, shares = _principal(space, states, names, gram_TT)
    facts = {"plane": "principal components of the displacements", "shares": shares}
    return _in_plane(space, states, pair, gram_TT.diagonal(), names, through, facts)


def project(
    space: Space,
    states: Sequence[State],
    directions: tuple[Direction, Direction],
    *,
    labels: Sequence[str] | None = None,
    through: int | None = -1,
) -> Trajectory:
    """Checkpoints in the plane of two given directions, of any norms and angle; else as :func:`principal`."""
    names = _labels(space, states, labels, through)
    squared = _gram(space, states, names).diagonal()
    return _in_plane(space, states, directions, squared, names, through, {"plane": "given"})


def _in_plane(
    space: Space,
    states: Sequence[State],
    directions: tuple[Direction, Direction],
    squared: Floats,
    names: tuple[str, ...],
    through: int | None,
    facts: dict[str, Any],
) -> Trajectory:
    coordinates, inside = _project(space, states, names, directions)
    outside = 1.0 - np.divide(inside, squared, out=np.ones_like(squared), where=squared > 0)
    return Trajectory(
        directions=directions,
        labels=names,
        coordinates=coordinates,
        norms=np.sqrt(squared),
        outside_share=np.clip(outside, 0.0, 1.0),
        explained_share=min(float(inside.sum() / squared.sum()), 1.0) if squared.any() else 1.0,
        provenance={
            **facts,
            "through": "the space's centre, no checkpoint" if through is None else names[through],
            "directions": [d.describe() for d in directions],
            "space": {"kind": space.kind, "head": space.head, "tensors": len(space.names), "k": space.k},
        },
    )


def _labels(
    space: Space, states: Sequence[State], labels: Sequence[str] | None, through: int | None
) -> tuple[str, ...]:
    names = tuple(map(str, range(len(states)))) if labels is None else tuple(labels)
    if len(names) != len(states):
        raise LandscapeError(f"expected a label for each of {len(states)} checkpoints, found {len(names)}")
    if through is not None:
        if not -len(states) <= through < len(states):
            raise LandscapeError(f"expected one of {len(states)} checkpoints to go through, found {through}")
        _check_centre(space, states[through], names[through])
    return names


def _principal(
    space: Space, states: Sequence[State], labels: Sequence[str], gram_TT: Floats
) -> tuple[tuple[Direction, Direction], list[float]]:
    """The two orthonormal directions that leave out least, and the share of every principal direction, falling.

    Raises
    ------
    LandscapeError
        If the checkpoints lie on one line.
    """
    values, vectors = np.linalg.eigh(gram_TT)
    values, vectors = values[::-1], vectors[:, ::-1]
    if len(values) < 2 or values[1] <= _FLAT * values[0]:
        raise LandscapeError(
            "expected checkpoints that span a plane, found all on one line through the centre: draw a line with "
            "between()"
        )
    vectors_T2 = vectors[:, :2]
    # The sign is free: the checkpoint that is furthest along an axis lies on its positive side.
    signs = np.sign(vectors_T2[np.abs(vectors_T2).argmax(axis=0), [0, 1]])
    # v_j = sum_t u_tj D_t / sqrt(lambda_j)
    weights_2T = torch.from_numpy((vectors_T2 * signs / np.sqrt(values[:2])).T.copy())
    parts: dict[str, list[Tensor]] = {name: [] for name in space.names}
    for name, block_Tn in _displacements(space, states, labels):
        dtype = torch.float32 if half(space.centre[name]) else space.centre[name].dtype
        parts[name].append((weights_2T @ block_Tn).to(dtype))
    axes = _orthonormal({name: torch.cat(part, dim=1) for name, part in parts.items() if part})
    pair = [
        from_tensors(space, {n: a[j].reshape(space.centre[n].shape) for n, a in axes.items()}, f"principal {j + 1}")
        for j in (0, 1)
    ]
    return (pair[0], pair[1]), (values.clip(0.0) / values.clip(0.0).sum()).tolist()


def _orthonormal(axes: dict[str, Tensor]) -> dict[str, Tensor]:
    """Two nearly orthonormal vectors, (2, n) a tensor, made so: a Gram matrix squares how unlike they are."""
    gram_22 = torch.stack([a.double() @ a.double().T for a in axes.values()]).sum(dim=0)
    # L L^T = V V^T, so the rows of L^-1 V are orthonormal (Cholesky's form of Gram-Schmidt)
    inverse = torch.linalg.inv(torch.linalg.cholesky(gram_22))
    return {name: (inverse @ a.double()).to(a.dtype) for name, a in axes.items()}


def _project(
    space: Space, states: Sequence[State], labels: Sequence[str], directions: tuple[Direction, Direction]
) -> tuple[Floats, Floats]:
    """Coordinates (T, 2) of the nearest points of the plane, and the squared norms (T,) of these points.

    Raises
    ------
    LandscapeError
        If the directions span no plane.
    """
    metric = np.array([[d.dot(e) for e in directions] for d in directions])
    if not np.isfinite(metric).all() or np.linalg.det(metric) <= _FLAT * metric[0, 0] * metric[1, 1]:
        raise LandscapeError("expected two directions that span a plane, found parallel ones")
    products = np.zeros((len(states), 2))
    start = dict.fromkeys(space.names, 0)
    for name, block_Tn in _displacements(space, states, labels):
        part = slice(start[name], start[name] + block_Tn.shape[1])
        start[name] = part.stop
        for j, direction in enumerate(directions):
            if name in direction.tensors:
                along = direction.tensors[name].detach().cpu().reshape(-1)[part].double()
                products[:, j] += (block_Tn @ along).numpy()
    # x = M^-1 <D, d>,   |P D|^2 = x' M x,   M = <d_i, d_j>
    coordinates = np.linalg.solve(metric, products.T).T
    return coordinates, np.einsum("ti,ij,tj->t", coordinates, metric, coordinates)


def _gram(space: Space, states: Sequence[State], labels: Sequence[str]) -> Floats:
    gram_TT = np.zeros((len(states), len(states)))
    for name, block_Tn in _displacements(space, states, labels):
        part = (block_Tn @ block_Tn.T).numpy()
        if not np.isfinite(part).all():
            worst = labels[int(np.argmin(np.isfinite(part.diagonal())))]
            raise LandscapeError(f"expected finite weights, found NaN or inf in {name!r} of checkpoint {worst!r}")
        gram_TT += part
    return gram_TT


def _displacements(space: Space, states: Sequence[State], labels: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
    # Tensor by tensor and chunk by chunk, the displacements from the centre: name and (T, n) float64.
    for name, centre in space.centre.items():
        tensors = [_tensor(state, label, name, centre) for state, label in zip(states, labels, strict=True)]
        at = centre.cpu().reshape(-1)
        for i in range(0, at.numel(), CHUNK):
            yield name, torch.stack([t[i : i + CHUNK].double() - at[i : i + CHUNK].double() for t in tensors])


def _tensor(state: State, label: str, name: str, centre: Tensor) -> Tensor:
    if name not in state:
        raise LandscapeError(f"expected {name!r} in checkpoint {label!r}, found none{nearest(name, state)}")
    tensor = state[name].detach().cpu()
    if tensor.shape != centre.shape:
        raise LandscapeError(
            f"expected {name!r} {tuple(centre.shape)} in checkpoint {label!r}, found {tuple(tensor.shape)}; different "
            "ranks share a plane in merged space"
        )
    return tensor.reshape(-1)


def _check_centre(space: Space, state: State, label: str) -> None:
    for name, centre in space.centre.items():
        tensor, at = _tensor(state, label, name, centre), centre.cpu().reshape(-1)
        if not same_bits(tensor.to(at.dtype), at):
            raise LandscapeError(
                f"expected the weights of checkpoint {label!r} at the space's centre, found others in {name!r}: load "
                "them into the model first, or say which checkpoint the plane goes through"
            )
