"""T4's Hessian with the codes eliminated: products of the Schur complement with changes of the dictionary, sample by sample.

For a change `v = (dD, db)`, with `q = db + z dD`, each sample's codes follow on their support by `dz = A^-1 (dD_S m r - D_S m q)`,
`A = D_S m D_S^T`, and the slopes `-E[z_k m r]`, `-E[m r]` change by `E[z_k (-m dr) - dz_k m r]`, `E[-m dr]`, where `-dr = q + dz D`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdict.numerics import cut_in_blocks, einsum, matmul, sum_over_blocks
from jaxdict.objectives import BLOCK_ENTRIES, residual_of
from jaxdict.problem import SparseCodes, dense_codes


class SupportBlock(NamedTuple):
    """A block of samples: codes on the support, `m r`, weights over N, support and its mask."""

    values: Float[Array, "block slots"]
    pulls: Float[Array, "block d"]
    weights: Float[Array, " block"]
    support: Int[Array, "block slots"]
    inside: Float[Array, "block slots"]

    def codes(self, n_atoms: int) -> Float[Array, "block atoms"]:
        """The block's dense codes."""
        return dense_codes(SparseCodes(self.support, self.values), n_atoms)


def support_blocks(metric, weights, dictionary, codes: SparseCodes, X: Float[Array, "samples d"]) -> SupportBlock:
    """The samples in blocks of bounded memory, with their weights over N; padding rows have weight zero."""
    pulls = metric * residual_of(dictionary, codes, X)
    inside = ((codes.values != 0) & (weights > 0)[:, None]).astype(X.dtype)
    arrays = SupportBlock(codes.values, pulls, weights, codes.indices, inside)
    return cut_in_blocks(arrays, support_block_size(dictionary))


def support_block_size(dictionary) -> int:
    """How many samples a block has."""
    return max(1, BLOCK_ENTRIES // dictionary.atoms.shape[0])


def support_factors(metric, dictionary, blocks, ridge):
    """The inverse Cholesky factor of each sample's support Gram matrix, its diagonal raised by the relative ridge."""
    gram = matmul(dictionary.atoms * metric, dictionary.atoms.T)
    eye = jnp.eye(blocks.support.shape[-1], dtype=gram.dtype)

    def one(block):
        inside, indices = block.inside, block.support
        own = gram[indices[:, :, None], indices[:, None, :]] * inside[:, :, None] * inside[:, None, :]
        # Slots outside the support get the identity.
        lift = jnp.where(inside > 0, ridge * jnp.diagonal(own, axis1=1, axis2=2), 1)
        return inverse_lower(jnp.linalg.cholesky(own + lift[:, :, None] * eye))

    return jax.lax.map(one, blocks)


def inverse_lower(factors: Float[Array, "many n n"]) -> Float[Array, "many n n"]:
    """Inverses of many small lower triangular matrices, row by row (a batched triangular solve takes 100 times as long on a CPU).

    >>> inverse_lower(jnp.array([[[2.0, 0.0], [1.0, 4.0]]])).tolist()
    [[[0.5, 0.0], [-0.125, 0.25]]]
    """
    eye = jnp.eye(factors.shape[-1], dtype=factors.dtype)

    def one_row(i, inverse):
        row = (eye[i] - einsum("ns,nst->nt", factors[:, i], inverse)) / factors[:, i, i][:, None]
        return inverse.at[:, i].set(row)

    return jax.lax.fori_loop(0, factors.shape[-1], one_row, jnp.zeros_like(factors))


def schur_change(metric, dictionary, blocks, factors, v):
    """The codes' best response to a change of the dictionary, by block and slot; the Schur complement's data part.

    One block's dense codes, and no more than one block's part of the sums, are held at a time.
    """
    D, (dD, db), m = dictionary.atoms, v, metric

    def one(args):
        block, factor = args
        codes = block.codes(D.shape[0])
        q = m * (db + matmul(codes, dD))
        pull = matmul(block.pulls, dD.T) - matmul(q, D.T)
        pull = jnp.take_along_axis(pull, block.support, axis=1) * block.inside
        response = einsum("nst,nt->ns", factor, pull)
        response = einsum("nts,nt->ns", factor, response) * block.inside
        dense = dense_codes(SparseCodes(block.support, response), D.shape[0])
        change = q + m * matmul(dense, D)  # this is -m dr
        weights = block.weights[:, None]
        along_atoms = matmul((weights * codes).T, change) - matmul((weights * dense).T, block.pulls)
        return response, (along_atoms, matmul(block.weights, change))

    return sum_over_blocks(one, (blocks, factors))
