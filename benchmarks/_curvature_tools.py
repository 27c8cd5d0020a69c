"""Products, eigenvalues and densities of the Hessian by every tool, ours among them; each runs in a process of its own.

A job holds ``model``, ``names`` of the tensors that move, ``inputs``, ``targets``, ``seed``, and ``math``: whether the
caller chooses torch's plain attention kernel around the call. Tools are called as their documentation says, unpatched.
An answer holds ``seconds``, from building the tool's object to its result, and what was asked for as tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks._rows import clock

Job = dict[str, Any]
Answer = dict[str, Any]


def product(job: Job) -> Answer:
    """``count`` products with vectors of ``seed``; the first of them is returned."""
    with _prepared(job) as parameters:
        vectors = vectors_of(job["seed"], job["count"], sum(p.numel() for p in parameters))
        started = clock()
        with _PRODUCTS[job["tool"]](job, parameters) as multiply:
            found = [multiply(v) for v in vectors]
        return {"seconds": clock() - started, "product": found[0]}


def eigenvalues(job: Job) -> Answer:
    """The top 5 eigenvalues, (5,), and vectors, (5, P), with the tool's ``settings``."""
    with _prepared(job) as parameters:
        started = clock()
        values, vectors = _EIGENVALUES[job["tool"]](job, parameters)
        return {"seconds": clock() - started, "values": values.double(), "vectors": vectors.float()}


def density(job: Job) -> Answer:
    """Nodes and weights of each probe; an error comes with the ``seconds`` that it took to get there."""
    with _prepared(job) as parameters:
        started = clock()
        try:
            nodes, weights = _DENSITIES[job["tool"]](job, parameters)
        except RuntimeError as error:
            first = str(error).splitlines()[0]
            return {"seconds": clock() - started, "failed": f"{type(error).__name__}: {first}"}
        return {"seconds": clock() - started, "nodes": nodes, "weights": weights}


def vectors_of(seed: int, count: int, size: int) -> Tensor:
    """(count, size) standard normal vectors, the same for every tool."""
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed))


@contextmanager
def _prepared(job: Job) -> Iterator[list[nn.Parameter]]:
    """The parameters that move, alone requiring gradients; the attention kernel; the seed; what happens only once."""
    model = job["model"].eval()
    for name, p in model.named_parameters():
        p.requires_grad_(name in job["names"])
    parameters = [p for p in model.parameters() if p.requires_grad]
    for module in _IMPORTS[job["tool"]]:
        import_module(module)
    _warm()
    torch.manual_seed(job["seed"])
    with sdpa_kernel(SDPBackend.MATH) if job["math"] else nullcontext():
        yield parameters


def _warm() -> None:
    """What torch loads when a process differentiates twice, backwards or forwards, for the first time."""
    w, x = torch.ones(2, 2, requires_grad=True), torch.ones(2, 2)

    def loss(w: Tensor) -> Tensor:
        return nn.functional.cross_entropy((x @ w).tanh(), torch.zeros(2, dtype=torch.long))

    (slope,) = torch.autograd.grad(loss(w), w, create_graph=True)
    torch.autograd.grad(slope.sum(), w)
    torch.func.jvp(torch.func.grad(loss), (w.detach(),), (x,))


@contextmanager
def _ours(job: Job, parameters: list[nn.Parameter]) -> Iterator[Callable[[Tensor], Tensor]]:
    with _hessian(job) as hessian:
        yield hessian.product


def _hessian(job: Job) -> Any:
    from landscape.curvature import Hessian
    from landscape.objective import Objective
    from landscape.space import Space

    objective = Objective(job["model"], job["inputs"], job["targets"])
    return Hessian(objective, Space(job["model"], job["names"]))


@contextmanager
def _pyhessian(job: Job, parameters: list[nn.Parameter]) -> Iterator[Callable[[Tensor], Tensor]]:
    from pyhessian.utils import hessian_vector_product

    found = _pyhessian_object(job)

    def multiply(v: Tensor) -> Tensor:
        return _flat(hessian_vector_product(found.gradsH, found.params, _shaped(v, parameters)))

    yield multiply


def _pyhessian_object(job: Job) -> Any:
    from pyhessian import hessian

    return hessian(job["model"], nn.CrossEntropyLoss(), data=(job["inputs"], job["targets"]), cuda=False)


@contextmanager
def _eigenthings(job: Job, parameters: list[nn.Parameter]) -> Iterator[Callable[[Tensor], Tensor]]:
    yield _eigenthings_operator(job).matvec


def _eigenthings_operator(job: Job) -> Any:
    from hessian_eigenthings import HessianOperator, supervised_loss

    data = [(job["inputs"], job["targets"])]
    return HessianOperator(job["model"], data, supervised_loss(nn.functional.cross_entropy))


@contextmanager
def _curvlinops(job: Job, parameters: list[nn.Parameter]) -> Iterator[Callable[[Tensor], Tensor]]:
    yield _curvlinops_operator(job, parameters).__matmul__


def _curvlinops_operator(job: Job, parameters: list[nn.Parameter]) -> Any:
    from curvlinops import HessianLinearOperator

    data = [(job["inputs"], job["targets"])]
    return HessianLinearOperator(job["model"], nn.CrossEntropyLoss(), parameters, data)


@contextmanager
def _landscaper(job: Job, parameters: list[nn.Parameter]) -> Iterator[Callable[[Tensor], Tensor]]:
    found = _landscaper_object(job)
    yield lambda v: _flat(found.hv_product(_shaped(v, parameters))[1])


def _landscaper_object(job: Job) -> Any:
    from landscaper import PyHessian

    data = [(job["inputs"], job["targets"])]
    return PyHessian(job["model"], nn.CrossEntropyLoss(), data, "cpu", try_cache=True)


def _ours_top(job: Job, parameters: list[nn.Parameter]) -> tuple[Tensor, Tensor]:
    from landscape.curvature import top_eigenvalues

    found = top_eigenvalues(_hessian(job), 5, seed=job["seed"], **job["settings"])
    return torch.from_numpy(found.values), found.vectors


def _pyhessian_top(job: Job, parameters: list[nn.Parameter]) -> tuple[Tensor, Tensor]:
    return _listed(_pyhessian_object(job).eigenvalues(top_n=5, **job["settings"]))


def _landscaper_top(job: Job, parameters: list[nn.Parameter]) -> tuple[Tensor, Tensor]:
    return _listed(_landscaper_object(job).eigenvalues(top_n=5, **job["settings"]))


def _listed(found: tuple[list[float], list[list[Tensor]]]) -> tuple[Tensor, Tensor]:
    values, vectors = found
    return torch.tensor(values), torch.stack([_flat(v) for v in vectors])


def _eigenthings_top(job: Job, parameters: list[nn.Parameter]) -> tuple[Tensor, Tensor]:
    from hessian_eigenthings import lanczos

    found = lanczos(_eigenthings_operator(job), k=5, seed=job["seed"], **job["settings"])
    return found.eigenvalues, found.eigenvectors


def _curvlinops_top(job: Job, parameters: list[nn.Parameter]) -> tuple[Tensor, Tensor]:
    from scipy.sparse.linalg import eigsh

    operator = _curvlinops_operator(job, parameters).to_scipy()
    values, vectors = eigsh(operator, k=5, which="LA", **job["settings"])
    return torch.from_numpy(values[::-1].copy()), torch.from_numpy(vectors.T[::-1].copy())


Quadratures = tuple[list[Tensor], list[Tensor]]


def _ours_density(job: Job, parameters: list[nn.Parameter]) -> Quadratures:
    from landscape.curvature import spectral_density

    found = spectral_density(_hessian(job), seed=job["seed"], **job["settings"])
    return [torch.from_numpy(x) for x in found.nodes], [torch.from_numpy(w) for w in found.weights]


def _pyhessian_density(job: Job, parameters: list[nn.Parameter]) -> Quadratures:
    nodes, weights = _pyhessian_object(job).density(**job["settings"])
    return [torch.tensor(x) for x in nodes], [torch.tensor(w) for w in weights]


def _landscaper_density(job: Job, parameters: list[nn.Parameter]) -> Quadratures:
    nodes, weights = _landscaper_object(job).density(**job["settings"])
    # complex numbers and, for weights, squares of the whole matrix of eigenvectors, as it returns them
    return [torch.tensor(x) for x in nodes], [torch.stack([torch.as_tensor(row) for row in w]) for w in weights]


def _eigenthings_density(job: Job, parameters: list[nn.Parameter]) -> Quadratures:
    from hessian_eigenthings import spectral_density

    found = spectral_density(_eigenthings_operator(job), seed=job["seed"], **job["settings"])
    return list(found.raw_eigenvalues), list(found.raw_weights)


def _flat(tensors: Any) -> Tensor:
    return torch.cat([t.detach().reshape(-1) for t in tensors])


def _shaped(v: Tensor, parameters: list[nn.Parameter]) -> list[Tensor]:
    parts = v.split([p.numel() for p in parameters])
    return [part.view_as(p) for part, p in zip(parts, parameters, strict=True)]


_IMPORTS = {
    "ours": ("landscape.curvature.hessian", "landscape.curvature.eigen", "landscape.curvature.density"),
    "PyHessian": ("pyhessian",),
    "hessian-eigenthings": ("hessian_eigenthings",),
    "curvlinops": ("curvlinops", "scipy.sparse.linalg"),
    "landscaper": ("landscaper",),
}
_PRODUCTS = {
    "ours": _ours,
    "PyHessian": _pyhessian,
    "hessian-eigenthings": _eigenthings,
    "curvlinops": _curvlinops,
    "landscaper": _landscaper,
}
_EIGENVALUES = {
    "ours": _ours_top,
    "PyHessian": _pyhessian_top,
    "hessian-eigenthings": _eigenthings_top,
    "curvlinops": _curvlinops_top,
    "landscaper": _landscaper_top,
}
_DENSITIES = {
    "ours": _ours_density,
    "PyHessian": _pyhessian_density,
    "hessian-eigenthings": _eigenthings_density,
    "landscaper": _landscaper_density,
}
