"""All that a point proves about itself, in one object: T1, T2, T4 and T10 to T13 of theory.md."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxdict.certificates.births import Birth, birth
from jaxdict.certificates.curvature import Curvature, curvature, support_size
from jaxdict.certificates.stationarity import (
    Stationarity,
    directional_derivative,
    from_moments,
    steepest_feasible_direction,
)
from jaxdict.certificates.width import wide_limit
from jaxdict.geometry import ball_tangent, orthant_tangent, soft_threshold
from jaxdict.numerics import matmul, pairwise_sum, unit_rows
from jaxdict.objectives import BLOCK_ENTRIES, Moments, moments, penalty_rates, residual
from jaxdict.problem import Codes, Dictionary, Problem, SparseCodes, dense_codes, metric_of, offset_of, sample_weights


class DualityGap(NamedTuple):
    """How far the codes are from optimal for their dictionary (T2), in F's units: mean over samples, worst sample."""

    mean: Float[Array, ""]
    max: Float[Array, ""]


class Certificate(NamedTuple):
    """What has been proved or refuted about a point; every number is recomputed from it, in the data's dtype."""

    objective: Float[Array, ""]
    stationarity: Stationarity  # T1, scale-free, by block
    directional_derivative: Float[Array, ""]  # F's slope along the steepest feasible direction; zero iff stationary
    duality_gap: DualityGap  # T2
    wide_bound: Float[Array, ""]  # certified lower bound of F over all widths (T11)
    global_gap: Float[Array, ""]  # objective - wide_bound (T12)
    max_residual_ratio: Float[Array, ""]  # max ||m r_n|| / lam (T13)
    birth: Birth  # the best atom found to add, and by how much it lowers F (T10)
    curvature: Curvature | None  # T4, where asked for
    n_rays: Int[Array, ""]  # atoms at which splitting stops (T13)
    n_dead: Int[Array, ""]  # atoms that no sample uses

    def is_stationary(self, tol: float = 1e-6) -> Bool[Array, ""]:
        """Whether every block of T1 is within `tol` (False where it is NaN)."""
        return self.stationarity.worst <= tol

    def is_globally_optimal(self, tol: float = 1e-6) -> Bool[Array, ""]:
        """Whether T13 proves optimality over all widths: codes, offset and `||m r_n|| <= lam`, each within `tol`."""
        blocks = jnp.maximum(self.stationarity.codes, self.stationarity.offset)
        return (blocks <= tol) & (self.max_residual_ratio <= 1 + tol)

    def message(self, tol: float = 1e-6) -> str:
        """What has been proved or refuted, in plain sentences. For one point: index a batch first."""
        if jnp.ndim(self.objective):
            raise ValueError(
                f"the certificate has a batch of shape {jnp.shape(self.objective)}; take one run: "
                "jax.tree.map(lambda leaf: leaf[0], certificate).message()"
            )
        first = _say_stationarity(self, tol), _say_dead(self), _say_codes(self)
        return " ".join(filter(None, (*first, _say_curvature(self, tol), _say_width(self, tol))))


def certify(problem: Problem, dictionary: Dictionary, codes: Codes, X, *, curvature: bool = False) -> Certificate:
    """The certificate of a point, from the point alone.

    How far it is from stationary (T1), its codes from the best for its dictionary (T2), its value from a bound that
    holds for every width (T12), and what a new atom would gain (T10).

    Dictionary (K, d), codes (N, K) dense or `SparseCodes`, X (N, d); numpy arrays will do. All is computed in X's
    dtype (at least float32); values in F's units, squared units of the data, and dimensionless where the field says
    so. With `curvature=True` the second-order condition T4 too: much dearer, see `jaxdict.certificates.curvature`.
    Fit for jit and vmap, the latter over any of the arrays. NaN anywhere gives NaN measures, hence a point that is
    not stationary.

    Raises ValueError, before any compute, where shapes do not fit.

    >>> import jax.numpy as jnp, jaxdict as jd
    >>> from jaxdict.certificates.certificate import certify
    >>> X, problem = jnp.array([[3.0], [-3.0], [0.0]]), jd.Problem(lam=1.0)
    >>> pair = jd.Dictionary(jnp.array([[1.0], [-1.0]]), jnp.zeros(1))
    >>> certificate = certify(problem, pair, jnp.array([[2.0, 0.0], [0.0, 2.0], [0.0, 0.0]]), X)
    >>> bool(certificate.is_stationary()), bool(certificate.is_globally_optimal()), int(certificate.n_rays)
    (True, True, 2)
    """
    X = _floating(X)
    problem, dictionary, codes = _matched(problem, dictionary, codes, X)
    return _certify(problem, dictionary, codes, X, support_size(codes, dictionary) if curvature else None)


@functools.partial(jax.jit, static_argnames="slots")
def _certify(problem, dictionary, codes, X, slots):
    sums = moments(problem, dictionary, codes, X)
    limit = wide_limit(problem, X)
    return Certificate(
        objective=sums.objective,
        stationarity=from_moments(problem, dictionary, sums),
        directional_derivative=steepest_slope(problem, dictionary, codes, X, sums),
        duality_gap=DualityGap(sums.gap, sums.gap_max),
        wide_bound=limit.dual_value,
        global_gap=sums.objective - limit.dual_value,
        max_residual_ratio=sums.residual_max / problem.lam,
        birth=birth(problem, dictionary, codes, X),
        curvature=None if slots is None else curvature(problem, dictionary, codes, X, slots=slots),
        n_rays=limit.n_rays,
        n_dead=jnp.sum(sums.mean_codes == 0),
    )


def steepest_slope(problem: Problem, dictionary: Dictionary, codes: Codes, X, sums: Moments) -> Float[Array, ""]:
    """F's derivative along the steepest feasible direction (T1), by `jax.jvp`; minus that direction's squared norm.

    Sparse codes are taken in blocks of samples, since any zero code may want to grow and the direction is dense; the
    atoms' part is then read off the moments.

    >>> import jax.numpy as jnp, jaxdict as jd
    >>> from jaxdict.objectives import moments
    >>> X, dictionary = jnp.array([[2.0, 0.0]]), jd.Dictionary(jnp.array([[1.0, 0.0]]))
    >>> point = jd.Problem(lam=0.5, offset=False), dictionary, jnp.array([[0.0]]), X
    >>> float(steepest_slope(*point, moments(*point)))  # the code's slope, 2 - 1/2, squared
    -2.25
    """
    if not isinstance(codes, SparseCodes):
        direction = steepest_feasible_direction(problem, dictionary, codes, X)
        return directional_derivative(problem, dictionary, codes, X, direction)
    atoms, offset = dictionary.atoms, offset_of(dictionary)
    down = sums.cross
    if problem.gauge == "penalised":
        down = down - (problem.lam * sums.mean_codes)[:, None] * unit_rows(atoms)
    else:
        down = jax.vmap(ball_tangent)(atoms, down)
    tangents = down, sums.mean_residual if problem.offset else jnp.zeros_like(offset)
    n_samples, n_atoms = X.shape[0], atoms.shape[0]
    block = max(1, min(n_samples, BLOCK_ENTRIES // n_atoms))
    n_blocks = -(-n_samples // block)

    def cut(array):  # padding samples have weight zero, hence no slope
        padded = jnp.pad(array, [(0, n_blocks * block - n_samples)] + [(0, 0)] * (array.ndim - 1))
        return padded.reshape(n_blocks, block, *array.shape[1:])

    def one(args):
        indices, values, rows, w = args
        Z = dense_codes(SparseCodes(indices, values), n_atoms)
        return _block_slope(problem, atoms, offset, Z, rows, w, tangents)

    w = sample_weights(problem, X) / n_samples
    return pairwise_sum(jax.lax.map(one, (cut(codes.indices), cut(codes.values), cut(X), cut(w))))


def _block_slope(problem, atoms, offset, Z, X, w, tangents):
    """The slope of a block's share of F when its codes move steepest and the dictionary along the tangents."""

    def share(D, b, Z, size):
        moved = Dictionary(D, b)
        r = residual(moved, Z, X)
        losses = 0.5 * jnp.sum(metric_of(problem, r) * r * r, axis=1)
        return jnp.sum(w * (losses + matmul(size, penalty_rates(problem, moved))))

    r = residual(Dictionary(atoms, offset), Z, X)
    pull = w[:, None] * matmul(metric_of(problem, r) * r, atoms.T)
    cost = w[:, None] * penalty_rates(problem, Dictionary(atoms, offset))
    if problem.signed:
        dZ = jnp.where(Z != 0, pull - cost * jnp.sign(Z), soft_threshold(pull, cost))
        size, growth = jnp.abs(Z), jnp.where(Z != 0, jnp.sign(Z) * dZ, jnp.abs(dZ))
    else:
        dZ = orthant_tangent(Z, pull - cost)
        size, growth = Z, dZ
    return jax.jvp(share, (atoms, offset, Z, size), (*tangents, dZ, growth))[1]


def _floating(X):
    """X as a floating point array of at least 32 bits."""
    X = jnp.asarray(X)
    if not jnp.issubdtype(X.dtype, jnp.floating):
        return X.astype(jnp.result_type(float))
    return X.astype(jnp.float32) if jnp.finfo(X.dtype).bits < 32 else X


def _matched(problem, dictionary, codes, X):
    """Problem, dictionary and codes in X's dtype, or a ValueError where a shape does not fit."""
    if X.ndim != 2:
        raise ValueError(f"X has shape {X.shape}; jaxdict wants (samples, features)")
    atoms = jnp.asarray(dictionary.atoms)
    if atoms.ndim != 2 or atoms.shape[1] != X.shape[1]:
        hint = ", was it transposed?" if atoms.ndim == 2 and atoms.shape[0] == X.shape[1] else ", one atom a row"
        raise ValueError(
            f"atoms have shape {atoms.shape} but the data {X.shape[1]} features; jaxdict wants (atoms, features){hint}"
        )
    offset = None if dictionary.offset is None else jnp.asarray(dictionary.offset, X.dtype)
    if offset is not None and offset.shape != X.shape[1:]:
        raise ValueError(f"offset has shape {offset.shape} but the data {X.shape[1]} features; give one a feature")
    for name, shape in (("lam", ()), ("metric", X.shape[1:]), ("weights", X.shape[:1])):
        array = getattr(problem, name)
        if array is not None and array.shape != shape:
            raise ValueError(f"{name} has shape {array.shape}; data of shape {X.shape} want {shape}; vmap over several")
    dictionary = Dictionary(atoms.astype(X.dtype), offset)
    return problem.astype(X.dtype), dictionary, _matched_codes(codes, X, atoms.shape[0])


def _matched_codes(codes, X, n_atoms):
    if not isinstance(codes, SparseCodes):
        codes = jnp.asarray(codes, X.dtype)
        if codes.shape != (X.shape[0], n_atoms):
            hint = "; were they transposed?" if codes.shape == (n_atoms, X.shape[0]) else ""
            raise ValueError(
                f"codes have shape {codes.shape}; this dictionary and these data want (samples, atoms) = "
                f"({X.shape[0]}, {n_atoms}){hint}"
            )
        return codes
    indices, values = jnp.asarray(codes.indices), jnp.asarray(codes.values, X.dtype)
    if indices.ndim != 2 or indices.shape != values.shape or indices.shape[0] != X.shape[0]:
        raise ValueError(
            f"sparse codes have indices {indices.shape} and values {values.shape}; both must be ({X.shape[0]}, slots)"
        )
    return SparseCodes(indices, values)


def _say_stationarity(c, tol):
    blocks = {"codes": c.stationarity.codes, "atoms": c.stationarity.atoms, "offset": c.stationarity.offset}
    parts = ", ".join(f"{name} {float(size):.1e}" for name, size in blocks.items())
    if not np.isfinite(float(c.objective)) or np.isnan(float(c.stationarity.worst)):
        worst = float(c.stationarity.worst)
        return f"Nothing is proved: the objective is {float(c.objective):g} and the worst block {worst:g}."
    if bool(c.is_stationary(tol)):
        return f"Stationary to {tol:.0e}: no feasible direction descends to first order ({parts})."
    worst = max(blocks, key=lambda name: float(blocks[name]))
    slope = float(c.directional_derivative)
    return f"Not stationary to {tol:.0e}: worst block {worst} ({parts}); the steepest direction has slope {slope:.1e}."


def _say_dead(c):
    dead, total = int(c.n_dead), c.stationarity.by_atom.shape[0]
    return f"{dead} of {total} atoms {'is' if dead == 1 else 'are'} dead: used by no sample." if dead else ""


def _say_codes(c):
    share = float(c.duality_gap.mean) / max(abs(float(c.objective)), float(np.finfo(c.objective.dtype).tiny))
    return f"The codes are within {share:.1e} of the objective of the best ones for this dictionary (duality gap)."


def _say_curvature(c, tol):
    if c.curvature is None:
        return ""
    value, error = float(c.curvature.eigenvalue), float(c.curvature.residual_norm)
    found = f"Smallest curvature found {value:.1e} (scaled, error {error:.0e})"
    if not bool(c.is_stationary(tol)):
        return f"{found}; it decides nothing where the point is not stationary."
    if float(c.curvature.second_derivative) < 0 and value < -error:
        return f"A saddle, not a local minimum. {found}; its direction escapes."
    if value > error:
        return f"{found}: positive, so a local minimum if no zero code has correlation one."
    return f"{found}: its sign is not decided."


def _say_width(c, tol):
    if bool(c.is_globally_optimal(tol)):
        return f"Globally optimal over all widths, within {float(c.global_gap):.1e}: no residual exceeds lam."
    share = float(c.global_gap) / max(abs(float(c.objective)), float(np.finfo(c.objective.dtype).tiny))
    gap = f"The objective is {float(c.global_gap):.3g} ({share:.1%}) above the certified bound for every width."
    rays = f"Splitting stops at {int(c.n_rays)} atoms."
    if float(c.max_residual_ratio) <= 1:
        return f"{gap} {rays} No single new atom helps: every residual is within lam."
    return f"{gap} {rays} One more atom would lower it by at least {float(c.birth.gain):.3g}."
