"""What is solved: problem P of theory.md, and the points it is solved over.

F(D, Z, b) = E[ 1/2 ||x - b - z D||_m^2 ] + lam * sum_k ||d_k||_2 E[z_k],      Z >= 0
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from jaxdict.arrays import as_jax, data_array, floating_dtype, is_concrete, real_array
from jaxdict.layouts import Codes as Codes
from jaxdict.layouts import SparseCodes as SparseCodes
from jaxdict.layouts import codes_of_any_samples
from jaxdict.layouts import dense_codes as dense_codes
from jaxdict.layouts import sparse_codes as sparse_codes
from jaxdict.meshes import on_any_mesh
from jaxdict.numerics import matmul, pairwise_sum, power_of_two, safe_norm, unit_rows

GAUGES = ("constrained", "penalised")


class Problem(eqx.Module):
    """Non-negative L1 dictionary learning: sparsity weight, offset, signs, gauge, metric and sample weights.

    Minimise `F(D, Z, b) = E[1/2 ||x - b - z D||_m^2] + lam sum_k ||d_k|| E[z_k]` (theory.md section 0, problem P), where
    `E` is the weighted mean over samples and `||v||_m^2 = sum_i m_i v_i^2`.

    **Arguments** (arrays may be traced, batched and differentiated; the others are plain Python):

    - `lam`: sparsity weight, in the units of the data's norm. SAE packages write the loss without the 1/2: `lam = l1_coefficient / 2`.
    - `offset`: whether b is free; else b is kept at zero by `fit`.
    - `signed`: whether codes may be negative (penalty on `|z|`).
    - `gauge`: "constrained" (`||d_k|| <= 1`, penalty `lam E[sum z]`) or "penalised" (free norms, penalty above).
    - `metric`: (d,) positive weight of each input dimension, or None for ones.
    - `weights`: (samples,) non-negative sample weights, or None; they are scaled to mean one.

    **Raises** ValueError for a negative `lam`, an unknown gauge, a metric or weights of the wrong shape or sign.

    >>> import jaxdict as jd
    >>> jd.Problem(lam=0.1).gauge
    'constrained'
    """

    lam: Float[Array, ""]
    metric: Float[Array, " d"] | None
    weights: Float[Array, " samples"] | None
    offset: bool = eqx.field(static=True)
    signed: bool = eqx.field(static=True)
    gauge: str = eqx.field(static=True)

    def __init__(self, lam, offset=True, signed=False, gauge="constrained", metric=None, weights=None):
        if gauge not in GAUGES:
            raise ValueError(f"gauge={gauge!r} is unknown; use one of {GAUGES}")
        self.lam = _as_float(lam, "lam")
        self.metric = None if metric is None else _as_float(metric, "metric")
        self.weights = None if weights is None else _as_float(weights, "weights")
        self.offset = bool(offset)
        self.signed = bool(signed)
        self.gauge = gauge
        _refuse(self.lam, lambda v: v < 0, "lam", "negative", "lam weighs a norm: use lam > 0")
        _refuse(
            self.metric, lambda v: v <= 0, "metric", "zero or negative", "drop such dimensions from the data instead"
        )
        _refuse(self.weights, lambda v: v < 0, "weights", "negative", "use weights >= 0")

    def astype(self, dtype) -> "Problem":
        """The same problem with its arrays in the data's dtype."""
        return jax.tree.map(lambda leaf: as_jax(leaf, dtype), self)

    def like(self, X: Float[Array, "samples d"]) -> "Problem":
        """The same problem in the data's dtype, or a ValueError where lam, metric or weights do not fit the data."""
        n_samples, d = jnp.shape(X)
        wanted = {
            "lam": ((), "; give a scalar, or use fit_batch for several problems"),
            "metric": ((d,), f" but the data {d} features; give one weight for each feature"),
            "weights": ((n_samples,), f" but the data {n_samples} samples; give one weight for each sample"),
        }
        for name, (shape, remedy) in wanted.items():
            value = getattr(self, name)
            if value is not None and jnp.shape(value) != shape:
                raise ValueError(f"{name} has shape {jnp.shape(value)}{remedy}")
        return self.astype(X.dtype)

    def lam_max(self, X: Float[Array, "samples d"], dictionary: "Dictionary | None" = None) -> Float[Array, ""]:
        """`jaxdict.lam_max` with this problem's offset, metric, weights and signs."""
        return lam_max(X, dictionary, offset=self.offset, signed=self.signed, metric=self.metric, weights=self.weights)


class Dictionary(NamedTuple):
    """Atoms, one a row (an SAE's `W_dec`), and the offset b (an SAE's `b_dec`); None stands for a zero offset."""

    atoms: Float[Array, "atoms d"]
    offset: Float[Array, " d"] | None = None

    def like(self, X: Float[Array, "samples d"]) -> "Dictionary":
        """The same dictionary as jax arrays of the data's dtype, or a ValueError where shapes do not fit the data."""
        atoms, d = real_array(self.atoms, "atoms", integers=False), jnp.shape(X)[1]
        if atoms.ndim != 2 or atoms.shape[1] != d:
            hint = ", was it transposed?" if atoms.ndim == 2 and atoms.shape[0] == d else ", one atom a row"
            raise ValueError(
                f"atoms have shape {atoms.shape} but the data {d} features; jaxdict wants (atoms, features){hint}"
            )
        if atoms.shape[0] == 0:
            raise ValueError(f"atoms have shape {atoms.shape}: the dictionary is empty; give at least one atom")
        offset = None if self.offset is None else real_array(self.offset, "offset")
        if offset is not None and offset.shape != (d,):
            raise ValueError(f"offset has shape {offset.shape} but the data {d} features; give one number a feature")
        return Dictionary(as_jax(atoms, X.dtype), None if offset is None else as_jax(offset, X.dtype))

    def alone(self, *others) -> "Dictionary":
        """`like`, without data: in the widest dtype of its atoms and of the other arrays that are given."""
        atoms = real_array(self.atoms, "atoms", integers=False)
        if atoms.ndim != 2:
            raise ValueError(f"atoms have shape {atoms.shape}; jaxdict wants (atoms, features), one atom a row")
        like: Any = jax.ShapeDtypeStruct((1, atoms.shape[1]), floating_dtype(atoms, *others))
        return self.like(like)


def offset_of(dictionary: Dictionary) -> Float[Array, " d"]:
    """The offset, zeros when there is none."""
    atoms = jnp.asarray(dictionary.atoms)
    return (
        jnp.zeros(atoms.shape[1], atoms.dtype)
        if dictionary.offset is None
        else jnp.asarray(dictionary.offset, atoms.dtype)
    )


def metric_of(problem: Problem, like: Float[Array, "... d"]) -> Float[Array, " d"]:
    """The metric in the dtype of the data, ones when there is none."""
    return jnp.ones(like.shape[-1], like.dtype) if problem.metric is None else jnp.asarray(problem.metric, like.dtype)


def sample_weights(problem: Problem, like: Float[Array, "samples d"]) -> Float[Array, " samples"]:
    """Sample weights scaled to mean one (w of theory.md), ones when there are none."""
    if problem.weights is None:
        return jnp.ones(like.shape[0], like.dtype)
    weights = jnp.asarray(problem.weights, like.dtype)
    return weights * (weights.shape[0] / pairwise_sum(weights))


def canonical(dictionary: Dictionary, codes: Codes) -> tuple[Dictionary, Codes]:
    """The same reconstruction with unit atoms, norms folded into the codes (problem P is invariant under this).

    >>> import jax.numpy as jnp
    >>> dictionary, codes = canonical(Dictionary(jnp.array([[0.0, 2.0]])), jnp.array([[1.0]]))
    >>> dictionary.atoms.tolist(), codes.tolist()
    ([[0.0, 1.0]], [[2.0]])
    """
    dictionary = dictionary.alone()
    codes = codes_of_any_samples(codes, dictionary.atoms.shape[0])
    return _canonical(Dictionary(dictionary.atoms, offset_of(dictionary)), codes)


def _with_unit_atoms(dictionary: Dictionary, codes: Codes) -> tuple[Dictionary, Codes]:
    atoms = dictionary.atoms
    norms = safe_norm(atoms)
    unit = Dictionary(atoms / jnp.where(norms > 0, norms, 1)[:, None], dictionary.offset)
    if isinstance(codes, SparseCodes):
        return unit, SparseCodes(codes.indices, codes.values * norms[codes.indices])
    return unit, codes * norms


_canonical = on_any_mesh(jax.jit(_with_unit_atoms), lambda rows: (P(), P(rows)))


def lam_max(
    X: Float[Array, "samples d"],
    dictionary: Dictionary | None = None,
    *,
    offset=True,
    signed=False,
    metric=None,
    weights=None,
):
    """The smallest lam whose optimal codes are all zero.

    For a given dictionary, `max_nk <u_k, x_n - b>_m` over unit atoms u_k (absolute values if signed), b the dictionary's own
    offset. For any dictionary of any width, `max_n ||m (x_n - b)||` with b the weighted mean where the offset is free, else 0:
    at that lam the zero codes are globally optimal (theory.md T13). Samples of weight zero do not count.

    Returns a scalar in the data's units; never below 0.

    >>> import jax.numpy as jnp
    >>> float(lam_max(jnp.array([[3.0, 4.0], [0.0, 1.0]]), offset=False))
    5.0
    """
    problem = Problem(lam=0.0, offset=offset, signed=signed, metric=metric, weights=weights)
    X = data_array(X)
    return _height(problem.like(X), X, None if dictionary is None else dictionary.like(X))


@jax.jit
def _largest_height(problem: Problem, X: Float[Array, "samples d"], dictionary):
    w, m = sample_weights(problem, X), metric_of(problem, X)
    if dictionary is None:
        center = pairwise_sum(w[:, None] * X) / X.shape[0] if problem.offset else jnp.zeros(X.shape[1], X.dtype)
        moved = X - center
        size = power_of_two(jnp.where(w[:, None] > 0, moved, 0))
        height = safe_norm(m * (moved / size)) * size
    else:
        correlations = matmul(m * (X - offset_of(dictionary)), unit_rows(dictionary.atoms).T)
        height = jnp.max(jnp.abs(correlations) if problem.signed else correlations, axis=1)
    return jnp.max(jnp.where(w > 0, height, 0), initial=0)


_height = on_any_mesh(_largest_height)


def _as_float(value, name):
    """A number or array as jax's, of a dtype that does not depend on how it was written: equal types compile once."""
    given = real_array(value, name)
    if isinstance(given, jax.Array) and not jnp.issubdtype(given.dtype, jnp.floating):
        raise ValueError(f"{name} has dtype {given.dtype}; give real floating point numbers")
    return as_jax(given, floating_dtype(given) if isinstance(given, jax.Array) else jnp.result_type(float))


def _refuse(value, is_bad, name, what, remedy):
    """Raise if a concrete array has bad entries; NaN passes (a NaN run of a batch is a status, not an error)."""
    if isinstance(value, jax.Array) and is_concrete(value):
        value = np.asarray(value)
        bad = np.asarray(is_bad(value))
        if bad.any():
            raise ValueError(f"{name} is {what}: {value[bad].ravel()[0]!s}; {remedy}")
