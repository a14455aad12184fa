"""Hierarchies: who fires only with whom (C1), what absorbing the parent gains, and the cosine to expect (C3)."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxdict.certificates.stationarity import Direction
from jaxdict.conditions.coactivations import (
    coactivation_of,
    counted,
    feature_sums,
    mean_weights,
    outer_sum,
    refuse_negative,
    values_of,
)
from jaxdict.conditions.hulls import row_direction
from jaxdict.meshes import on_any_mesh
from jaxdict.numerics import matmul, safe_divide, safe_norm, unit_rows
from jaxdict.points import check_activations, check_activations_of, check_feature
from jaxdict.problem import Codes, Dictionary


class Candidate(NamedTuple):
    """One row of `Hierarchy.candidates`: plain Python numbers."""

    parent: int
    child: int
    q: float
    rho: float
    both: int
    rate: float


class Hierarchy(NamedTuple):
    """Parents i and children j, entry [i, j] of (atoms, atoms) arrays; NaN where a feature never fires."""

    flagged: Bool[Array, "atoms atoms"]  # j fires (nearly) only with i, and not by chance
    q: Float[Array, "atoms atoms"]  # P(parent i | child j)
    rho: Float[Array, "atoms atoms"]  # P(child j | parent i)
    both: Int[Array, "atoms atoms"]
    active: Int[Array, " atoms"]
    evidence: Float[Array, "atoms atoms"]  # -log of a bound on the probability of so much co-activation by chance
    rate: Float[Array, "atoms atoms"] | None  # of absorption, lam zbar_j (1 - G_ij), where a dictionary is given

    def candidates(self, top: int | None = 20) -> list[Candidate]:
        """At most `top` flagged pairs, by rate (without a dictionary by evidence). Host side: not for jit."""
        i, j = np.nonzero(np.asarray(self.flagged))
        rate = np.full(i.shape, np.nan) if self.rate is None else np.asarray(self.rate)[i, j]
        order = np.argsort(-(np.asarray(self.evidence)[i, j] if self.rate is None else rate), kind="stable")[:top]
        q, rho, both = (np.asarray(array)[i, j] for array in (self.q, self.rho, self.both))
        columns = (i, j, q, rho, both, rate)
        return [Candidate(*(column[n].item() for column in columns)) for n in order]


def hierarchy(
    codes: Codes,
    *,
    dictionary: Dictionary | None = None,
    lam=1.0,
    weights=None,
    n_atoms: int | None = None,
    threshold: float = 0.95,
    significance: float = 0.01,
) -> Hierarchy:
    """Parent/child candidates: pairs that C1 says cannot last, with what absorbing the parent would gain; codes >= 0.

    `q = P(i on | j on)` (one in C1), `rho = P(j on | i on)`, for parent i and child j. A pair is flagged when
    `q >= threshold` and so many co-activations are improbable for independent features: by Hoeffding's bound
    `P(>= b of n) <= exp(-n KL(b/n || p))`, p the other feature's frequency, below `significance` over the number of
    pairs: any false flag at all among independent features has probability at most `significance`. With a dictionary,
    `rate = lam zbar_j (1 - G_ij)` is how fast F falls along `absorption_direction` (exact where q = 1; in units of lam
    if it is not given). Samples of weight 0 do not count.

    Co-activation is `z > 0`. Counts cost samples x slots^2 for sparse codes. `n_atoms` is for sparse codes under jit.

    >>> import jax.numpy as jnp, jaxdict as jd
    >>> parent = jnp.arange(100.0) % 4 == 0
    >>> codes = jnp.stack([parent, parent & (jnp.arange(100.0) % 8 == 0), jnp.arange(100.0) % 5 == 0], axis=1) * 1.0
    >>> found = hierarchy(codes, dictionary=jd.Dictionary(jnp.eye(3)))
    >>> [(row.parent, row.child, row.q) for row in found.candidates()]
    [(0, 1, 1.0)]
    """
    refuse_negative(codes, "hierarchy")
    if dictionary is None:
        codes, weights, n_atoms = check_activations(codes, n_atoms, weights)
    else:
        dictionary, codes, weights = check_activations_of(dictionary, codes, weights)
        n_atoms = dictionary.atoms.shape[0]
    limits = (jnp.asarray(value, values_of(codes).dtype) for value in (threshold, significance))
    return _hierarchy(codes, dictionary, jnp.asarray(lam, values_of(codes).dtype), weights, *limits, n_atoms)


@functools.partial(jax.jit, static_argnums=6)
def _hierarchy_of(codes, dictionary, lam, weights, threshold, significance, n_atoms) -> Hierarchy:
    counts = coactivation_of(codes, weights, n_atoms)
    both, active = counts.both.astype(jnp.float32), counts.active.astype(jnp.float32)
    q, rho = both / active[None, :], both / active[:, None]
    evidence = chance_evidence(both, active, counts.samples, more=True)
    apart = ~jnp.eye(n_atoms, dtype=bool)
    flagged = apart & (q >= threshold) & (evidence >= jnp.log(n_atoms**2 / (2 * significance)))
    rate = None
    if dictionary is not None:
        silenced = counted(codes, weights)
        w = mean_weights(silenced, weights)[:, None]
        means = feature_sums(silenced, w * values_of(silenced), n_atoms) * safe_norm(dictionary.atoms)
        units = unit_rows(dictionary.atoms)
        rate = jnp.where(apart, jnp.asarray(lam, means.dtype) * means * (1 - matmul(units, units.T)), jnp.nan)
    return Hierarchy(flagged, q, rho, counts.both, counts.active, evidence, rate)


_hierarchy = on_any_mesh(_hierarchy_of)


def chance_evidence(both, active, samples, *, more: bool) -> Float[Array, "atoms atoms"]:
    """`-log` of Hoeffding's bound on the chance that independent features co-activate so often (`more`) or so rarely.

    `n KL(b/n || p)`, n the count of one feature, p the frequency of the other, b their joint count; zero on the other
    side of chance. The hypergeometric tail obeys it in both roles, so the larger of the two is taken.

    >>> import jax.numpy as jnp
    >>> both, active = jnp.array([[8.0, 4.0], [4.0, 4.0]]), jnp.array([8.0, 4.0])
    >>> round(float(chance_evidence(both, active, 16, more=True)[0, 1]), 4)
    2.7726
    """
    evidence = tail_evidence(both, active[None, :], (active / samples)[:, None], more=more)
    return jnp.maximum(evidence, evidence.T)


def tail_evidence(both, n, frequency, *, more: bool) -> Array:
    """`n KL(both/n || frequency)`, Hoeffding's bound, where `both` of n lie beyond chance; else zero. Arrays broadcast.

    >>> import jax.numpy as jnp
    >>> round(float(tail_evidence(jnp.array(4.0), 4.0, 0.5, more=True)), 4)  # 4 log 2
    2.7726
    """
    share = both / n
    beyond = share > frequency if more else share < frequency
    on = jnp.where(both > 0, both * jnp.log(jnp.where(both > 0, share / frequency, 1)), 0)
    off = jnp.where(n > both, (n - both) * jnp.log(jnp.where(n > both, (1 - share) / (1 - frequency), 1)), 0)
    return jnp.where(beyond, on + off, 0)


def absorption_direction(dictionary: Dictionary, codes: Codes, parent, child) -> Direction:
    """C1's move, the parent absorbed into the child: `z_i -= eps z_j`, `d_j += eps d_i`.

    Where the child fires only with the parent, F's slope along it is `-lam zbar_j (1 - G_ij)`, offset or not. Elsewhere
    `z_i` stays (it is zero there), and each such sample takes `lam E[z_j (1 - s_i)]` off the rate.

    >>> import jax.numpy as jnp, jaxdict as jd
    >>> point = jd.Dictionary(jnp.eye(2)), jnp.array([[1.0, 1.0], [1.0, 0.0]])
    >>> move = absorption_direction(*point, 0, 1)
    >>> float(jd.directional_derivative(jd.Problem(lam=0.5), *point, jnp.ones((2, 2)), move))
    -0.25
    """
    n_atoms = jnp.shape(dictionary.atoms)[0]
    row = jnp.zeros(n_atoms).at[check_feature(child, n_atoms, "child")].set(-1)
    return row_direction(dictionary, codes, parent, row)


def predicted_cosine(
    codes: Codes, lam, *, offset: bool = True, varied: bool = True, weights=None, n_atoms: int | None = None
) -> Float[Array, "atoms atoms"]:
    """The cosine that co-activation gives two features of orthonormal truth, to first order in lam (C3, approximate).

    `cosine = alpha + beta`, beta the pull of i on j. With probabilities p11 (both), p01 (j only), p00 (neither), o an
    unknown:

    - no offset: `beta = lam E[z_j; both] / E[z_j^2; j only]`;
    - offset free: `(p00 + p01) o + beta E[z_j; j only] = lam p_i`,
      `o E[z_j; j only] + beta E[z_j^2; j only] = lam E[z_j; both]`.

    alpha is the same with i and j exchanged. `varied=False` takes magnitudes constant on the support
    (`c_j = E[z_j | j on]`), which gives `lam p11 / (p01 c_j)` and `lam (p11 p00 - p10 p01) / (p00 p01 c_j)`. Meant for
    true codes >= 0 and small lam: trustworthy below about .1, too large beyond .3, infinite where one fires only with
    the other. NaN for dead features and the diagonal.

    >>> import jax.numpy as jnp
    >>> codes = jnp.array([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])  # independent
    >>> float(predicted_cosine(codes, 0.01)[0, 1]), round(float(predicted_cosine(codes, 0.01, offset=False)[0, 1]), 6)
    (0.0, 0.02)
    """
    refuse_negative(codes, "the cosine law")
    codes, weights, n_atoms = check_activations(codes, n_atoms, weights)
    return _cosine(codes, jnp.asarray(lam, values_of(codes).dtype), weights, n_atoms, offset, varied)


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def _cosine_of(codes, lam, weights, n_atoms, offset, varied) -> Float[Array, "atoms atoms"]:
    codes = counted(codes, weights)
    lam = jnp.asarray(lam, values_of(codes).dtype)
    w, z = mean_weights(codes, weights)[:, None], values_of(codes)
    on = z > 0
    p11 = outer_sum(codes, w * on, on, n_atoms)
    p = jnp.diagonal(p11)
    first_both = outer_sum(codes, w * on, z, n_atoms)  # [i, j] = E[z_j; i on]
    if varied:
        first, second = jnp.diagonal(first_both), feature_sums(codes, w * z * z, n_atoms)
        second_both = outer_sum(codes, w * on, z * z, n_atoms)
        first_only, second_only = first - first_both, second - second_both
    else:
        size = safe_divide(jnp.diagonal(first_both), p)
        first_both, first_only, second_only = p11 * size, (p - p11) * size, (p - p11) * size**2
    if offset:
        i_off = 1 - p[:, None]
        numerator = i_off * first_both - first_only * p[:, None]
        denominator = i_off * second_only - first_only**2
    else:
        numerator, denominator = first_both, second_only
    # Differences of equal sums leave rounding where j never fires alone: there the law diverges.
    alone = (p - p11) > 16 * jnp.finfo(z.dtype).eps
    diverged = jnp.where(numerator == 0, jnp.nan, jnp.sign(numerator) * jnp.inf)
    beta = lam * jnp.where(alone & (denominator > 0), numerator / jnp.where(denominator > 0, denominator, 1), diverged)
    return jnp.where(jnp.eye(n_atoms, dtype=bool), jnp.nan, beta + beta.T)


_cosine = on_any_mesh(_cosine_of)
