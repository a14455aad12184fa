"""The conditions of T1 as one map of a point: zero iff the point is stationary, continuous, and fit for root finders."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from jaxdict.encoding.lasso import code_scales
from jaxdict.geometry import project_ball, soft_threshold
from jaxdict.meshes import on_any_mesh
from jaxdict.numerics import matmul, safe_divide, unit_rows
from jaxdict.objectives import normalised, residual_of
from jaxdict.points import check_point
from jaxdict.problem import Codes, Dictionary, Problem, dense_codes, metric_of, offset_of, sample_weights
from jaxdict.units import units_of


class Defects(NamedTuple):
    """What is left of T1's conditions, block by block, dimensionless; all zero iff the point is stationary."""

    atoms: Float[Array, "atoms d"]
    codes: Float[Array, "samples atoms"]
    offset: Float[Array, " d"]


def optimality_map(problem: Problem, dictionary: Dictionary, codes: Codes, X: Float[Array, "samples d"]) -> Defects:
    """The natural residual of T1's conditions: `point - projection(point + pull)`, in units of lam; zero iff stationary.

    - codes: `(z - (z + lam (s - 1))_+) / lam = min(z / lam, 1 - s)`, s the normalised correlations; signed: soft threshold for the
      positive part; penalised gauge: unit atoms and `z ||d||`. Dense also for sparse codes, since any zero code may want to grow.
    - atoms, live k, `v_k = E[z_k m r] / (lam zbar_k)`: `d_k - (d_k + v_k) / max(1, ||d_k + v_k||)`; penalised gauge: `u_k - v_k`.
      Dead atoms (zbar_k = 0) zero.
    - offset, where free: `-E[m r] / lam`, else zero.

    These are the conditions behind `jaxdict.certify`'s stationarity, whose measures are discontinuous at the boundary (a
    code of 1e-9 counts as on). This map is continuous where no atom dies, and has a derivative wherever no zero code has
    correlation one, the one that implicit derivatives solve with. Its codes block is at most the certificate's measure; the
    offset block has its norm; the atoms block vanishes with it. Samples of weight zero count as little as there.

    X (samples, d), atoms (atoms, d), codes (samples, atoms) or sparse. Pure: for jit, vmap and grad, as a regulariser,
    or as `fn(y, args)` of a root finder with y = (dictionary, codes).

    >>> import jax.numpy as jnp, jaxdict as jd
    >>> problem, point = jd.Problem(lam=0.5, offset=False), jd.Dictionary(jnp.array([[1.0, 0.0]]))
    >>> optimality_map(problem, point, jnp.array([[1.5]]), jnp.array([[2.0, 0.0]])).codes.tolist()
    [[0.0]]
    >>> optimality_map(problem, point, jnp.array([[0.0]]), jnp.array([[2.0, 0.0]])).codes.tolist()
    [[-3.0]]
    """
    return _map(*check_point(problem, dictionary, codes, X))


def _in_units(problem, dictionary, codes, X: Float[Array, "samples d"]) -> Defects:
    units = units_of(problem, X)
    problem, X = units.scaled(problem, X)
    dictionary, codes = units.scaled_dictionary(dictionary), units.scaled_codes(codes)
    atoms, offset = dictionary.atoms, offset_of(dictionary)
    Z = dense_codes(codes, atoms.shape[0])
    w, r = sample_weights(problem, X), residual_of(dictionary, Z, X)
    s = normalised(problem, dictionary, r)
    sizes = Z * code_scales(problem, dictionary)
    moved = sizes / problem.lam + s
    pulled = soft_threshold(moved, jnp.ones_like(problem.lam)) if problem.signed else jnp.maximum(moved - 1, 0)
    codes_left = jnp.where(w[:, None] > 0, sizes / problem.lam - pulled, 0)

    pull = metric_of(problem, X) * r * (w / X.shape[0])[:, None]
    rates = problem.lam * matmul(w / X.shape[0], jnp.abs(Z))[:, None]
    live = rates > 0
    v = safe_divide(matmul(Z.T, pull), rates)
    if problem.gauge == "penalised":
        atoms_left = unit_rows(atoms) - v
    else:
        atoms_left = atoms - jax.vmap(project_ball)(atoms + v)
    offset_left = -jnp.sum(pull, axis=0) / problem.lam if problem.offset else jnp.zeros_like(offset)
    return Defects(jnp.where(live, atoms_left, 0), codes_left, offset_left)


_map = on_any_mesh(jax.jit(_in_units), lambda rows: Defects(P(), P(rows), P()))  # type: ignore
