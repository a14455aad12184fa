"""What is solved: problem P of theory.md, and the points it is solved over.

F(D, Z, b) = E[ 1/2 ||x - b - z D||_m^2 ] + lam * sum_k ||d_k||_2 E[z_k],      Z >= 0
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

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
        return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), self)

    def lam_max(self, X, dictionary: "Dictionary | None" = None) -> Float[Array, ""]:
        """`jaxdict.lam_max` with this problem's offset, metric, weights and signs."""
        return lam_max(X, dictionary, offset=self.offset, signed=self.signed, metric=self.metric, weights=self.weights)


class Dictionary(NamedTuple):
    """Atoms, one a row (an SAE's `W_dec`), and the offset b (an SAE's `b_dec`); None stands for a zero offset."""

    atoms: Float[Array, "atoms d"]
    offset: Float[Array, " d"] | None = None


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
    zeros = jnp.zeros((codes.values.shape[0], n_atoms), codes.values.dtype)
    return zeros.at[jnp.arange(zeros.shape[0])[:, None], codes.indices].add(codes.values, mode="drop")


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
    if not isinstance(codes, Tracer):
        fullest = int(
            np.max(np.sum(np.asarray(codes) != 0, axis=1), initial=0)
        )  # numpy: this may run inside another's jit
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
    norms = safe_norm(atoms)
    unit = Dictionary(atoms / jnp.where(norms > 0, norms, 1)[:, None], offset_of(dictionary))
    if isinstance(codes, SparseCodes):
        return unit, SparseCodes(codes.indices, codes.values * norms[codes.indices])
    return unit, codes * norms


def lam_max(X, dictionary: Dictionary | None = None, *, offset=True, signed=False, metric=None, weights=None):
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
    return _largest_height(problem, jnp.asarray(X), dictionary)


@jax.jit
def _largest_height(problem: Problem, X, dictionary):
    w, m = sample_weights(problem, X), metric_of(problem, X)
    if dictionary is None:
        center = pairwise_sum(w[:, None] * X) / X.shape[0] if problem.offset else jnp.zeros(X.shape[1], X.dtype)
        height = safe_norm(m * (X - center))
    else:
        unit, _ = canonical(dictionary, jnp.zeros((1, dictionary.atoms.shape[0]), X.dtype))
        correlations = matmul(m * (X - offset_of(dictionary)), unit.atoms.T)
        height = jnp.max(jnp.abs(correlations) if problem.signed else correlations, axis=1)
    return jnp.max(jnp.where(w > 0, height, 0), initial=0)


def _as_float(value, name):
    if isinstance(value, jax.Array):
        if not jnp.issubdtype(value.dtype, jnp.floating):
            raise ValueError(f"{name} has dtype {value.dtype}; give real floating point numbers")
        return value
    array = np.asarray(value) if not isinstance(value, (int, float)) else value
    if isinstance(array, np.ndarray):
        if array.dtype.kind not in "fiub":
            raise ValueError(f"{name} has dtype {array.dtype}; give real numbers")
        return jnp.asarray(array, jnp.result_type(float))
    return jnp.asarray(float(array))


def _refuse(value, is_bad, name, what, remedy):
    """Raise if a concrete array has bad entries; NaN passes (a NaN run of a batch is a status, not an error)."""
    if value is None or not isinstance(value, jax.Array) or isinstance(value, Tracer):
        return
    bad = np.asarray(is_bad(np.asarray(value)))
    if bad.any():
        raise ValueError(f"{name} is {what}: {np.asarray(value)[bad].ravel()[0]!s}; {remedy}")
