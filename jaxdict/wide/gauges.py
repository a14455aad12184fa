"""The gauge Omega_tau itself, closed forms, and atoms that can be spared (T15, after Bach, Mairal and Ponce 2008, arXiv 0812.1869)."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.linalg import qr, solve_triangular

from jaxdict.arrays import floating_dtype, real_array
from jaxdict.numerics import matmul, safe_norm
from jaxdict.points import check_activations_of
from jaxdict.problem import Codes, Dictionary, dense_codes
from jaxdict.validation import check_data
from jaxdict.wide.penalised import SizePenalised, solve_size_penalised
from jaxdict.wide.polars import polar

# Rank-ones whose part outside the span of the others is smaller, relative, are dependent.
DEPENDENT = 1e-10


class Gauge(NamedTuple):
    """Omega_tau of a matrix from both sides."""

    value: Float[Array, ""]  # reached: by the dictionary and codes, and an atom a row for what they leave
    lower_bound: Float[Array, ""]  # certified: <pull, Y>
    dictionary: Dictionary
    codes: Float[Array, "samples atoms"]
    pull: Float[Array, "samples d"]  # its polar is at most one


def gauge(Y: Float[Array, "samples d"], tau, *, tol: float = 1e-4, max_rounds: int = 20) -> Gauge:
    """The gauge `Omega_tau(Y) = inf sum_k ||d_k|| (||z_k||_1 + tau ||z_k||_2)` over `Z D = Y`, `Z >= 0`, of any width (T15).

    Found by the method of multipliers: the size-penalised problem at `Y + P`, whose residual is the next P, until nothing but P is
    left. From above, what is left costs at most an atom a row, `(1 + tau) ||y_n - z_n D||`; from below, duality, `<P, Y> / U` with U
    the polar's certified bound at P (`polar`): the two meet, to `tol` of the value, where the sphere of Y's rows can be searched.

    tau = 0: the sum of the rows' norms (T11). One row: `(1 + tau) ||y||`. Rank one: `rank_one_gauge`. A program for the host. Y is
    (samples, d); raises ValueError for a negative tau.

    >>> import numpy as np
    >>> found = gauge(np.array([[3.0, 4.0]]), 0.5)
    >>> round(float(found.value), 3), round(float(found.lower_bound), 2)
    (7.5, 7.5)
    """
    Y = check_data(Y, name="Y", wide="allow")
    height = float(polar(Y, tau, max_cells=0).value)
    atoms, codes = jnp.zeros((0, Y.shape[1]), Y.dtype), jnp.zeros((Y.shape[0], 0), Y.dtype)
    best = Gauge(jnp.sum(safe_norm(Y)) * (1 + float(tau)), jnp.zeros_like(Y[0, 0]), Dictionary(atoms), codes, 0 * Y)
    if height == 0:
        return best
    lam, pull, point = height / 8, jnp.zeros_like(Y), None
    for _ in range(max_rounds):
        point = solve_size_penalised(Y + pull, lam, tau, tol=max(tol / 2, 1e-6), start=point)
        best = _better(best, _bounds(Y, pull, tau, point))
        if best.value - best.lower_bound <= tol * best.value:
            break
        pull = pull + Y - matmul(point.codes, point.dictionary.atoms)
    return best


def _bounds(Y, pull, tau, point: SizePenalised) -> Gauge:
    """Both bounds at a solution of the problem at `Y + pull`."""
    dictionary, codes = point.dictionary, point.codes
    left = Y - matmul(codes, dictionary.atoms)
    sizes = jnp.sum(codes, axis=0) + float(tau) * safe_norm(codes, axis=0)
    value = jnp.sum(safe_norm(dictionary.atoms) * sizes) + (1 + float(tau)) * jnp.sum(safe_norm(left))
    pull = (pull + left) / point.certificate.polar_bound
    return Gauge(value, jnp.sum(pull * Y), dictionary, codes, pull)


def _better(old: Gauge, new: Gauge) -> Gauge:
    """The lower value with its factors and the higher bound with its pull."""
    upper = new if new.value < old.value else old
    lower = new if new.lower_bound > old.lower_bound else old
    return Gauge(upper.value, lower.lower_bound, upper.dictionary, upper.codes, lower.pull)


def rank_one_gauge(z: Float[Array, " samples"], d: Float[Array, " d"], tau) -> Float[Array, ""]:
    """Omega_tau of the rank-one matrix `z d^T`: `||d|| (||z_+||_1 + tau ||z_+||_2 + ||z_-||_1 + tau ||z_-||_2)` (T15).

    One atom along d where z is positive and one against it where z is negative; no finer factorisation is cheaper.

    >>> import jax.numpy as jnp
    >>> float(rank_one_gauge(jnp.array([2.0, -1.0]), jnp.array([3.0, 4.0]), 1.0))  # 5 (2 + 2 + 1 + 1)
    30.0
    """
    z, d = _vector(z, "z"), _vector(d, "d")
    ways = jnp.stack([jnp.maximum(z, 0), jnp.maximum(-z, 0)])
    return safe_norm(d) * (jnp.sum(ways) + jnp.asarray(tau, z.dtype) * jnp.sum(safe_norm(ways)))


def rank_one_solution(x: Float[Array, " samples"], lam, tau) -> Float[Array, "samples 2"]:
    """The codes of the size-penalised optimum of data on a line, `X = x u^T`, whose atoms are u and -u (T15, no offset).

        z = (1 - lam tau / ||v||)_+ v,   v = (x - lam)_+  along u,  (-x - lam)_+  against it

    >>> import jax.numpy as jnp
    >>> rank_one_solution(jnp.array([3.0, -0.5]), 1.0, 0.5).tolist()
    [[1.5, 0.0], [0.0, 0.0]]
    """
    x = _vector(x, "x")
    lam, tau = jnp.asarray(lam, x.dtype), jnp.asarray(tau, x.dtype)
    v = jnp.maximum(jnp.stack([x - lam, -x - lam], axis=1), 0)
    sizes = safe_norm(v, axis=0)
    return v * jnp.maximum(1 - lam * tau / jnp.where(sizes > 0, sizes, 1), 0)


def fewer_atoms(dictionary: Dictionary, codes: Codes, tau) -> tuple[Dictionary, Array]:
    """The same product `Z D` at no larger size, from at most as many atoms as there are independent matrices `z_k d_k^T` (T15).

    Where `sum_k a_k z_k d_k^T = 0`, codes `(1 + t a_k) z_k` leave the product as it is and change the size linearly: with a's sign
    such that it does not grow, t rises until an atom is spared. More than N d atoms always have one to spare, so that, as in Bach,
    Mairal and Ponce, no local optimum of so many is worse than the global one without a way down along which the value never rises.
    Unused atoms go; codes are those of `dictionary`'s own norms, dense. A program for the host.

    >>> import jax.numpy as jnp
    >>> twice = Dictionary(jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])), jnp.array([[1.0, 2.0, 3.0]])
    >>> fewer_atoms(*twice, 1.0)[1].tolist()
    [[3.0, 3.0]]
    """
    dictionary, codes, _ = check_activations_of(dictionary, codes)
    atoms = np.asarray(dictionary.atoms, np.float64)
    Z = np.array(dense_codes(codes, len(atoms)), np.float64)
    if np.any(Z < 0):
        raise ValueError(f"codes are negative, first in row {np.argmax(np.any(Z < 0, axis=1))}; clip them at zero")
    sizes = np.linalg.norm(atoms, axis=1) * (np.sum(Z, axis=0) + float(tau) * np.linalg.norm(Z, axis=0))
    kept = np.flatnonzero(sizes > 0)
    while (relation := _relation(atoms[kept], Z[:, kept])) is not None:
        relation = -relation if relation @ sizes[kept] > 0 else relation
        if not np.any(relation < 0):  # the sizes' sum is rounding: either way will do
            relation = -relation
        factors = np.maximum(1 - relation / np.min(relation), 0)
        factors[np.argmin(relation)] = 0
        Z[:, kept], sizes[kept] = Z[:, kept] * factors, sizes[kept] * factors
        kept = kept[factors > 0]
    dtype = dictionary.atoms.dtype
    return Dictionary(dictionary.atoms[kept], dictionary.offset), jnp.asarray(Z[:, kept], dtype)


def _relation(atoms, codes):
    """Coefficients, not all zero, with `sum_k a_k z_k d_k^T = 0`; None where the matrices are independent."""
    n_atoms = len(atoms)
    if n_atoms == 0:
        return None
    matrices = np.einsum("nk,ki->nik", codes, atoms).reshape(-1, n_atoms)
    lengths = np.linalg.norm(matrices, axis=0)
    factors: Any = qr(matrices / lengths, mode="economic", pivoting=True)
    _, triangle, order = factors
    rank = int(np.sum(np.abs(np.diag(triangle)) > DEPENDENT))
    if rank == n_atoms:
        return None
    relation = np.zeros(n_atoms)
    relation[order[:rank]] = -solve_triangular(triangle[:rank, :rank], triangle[:rank, rank])
    relation[order[rank]] = 1
    return relation / lengths


def _vector(v, name: str) -> Array:
    """A vector of real numbers in the dtype that jaxdict computes in."""
    given = real_array(v, name)
    if given.ndim != 1:
        raise ValueError(f"{name} has shape {given.shape}; give one number for each entry: a vector")
    return jnp.asarray(given, floating_dtype(given))
