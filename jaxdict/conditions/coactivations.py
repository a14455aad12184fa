"""Which features fire together: counts and moments over pairs of features, for dense and sparse codes."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdict.arrays import is_concrete, look, real_array
from jaxdict.meshes import on_any_mesh
from jaxdict.numerics import matmul, pairwise_sum, sum_in_blocks
from jaxdict.objectives import BLOCK_ENTRIES
from jaxdict.points import check_activations
from jaxdict.problem import Codes, SparseCodes


class Coactivation(NamedTuple):
    """How often features are on, `z > 0`, and on together, over the samples of positive weight."""

    both: Int[Array, "atoms atoms"]  # samples with i and j on; the diagonal is `active`
    active: Int[Array, " atoms"]
    samples: Int[Array, ""]


def coactivation(codes: Codes, *, n_atoms: int | None = None, weights=None) -> Coactivation:
    """Counts of samples on which features, and pairs of features, are on.

    `both_ij = #{n : w_n > 0, z_ni > 0, z_nj > 0}`, shape (atoms, atoms). Counts add over chunks of samples. Sparse
    codes cost samples x slots^2 whatever the number of atoms; `n_atoms` is read off concrete codes when it is not
    given.

    >>> import jax.numpy as jnp
    >>> coactivation(jnp.array([[1.0, 2.0], [0.0, 3.0]])).both.tolist()
    [[1, 1], [1, 2]]
    """
    codes, weights, n_atoms = check_activations(codes, n_atoms, weights)
    return _coactivation(codes, weights, n_atoms)


@functools.partial(jax.jit, static_argnums=2)
def coactivation_of(codes: Codes, weights, n_atoms: int) -> Coactivation:
    """`coactivation` of arrays that fit."""
    codes = counted(codes, weights)
    on = values_of(codes) > 0
    both = jnp.round(outer_sum(codes, on, on, n_atoms)).astype(int)
    return Coactivation(both, jnp.diagonal(both), count_samples(codes, weights))


_coactivation = on_any_mesh(coactivation_of)


def outer_sum(codes: Codes, left: Array, right: Array, n_atoms: int) -> Float[Array, "atoms atoms"]:
    """`sum_n left_ni right_nj`, left and right laid out as the codes' values are: dense, or by slot at their indices.

    Dense: one product at the highest precision. Sparse: scattered in blocks of samples, no (samples, atoms) array.

    >>> import jax.numpy as jnp
    >>> codes = SparseCodes(jnp.array([[1, 0]]), jnp.array([[2.0, 0.0]]))
    >>> outer_sum(codes, codes.values, codes.values > 0, 2).tolist()
    [[0.0, 0.0], [0.0, 2.0]]
    """
    dtype = jnp.result_type(jnp.float32, left.dtype, right.dtype)
    if not isinstance(codes, SparseCodes):
        return matmul(left.astype(dtype).T, right.astype(dtype))
    return _scatter_outer(codes.indices, left.astype(dtype), right.astype(dtype), n_atoms)


@functools.partial(jax.jit, static_argnames="n_atoms")
def _scatter_outer(indices, left, right, n_atoms):
    size = max(1, BLOCK_ENTRIES // indices.shape[1] ** 2)

    def of_block(block):  # zero rows add zeros to feature 0
        at, a, b = block
        total = jnp.zeros((n_atoms, n_atoms), left.dtype)
        return total.at[at[:, :, None], at[:, None, :]].add(a[:, :, None] * b[:, None, :])

    return sum_in_blocks(of_block, (indices, left, right), size)


def feature_sums(codes: Codes, values: Array, n_atoms: int) -> Float[Array, " atoms"]:
    """`sum_n values_nk` for each feature k, values laid out as the codes' are."""
    if not isinstance(codes, SparseCodes):
        return jnp.sum(values, axis=0)
    return jnp.zeros(n_atoms, values.dtype).at[codes.indices].add(values, mode="drop")


def values_of(codes: Codes) -> Array:
    """The codes' values: (samples, slots) for sparse codes, else (samples, atoms)."""
    return codes.values if isinstance(codes, SparseCodes) else codes


def column(codes: Codes, k) -> Float[Array, " samples"]:
    """One feature's codes."""
    if isinstance(codes, SparseCodes):
        return jnp.sum(jnp.where(codes.indices == k, codes.values, 0), axis=1)
    return codes[:, k]


def counted(codes: Codes, weights) -> Codes:
    """The codes with the samples of weight zero silenced: no maximum, count or hull sees them."""
    keep = True if weights is None else (jnp.asarray(weights) > 0)[:, None]
    if isinstance(codes, SparseCodes):
        return SparseCodes(jnp.asarray(codes.indices), jnp.where(keep, jnp.asarray(codes.values), 0))
    return jnp.where(keep, jnp.asarray(codes), 0)


def count_samples(codes: Codes, weights) -> Int[Array, ""]:
    """Number of samples of positive weight."""
    if weights is None:
        return jnp.asarray(values_of(codes).shape[0])
    return jnp.sum(jnp.asarray(weights) > 0)


def mean_weights(codes: Codes, weights) -> Float[Array, " samples"]:
    """`w_n / sum w`: what each sample counts for in E[.]."""
    values = values_of(codes)
    if weights is None:
        return jnp.full(values.shape[:1], 1 / values.shape[0], values.dtype)
    weights = jnp.asarray(weights, values.dtype)
    return weights / pairwise_sum(weights)


def refuse_negative(codes: Codes, what: str) -> None:
    """Raise for concrete negative codes, where a statement about codes >= 0 does not carry over to signed ones."""
    values = values_of(codes)
    if not is_concrete(values):
        return
    least = float(look(lambda xp, z: xp.min(z, initial=0), real_array(values, "codes")))
    if least < 0:
        raise ValueError(f"{what} is for codes >= 0 and got {least}; signed codes obey `barycentre` (theory.md T8)")
