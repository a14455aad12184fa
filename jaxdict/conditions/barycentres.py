"""The barycentre identity (T7; signed T8): the residual's correlations carry the decoder's cosines."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdict.conditions.coactivations import mean_weights, refuse_negative
from jaxdict.numerics import matmul
from jaxdict.objectives import BLOCK_ENTRIES
from jaxdict.objectives import residual as residual_of
from jaxdict.problem import Codes, Dictionary, Problem, SparseCodes, canonical, dense_codes, metric_of


class MomentSums(NamedTuple):
    """Sums over samples behind T7 and T9, unit atoms. Those of chunks add: `jax.tree.map(jnp.add, first, second)`."""

    codes: Float[Array, " atoms"]  # sum w |z_k|
    cross: Float[Array, "atoms d"]  # sum w z_k m r
    residual: Float[Array, " d"]  # sum w m r
    weight: Float[Array, ""]  # sum w


def moment_sums(problem: Problem, dictionary: Dictionary, codes: Codes, X) -> MomentSums:
    """The sums of one chunk of samples, in the canonical gauge; `problem.weights` are those of the chunk.

    Sparse codes are taken in blocks, so no (samples, atoms) array is formed for them.

    >>> import jax.numpy as jnp, jaxdict as jd
    >>> point = jd.Dictionary(jnp.eye(2)), jnp.array([[1.0, 0.0]])
    >>> moment_sums(jd.Problem(lam=0.5), *point, jnp.array([[1.5, 0.0]])).cross.tolist()
    [[0.5, 0.0], [0.0, 0.0]]
    """
    X = jnp.asarray(X)
    unit, codes = canonical(dictionary, codes)
    m = metric_of(problem, X)
    w = jnp.ones(X.shape[0], X.dtype) if problem.weights is None else jnp.asarray(problem.weights, X.dtype)

    def of_block(Z, w, mr):
        return MomentSums(matmul(w, jnp.abs(Z)), matmul((w[:, None] * Z).T, mr), matmul(w, mr), jnp.sum(w))

    mr = m * residual_of(unit, codes, X)
    if not isinstance(codes, SparseCodes):
        return of_block(jnp.asarray(codes, X.dtype), w, mr)
    n_samples, n_atoms = X.shape[0], unit.atoms.shape[0]
    block = max(1, min(n_samples, BLOCK_ENTRIES // n_atoms))
    n_blocks = -(-n_samples // block)

    def blocks(array):  # padding samples have weight zero
        padded = jnp.pad(array, [(0, n_blocks * block - n_samples)] + [(0, 0)] * (array.ndim - 1))
        return padded.reshape(n_blocks, block, *array.shape[1:])

    def add(total, args):
        indices, values, w, mr = args
        return jax.tree.map(jnp.add, total, of_block(dense_codes(SparseCodes(indices, values), n_atoms), w, mr)), None

    chunks = (blocks(codes.indices), blocks(codes.values.astype(X.dtype)), blocks(w), blocks(mr))
    zeros = of_block(jnp.zeros((1, n_atoms), X.dtype), jnp.zeros_like(w[:1]), jnp.zeros_like(mr[:1]))
    return jax.lax.scan(add, zeros, chunks)[0]


def multipliers(problem: Problem, sums: MomentSums) -> Float[Array, "atoms d"]:
    """`v_k = E[z_k m r] / (lam zbar_k)`, equal to the unit atom u_k at a stationary point (T1); NaN for dead k."""
    live = sums.codes > 0
    lam = jnp.asarray(problem.lam, jnp.asarray(sums.cross).dtype)
    return jnp.where(live[:, None], sums.cross / jnp.where(live, lam * sums.codes, 1)[:, None], jnp.nan)


def barycentre(problem: Problem, dictionary: Dictionary, codes: Codes, X) -> Float[Array, "atoms atoms"]:
    """The barycentre identity's defect, `[i, j] = E[z_j s_i] / zbar_j - G_ij`, zero where stationary (T7, signed T8).

    Unit atoms (norms are folded into the codes), `s_ni = <u_i, r_n>_m / lam`, `zbar_j = E|z_j|`; i any feature, j a
    live one, NaN for dead j. Dimensionless. Since s is linear in r it equals `<u_i, v_j - u_j>`, v_j of `multipliers`:
    atoms^2 d work after one pass over the samples, dense or sparse codes, and differentiable. Signed codes are allowed.

    >>> import jax.numpy as jnp, jaxdict as jd
    >>> point = jd.Dictionary(jnp.array([[1.0], [-1.0]])), jnp.array([[1.5, 0.0], [0.0, 0.5]])  # T14's antipodal pair
    >>> abs(barycentre(jd.Problem(lam=0.5, offset=False), *point, jnp.array([[2.0], [-1.0]]))).tolist()
    [[0.0, 0.0], [0.0, 0.0]]
    """
    return barycentre_from_sums(problem, dictionary, moment_sums(problem, dictionary, codes, X))


def barycentre_from_sums(problem: Problem, dictionary: Dictionary, sums: MomentSums) -> Float[Array, "atoms atoms"]:
    """`barycentre` from sums that may have been streamed over chunks.

    >>> import jax.numpy as jnp, jaxdict as jd
    >>> problem, atoms = jd.Problem(lam=0.5, offset=False), jd.Dictionary(jnp.array([[1.0]]))
    >>> chunk = lambda x: moment_sums(problem, atoms, jnp.array([[x - 0.5]]), jnp.array([[x]]))
    >>> barycentre_from_sums(problem, atoms, jax.tree.map(jnp.add, chunk(1.0), chunk(2.0))).tolist()
    [[0.0]]
    """
    units = canonical(dictionary, jnp.zeros_like(dictionary.atoms[:, 0]))[0].atoms
    return matmul(units, (multipliers(problem, sums) - units).T)


def barycentre_weights(problem: Problem, dictionary: Dictionary, codes: Codes, X, feature) -> Float[Array, " samples"]:
    """T5's convex combination, written down by the residual: `q_i(n) = w_n (1 - s_ni) / N` (T7). Shape (samples,).

    At a stationary point it is non-negative, carried by the samples with i off, and
    `sum_n q_i(n) z_nj = zbar_j (1 - G_ij)` for live j; with a free offset it sums to one. Codes >= 0: raises ValueError
    for a signed problem.

    >>> import jax.numpy as jnp, jaxdict as jd
    >>> point = jd.Dictionary(jnp.array([[1.0], [-1.0]])), jnp.array([[1.5, 0.0], [0.0, 0.5]])
    >>> barycentre_weights(jd.Problem(lam=0.5, offset=False), *point, jnp.array([[2.0], [-1.0]]), 0).tolist()
    [0.0, 1.0]
    """
    if problem.signed:
        raise ValueError(
            "problem is signed; the residual's slack is a convex weight for codes >= 0 only: use `barycentre`"
        )
    refuse_negative(codes, "the barycentre")
    X = jnp.asarray(X)
    unit, codes = canonical(dictionary, codes)
    mr = metric_of(problem, X) * residual_of(unit, codes, X)
    s = matmul(mr, unit.atoms[feature]) / jnp.asarray(problem.lam, X.dtype)
    return mean_weights(X, problem.weights) * (1 - s)
