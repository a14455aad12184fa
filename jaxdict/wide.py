"""What dictionaries of any width can reach, and how width is paid for: T11 to T13 and T15 of theory.md."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdict.arrays import data_array
from jaxdict.certificates.wide_limits import WideLimit, shrink, wide_limit, wide_limit_of
from jaxdict.geometry import project_orthant
from jaxdict.meshes import on_any_mesh
from jaxdict.numerics import matmul, safe_norm, unit_rows
from jaxdict.problem import Dictionary, Problem

# Room for atoms at first; it doubles when it is full.
FIRST_SLOTS = 16
# Codes and atoms alternate so often between two looks at the polar.
SWEEPS = 10
# New atoms closer than this cosine are the same.
SAME_ATOM = 0.99


class SizePenalised(NamedTuple):
    """A point of the size-penalised problem (T15) and its distance from the optimum, as known; sums over samples."""

    dictionary: Dictionary
    codes: Float[Array, "samples atoms"]
    value: Float[Array, ""]
    lower_bound: Float[Array, ""]  # certified, for every dictionary of every width
    gap: Float[Array, ""]  # value - lower_bound: certified, but loose
    polar: Float[Array, ""]  # the largest polar value found: at the optimum lam
    refuted: bool  # whether an atom was found that still lowers the value
    rounds: int

    def message(self) -> str:
        """What has been proved, in plain sentences."""
        share = float(self.gap) / max(float(self.value), float(np.finfo(self.value.dtype).tiny))
        found = (
            "Not optimal: a new atom lowers the value."
            if self.refuted
            else "Not refuted: no atom found lowers the value."
        )
        return f"{found} {self.codes.shape[1]} atoms; the value is within {share:.1%} of a certified bound."


def bound(
    X: Float[Array, "samples d"], lam, *, offset=True, signed=False, metric=None, weights=None, max_steps: int = 60
) -> WideLimit:
    """The optimum of problem P over dictionaries of any width, with a certified lower bound (T11 to T13).

    X is (samples, d); the other arguments are those of `jaxdict.Problem`. `dual_value` bounds the objective of every
    dictionary of every width from below; `n_rays` is the number of atoms beyond which more do not help.

    >>> import jax.numpy as jnp
    >>> limit = bound(jnp.array([[3.0, 0.0], [0.0, 0.5]]), 1.0, offset=False)
    >>> float(limit.value), int(limit.n_rays)
    (1.3125, 1)
    """
    problem = Problem(lam, offset=offset, signed=signed, metric=metric, weights=weights)
    return wide_limit(problem, X, max_steps=max_steps)


def solve_size_penalised(
    X: Float[Array, "samples d"],
    lam,
    tau,
    *,
    offset: bool = False,
    max_atoms: int | None = None,
    tol: float = 1e-4,
    max_rounds: int = 30,
) -> SizePenalised:
    """Dictionary learning that pays for every atom used, with the number of atoms left to the problem (T15).

        minimise  sum_n 1/2 ||x_n - b - z_n D||^2 + lam sum_k (||z_k||_1 + tau ||z_k||_2),   Z >= 0, unit atoms

    (sums over samples, not means; z_k the code of atom k over all samples). In Xhat = Z D this is convex, and it is
    solved by column generation: codes by accelerated proximal gradient and atoms in turn for a fixed set, then new
    atoms where the polar `max_{||d||=1} kappa(R d)` of the residual exceeds lam, from many starts. tau -> 0 gives N
    times the wide limit.

    The polar cannot be maximised for sure: `refuted=False` says that no atom was found beyond `lam (1 + tol)`, not
    that none exists. `lower_bound` is certified: the dual of the looser convex `1/2 ||X - Y||^2 + lam (||Y||_{2,1} +
    tau ||Y||_*)`.

    A Python loop around jitted pieces: not for jit, vmap or an Explicit mesh. X is (samples, d); at most `max_atoms`
    (default: two a sample, up to 1024) are kept. Raises ValueError for a `lam` that is not positive or a negative `tau`.

    >>> import numpy as np
    >>> solution = solve_size_penalised(np.array([[3.0, 0.0], [5.0, 0.0]]), 0.5, 0.1)
    >>> solution.codes.shape[1], solution.refuted
    (1, False)
    """
    X = data_array(X)
    if not float(lam) > 0 or not float(tau) >= 0:
        raise ValueError(f"lam={float(lam):g}, tau={float(tau):g}: give lam > 0 and tau >= 0")
    lam, tau = jnp.asarray(float(lam), X.dtype), jnp.asarray(float(tau), X.dtype)
    target = X - jnp.mean(X, axis=0) if offset else X
    max_atoms = min(2 * X.shape[0], 1024) if max_atoms is None else max_atoms
    n_slots = min(FIRST_SLOTS, max_atoms)
    atoms, codes = jnp.zeros((n_slots, X.shape[1]), X.dtype), jnp.zeros((X.shape[0], n_slots), X.dtype)
    for rounds in range(max_rounds + 1):
        atoms, codes = _alternate(target, atoms, codes, lam, tau, offset)
        left = _residual(target, atoms, codes, offset)
        candidates, heights = _polar(left, atoms, tau)
        polar, used = jnp.max(heights), np.flatnonzero(np.asarray(jnp.any(codes > 0, axis=0)))
        refuted = bool(polar > lam * (1 + tol))
        if not refuted or rounds == max_rounds or used.size == max_atoms:
            break
        fresh = _distinct(np.asarray(candidates), np.asarray(heights), float(lam), max_atoms - used.size)
        # Slots double when they are full, so that few shapes are compiled.
        n_slots = n_slots if used.size + len(fresh) <= n_slots else min(2 * n_slots, max_atoms)
        idle = n_slots - used.size
        fresh = jnp.asarray(fresh[:idle], X.dtype)
        atoms = jnp.pad(jnp.concatenate([atoms[used], fresh]), [(0, idle - len(fresh)), (0, 0)])
        codes = jnp.pad(codes[:, used], [(0, 0), (0, idle)])
    value = _value(left, codes, lam, tau)
    lower = loose_bound(X, lam, tau, offset=offset)
    free = jnp.mean(X - matmul(codes, atoms), axis=0) if offset else jnp.zeros(X.shape[1], X.dtype)
    dictionary = Dictionary(atoms[used], free)
    return SizePenalised(dictionary, codes[:, used], value, lower, value - lower, polar, refuted, rounds)


def polar_height(y: Float[Array, "samples atoms"], tau) -> Float[Array, " atoms"]:
    """Each column's `kappa(y) = max_{z >= 0} <y, z> / (||z||_1 + tau ||z||_2)`: least k with `||(y - k)_+|| <= k tau`.

    By Newton steps from zero on `||(y - k)_+|| - k tau`, convex and decreasing in k, so that they climb to the root.

    >>> import jax.numpy as jnp
    >>> round(float(polar_height(jnp.array([[3.0], [-1.0]]), 0.5)[0]), 3)  # 3 - k = k / 2
    2.0
    """
    y = data_array(y, "y")
    return _polar_height(y, jnp.asarray(tau, y.dtype))


@on_any_mesh
@jax.jit
def _polar_height(y, tau):
    def climb(_, k):
        above = project_orthant(y - k)
        size = safe_norm(above, axis=0)
        slope = jnp.sum(above, axis=0) / jnp.where(size > 0, size, 1) + tau
        return jnp.where(size > 0, k + jnp.maximum(size - k * tau, 0) / jnp.where(slope > 0, slope, 1), k)

    return jax.lax.fori_loop(0, 40, climb, jnp.zeros_like(y[0]))


def loose_bound(X: Float[Array, "samples d"], lam, tau, *, offset: bool = False, steps: int = 40) -> Float[Array, ""]:
    """A certified lower bound of the size-penalised optimum: `1/2 ||X||^2 - 1/2 ||X - A - B||^2` (T15, loose).

    Rows of A of norm at most lam, spectral norm of B at most `lam tau` (column sums zero where the offset is free);
    for unit d and z >= 0 then `<(A + B) d, z> <= lam (||z||_1 + tau ||z||_2)`. A and B are projected in turn, which
    only raises the bound; every step is certified, so it may stop anywhere.

    >>> import jax.numpy as jnp
    >>> round(float(loose_bound(jnp.array([[3.0, 0.0]]), 1.0, 0.0)), 6)  # Huber: 3 - 1/2
    2.5
    """
    X = data_array(X)
    return _loose_bound(X, jnp.asarray(lam, X.dtype), jnp.asarray(tau, X.dtype), offset, steps)


@on_any_mesh
@functools.partial(jax.jit, static_argnames=("offset", "steps"))
def _loose_bound(X: Float[Array, "samples d"], lam, tau, offset, steps):
    X = X - jnp.mean(X, axis=0) if offset else X
    problem = Problem(lam, offset=offset)

    def rows_within(Y):  # the wide residual: projection on the product of balls (and on column sums zero)
        pull = shrink(Y - wide_limit_of(problem, Y).offset, lam, None)[1] if offset else shrink(Y, lam, None)[1]
        pull = pull - jnp.mean(pull, axis=0) if offset else pull
        return lam * pull / jnp.maximum(1, jnp.max(safe_norm(pull)))

    def spectrum_within(Y):
        left, sizes, right = jnp.linalg.svd(Y, full_matrices=False)
        return matmul(left * jnp.minimum(sizes, lam * tau), right)

    def project(_, B):
        return spectrum_within(X - rows_within(X - B))

    B = jax.lax.fori_loop(0, steps, project, jnp.zeros_like(X))
    theta = rows_within(X - B) + B
    return jnp.sum(theta * (X - 0.5 * theta))


def _residual(X: Float[Array, "samples d"], atoms, codes, offset):
    """The residual at the best offset."""
    left = X - matmul(codes, atoms)
    return left - jnp.mean(left, axis=0) if offset else left


def _value(left, codes, lam, tau):
    return 0.5 * jnp.sum(left * left) + lam * (jnp.sum(codes) + tau * jnp.sum(safe_norm(codes, axis=0)))


@functools.partial(jax.jit, static_argnames="offset")
def _alternate(X: Float[Array, "samples d"], atoms, codes, lam, tau, offset):
    """Codes for fixed atoms, then atoms for fixed codes, some times; the codes last."""

    def sweep(_, point):
        atoms, codes = point
        codes = _solve_codes(X, atoms, codes, lam, tau, offset, 50)
        return _solve_atoms(X, atoms, codes, offset), codes

    atoms, codes = jax.lax.fori_loop(0, SWEEPS, sweep, (atoms, codes))
    return atoms, _solve_codes(X, atoms, codes, lam, tau, offset, 500)


def _solve_codes(X: Float[Array, "samples d"], atoms, codes, lam, tau, offset, steps):
    """Accelerated proximal gradient with restarts: threshold, clip at zero, then shrink each atom's whole column."""
    curvature = jnp.maximum(jnp.linalg.eigvalsh(matmul(atoms, atoms.T))[-1], jnp.finfo(X.dtype).tiny)

    def forward(Z):
        moved = project_orthant(Z + (matmul(_residual(X, atoms, Z, offset), atoms.T) - lam) / curvature)
        sizes = safe_norm(moved, axis=0)
        return moved * jnp.maximum(1 - lam * tau / (curvature * jnp.where(sizes > 0, sizes, 1)), 0)

    def going(carry):
        _, _, _, change, step = carry
        return (step < steps) & (change > 10 * jnp.finfo(X.dtype).eps)

    def advance(carry):
        Z, ahead, t, _, step = carry
        new = forward(ahead)
        # Momentum that points uphill is dropped (O'Donoghue and Candes 2015).
        t = jnp.where(jnp.sum((ahead - new) * (new - Z)) > 0, 1, t)
        following = 0.5 * (1 + jnp.sqrt(1 + 4 * t * t))
        change = jnp.max(jnp.abs(new - Z)) / jnp.maximum(jnp.max(new), jnp.finfo(X.dtype).tiny)
        return new, new + (t - 1) / following * (new - Z), following, change, step + 1

    one = jnp.ones_like(X[0, 0])
    return jax.lax.while_loop(going, advance, (codes, codes, one, one, jnp.zeros_like(one, dtype=int)))[0]


def _solve_atoms(X: Float[Array, "samples d"], atoms, codes, offset):
    """Each atom in turn at its best: `d_k` along `(R + z_k d_k)^T z_k`, centred where the offset is free."""
    centred = codes - jnp.mean(codes, axis=0) if offset else codes

    def one(left, atom_and_code):
        atom, code = atom_and_code
        new = matmul(code, left) + matmul(code, code) * atom
        new = jnp.where(safe_norm(new) > 0, unit_rows(new), atom)
        return left - jnp.outer(code, new - atom), new

    return jax.lax.scan(one, _residual(X, atoms, codes, offset), (atoms, centred.T))[1]


@jax.jit
def _polar(left, atoms, tau):
    """Directions that locally maximise `kappa(R d)`, and their heights, from many starts."""
    largest = left[jax.lax.top_k(safe_norm(left), min(16, left.shape[0]))[1]]
    right = jnp.linalg.svd(left, full_matrices=False)[2][:8]
    starts = unit_rows(jnp.concatenate([largest, right, -right, atoms]))

    def climb(_, d):  # kappa(R d) is a maximum of functions linear in d: the one active at d is maximised
        y = matmul(left, d.T)
        above = project_orthant(y - polar_height(y, tau))
        new = matmul(above.T, left)
        return jnp.where(safe_norm(new)[:, None] > 0, unit_rows(new), d)

    directions = jax.lax.fori_loop(0, 50, climb, starts)
    return directions, polar_height(matmul(left, directions.T), tau)


def _distinct(candidates, heights, lam, room):
    """The highest candidates above lam that are not nearly the same, at most eight."""
    kept = []
    for i in np.argsort(-heights):
        if heights[i] <= lam or len(kept) == min(room, 8):
            break
        if all(candidates[i] @ other < SAME_ATOM for other in kept):
            kept.append(candidates[i])
    return kept
