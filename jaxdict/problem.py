"""What is solved: problem P of theory.md, and the points it is solved over.

F(D, Z, b) = E[ 1/2 ||x - b - z D||_m^2 ] + lam * sum_k ||d_k||_2 E[z_k],      Z >= 0
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from jaxdict.arrays import as_jax, data_array, floating_dtype, is_concrete, look, real_array
from jaxdict.meshes import on_any_mesh
from jaxdict.numerics import matmul, pairwise_sum, safe_norm

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


class SparseCodes(NamedTuple):
    """Padded sparse codes: row n is `sum_s values[n, s] e_{indices[n, s]}`. Padding has value 0 and any index in range."""

    indices: Int[Array, "samples slots"]
    values: Float[Array, "samples slots"]


Codes = Float[Array, "samples atoms"] | SparseCodes


def dense_codes(codes: Codes, n_atoms: int) -> Float[Array, "samples atoms"]:
    """Codes as a dense (samples, atoms) array.

    >>> import jax.numpy as jnp
    >>> dense_codes(SparseCodes(jnp.array([[2, 0]]), jnp.array([[5.0, 0.0]])), 3).tolist()
    [[0.0, 0.0, 5.0]]
    """
    if not isinstance(codes, SparseCodes):
        return jnp.asarray(codes)
    return _filled(n_atoms, codes)


def _into_zeros(n_atoms: int, codes: SparseCodes):
    zeros = jnp.zeros((codes.values.shape[0], n_atoms), codes.values.dtype)
    return zeros.at[jnp.arange(zeros.shape[0])[:, None], codes.indices].add(codes.values, mode="drop")


_filled = on_any_mesh(_into_zeros, out=lambda rows: P(rows, None))


def sparse_codes(codes: Codes, slots: int | None = None) -> SparseCodes:
    """Codes as `SparseCodes`, the `slots` largest magnitudes of each row (default: as many as the fullest row needs).

    Under jit `slots` must be given. Raises ValueError if a concrete row has more non-zeros than slots.

    >>> import jax.numpy as jnp
    >>> sparse_codes(jnp.array([[0.0, 3.0, 0.0], [1.0, 0.0, 2.0]])).values.tolist()
    [[3.0, 0.0], [2.0, 1.0]]
    """
    if isinstance(codes, SparseCodes):
        return codes
    codes = jnp.asarray(codes)
    if is_concrete(codes):
        fullest = int(look(lambda xp, Z: xp.max(xp.sum(Z != 0, axis=1), initial=0), codes))
        if slots is not None and fullest > slots:
            raise ValueError(f"slots={slots} is too small: a row has {fullest} non-zero codes; give slots >= {fullest}")
        slots = max(1, fullest) if slots is None else slots
    if slots is None:
        raise ValueError("slots is not given: under jit the number of slots must be a Python integer")
    _, indices = jax.lax.top_k(jnp.abs(codes), min(slots, codes.shape[1]))
    return SparseCodes(indices, jnp.take_along_axis(codes, indices, axis=1))


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
    atoms = jnp.asarray(dictionary.atoms)
    if not isinstance(codes, SparseCodes) and (jnp.ndim(codes) != 2 or jnp.shape(codes)[1] != atoms.shape[0]):
        raise ValueError(
            f"codes have shape {jnp.shape(codes)}; {atoms.shape[0]} atoms want (samples, {atoms.shape[0]})"
        )
    codes = codes if isinstance(codes, SparseCodes) else jnp.asarray(codes)
    return _canonical(Dictionary(atoms, offset_of(dictionary)), codes)


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
def _largest_height(problem: Problem, X, dictionary):
    w, m = sample_weights(problem, X), metric_of(problem, X)
    if dictionary is None:
        center = pairwise_sum(w[:, None] * X) / X.shape[0] if problem.offset else jnp.zeros(X.shape[1], X.dtype)
        moved = X - center
        # Over a power of two of their own size, so that squares neither overflow nor underflow.
        most = jnp.finfo(X.dtype).maxexp - 2
        exponent = jnp.clip(jnp.frexp(jnp.max(jnp.abs(jnp.where(w[:, None] > 0, moved, 0))))[1], -most, most)
        size = jnp.ldexp(jnp.ones_like(moved[0, 0]), exponent)
        height = safe_norm(m * (moved / size)) * size
    else:
        unit, _ = canonical(dictionary, jnp.zeros((1, dictionary.atoms.shape[0]), X.dtype))
        correlations = matmul(m * (X - offset_of(dictionary)), unit.atoms.T)
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
