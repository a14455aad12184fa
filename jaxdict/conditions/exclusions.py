"""Pairs of features that avoid each other (C2) and pairs of opposite atoms (T14)."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxdict.conditions.coactivations import coactivation_of, refuse_negative
from jaxdict.conditions.hierarchies import chance_evidence
from jaxdict.meshes import on_any_mesh
from jaxdict.numerics import matmul, safe_divide, unit_rows
from jaxdict.points import check_activations, check_activations_of
from jaxdict.problem import Codes, Dictionary, SparseCodes


class Exclusive(NamedTuple):
    """Mutually exclusive features; symmetric (atoms, atoms) arrays."""

    flagged: Bool[Array, "atoms atoms"]
    ratio: Float[Array, "atoms atoms"]  # co-activations over those expected by chance
    both: Int[Array, "atoms atoms"]
    evidence: Float[Array, "atoms atoms"]  # -log of a bound on the probability of so little co-activation by chance

    def candidates(self, top: int | None = 20) -> list[tuple[int, int, float, int]]:
        """The flagged pairs (i, j, ratio, both) with i < j, strongest evidence first. Host side: not for jit."""
        return _ranked(self.flagged, -np.asarray(self.evidence), (self.ratio, self.both), top)


class Antipodal(NamedTuple):
    """Pairs of nearly opposite atoms; symmetric (atoms, atoms) arrays."""

    flagged: Bool[Array, "atoms atoms"]
    dense: Bool[Array, "atoms atoms"]  # flagged, and one of the two is on in most samples
    cosine: Float[Array, "atoms atoms"]
    coverage: Float[Array, "atoms atoms"]  # P(i or j on)
    overlap: Float[Array, "atoms atoms"]  # P(i and j on | i or j on), zero at optimal codes for an exact pair

    def candidates(self, top: int | None = 20) -> list[tuple[int, int, float, float]]:
        """The flagged pairs (i, j, cosine, coverage) with i < j, widest coverage first. Host side: not for jit."""
        return _ranked(self.flagged, -np.asarray(self.coverage), (self.cosine, self.coverage), top)


def exclusive(
    codes: Codes, *, weights=None, n_atoms: int | None = None, threshold: float = 0.1, significance: float = 0.01
) -> Exclusive:
    """Pairs that (nearly) never fire together although chance would have them do so (C2); on means `z != 0`.

    `ratio = #both N / (#i #j)` at most `threshold`, with Hoeffding's bound on so few co-activations of independent
    features below `significance` over the number of pairs. Such pairs pass the pair condition at every cosine >= 0.
    Samples of weight 0 do not count.

    >>> import jax.numpy as jnp
    >>> turns = jnp.arange(100) % 2
    >>> exclusive(jnp.stack([turns, 1 - turns], axis=1) * 1.0).candidates()
    [(0, 1, 0.0, 0)]
    """
    codes, weights, n_atoms = check_activations(codes, n_atoms, weights)
    return _exclusive(codes, weights, threshold, significance, n_atoms)


@functools.partial(jax.jit, static_argnums=4)
def _exclusive_of(codes, weights, threshold, significance, n_atoms) -> Exclusive:
    sizes = codes._replace(values=jnp.abs(codes.values)) if isinstance(codes, SparseCodes) else jnp.abs(codes)
    counts = coactivation_of(sizes, weights, n_atoms)
    both, active = counts.both.astype(jnp.float32), counts.active.astype(jnp.float32)
    ratio = both * (counts.samples / (active[:, None] * active[None, :]))
    evidence = chance_evidence(both, active, counts.samples, more=False)
    apart = ~jnp.eye(n_atoms, dtype=bool)
    flagged = apart & (ratio <= threshold) & (evidence >= jnp.log(n_atoms**2 / (2 * significance)))
    return Exclusive(flagged, ratio, counts.both, evidence)


_exclusive = on_any_mesh(_exclusive_of)


def antipodal(
    dictionary: Dictionary, codes: Codes, *, weights=None, cosine: float = -0.9, coverage: float = 0.5
) -> Antipodal:
    """Pairs of atoms that point opposite ways; dense when together they are on in most samples (after T14). Codes >= 0.

    Flagged: `G_ij <= cosine`. Dense: flagged and `P(z_i > 0 or z_j > 0) > coverage`. Two thresholds, that is all: this
    finds pairs that look like those of T14, and proves nothing of them. (In one dimension the optimum is such a pair,
    (+1, -1) with `z = (+-(x - b) - lam)_+`, and no wider dictionary splits it.)

    >>> import jax.numpy as jnp, jaxdict as jd
    >>> found = antipodal(jd.Dictionary(jnp.array([[1.0], [-1.0]])), jnp.array([[1.5, 0.0], [0.0, 0.5]]))
    >>> found.candidates(), bool(found.dense[0, 1])
    ([(0, 1, -1.0, 1.0)], True)
    """
    refuse_negative(codes, "antipodal")
    return _antipodal(*check_activations_of(dictionary, codes, weights), cosine, coverage)


@jax.jit
def _antipodal_of(dictionary, codes, weights, cosine, coverage) -> Antipodal:
    units = unit_rows(dictionary.atoms)
    counts = coactivation_of(codes, weights, units.shape[0])
    G = matmul(units, units.T)
    either = counts.active[:, None] + counts.active[None, :] - counts.both
    covered = either.astype(G.dtype) / counts.samples.astype(G.dtype)
    overlap = safe_divide(counts.both.astype(G.dtype), either.astype(G.dtype))
    flagged = (cosine >= G) & ~jnp.eye(units.shape[0], dtype=bool)
    return Antipodal(flagged, flagged & (covered > coverage), G, covered, overlap)


_antipodal = on_any_mesh(_antipodal_of)


def _ranked(flagged, keys, columns, top):
    i, j = np.nonzero(np.triu(np.asarray(flagged), 1))
    order = np.argsort(keys[i, j], kind="stable")[:top]
    values = [np.asarray(column)[i, j].tolist() for column in columns]
    return [(int(i[n]), int(j[n]), *(value[n] for value in values)) for n in order]
