"""Alternating minimisation: exact codes, then each atom in turn, then the offset. Fast at first, slow to the end."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdict.numerics import matmul, safe_norm, sum_in_blocks
from jaxdict.objectives import BLOCK_ENTRIES
from jaxdict.problem import Codes, Dictionary, Problem, SparseCodes, dense_codes, metric_of, sample_weights
from jaxdict.solvers.reduced import Iterate, next_point_and_codes


class CodedIterate(eqx.Module):
    """A point with its codes at hand, (samples, atoms)."""

    point: Iterate
    codes: Codes


class Alternating(eqx.Module):
    """Exact codes, then block coordinate descent over atoms: `d_k <- normalise(d_k + (B_k - A_k D) / A_kk)`.

    `A = E[z z^T]`, `B = E[z^T m (x - b)]`: for fixed codes the objective is a quadratic in each atom, minimised exactly where the
    metric is one, majorised by its largest entry otherwise; then `b <- b + E[r]`. Dead atoms stay where they are. Every step
    descends. Works under jit and vmap.

    >>> import jax, jax.numpy as jnp, jaxdict as jd
    >>> solver = jd.solvers.Alternating(sweeps=2)
    >>> solver.sweeps
    2
    """

    sweeps: int = eqx.field(static=True, default=1)
    slots: int | None = eqx.field(static=True, default=None)

    def init_at(self, problem: Problem, X: Float[Array, "samples d"], point: Iterate, codes) -> CodedIterate:
        return CodedIterate(point, codes)

    def step(self, problem: Problem, X: Float[Array, "samples d"], state: CodedIterate) -> CodedIterate:
        dictionary, _ = self.propose(problem, X, state)
        sparse = isinstance(state.codes, SparseCodes)
        return CodedIterate(*next_point_and_codes(problem, X, dictionary, state.point.slots, sparse=sparse))

    def propose(self, problem: Problem, X: Float[Array, "samples d"], state: CodedIterate) -> tuple[Dictionary, tuple]:
        return update_dictionary(problem, X, state.point.dictionary, state.codes, self.sweeps), ()

    def take(self, problem: Problem, X: Float[Array, "samples d"], state: CodedIterate, about, trial: Iterate, codes):
        return CodedIterate(trial, codes)

    def progress_of(self, state: CodedIterate):
        point = state.point
        return point.objective, point.stationarity, ~jnp.isfinite(point.objective)

    def point(
        self, problem: Problem, X: Float[Array, "samples d"], state: CodedIterate, *, sparse: bool = False
    ) -> tuple[Iterate, Codes]:
        return state.point, state.codes


def update_dictionary(
    problem: Problem, X: Float[Array, "samples d"], dictionary: Dictionary, Z, sweeps: int = 1
) -> Dictionary:
    """One or more sweeps of exact minimisation over each atom for fixed codes, and the offset where it is free."""
    w, m = sample_weights(problem, X) / X.shape[0], metric_of(problem, X)
    A, B, mean_codes = _sums_of_codes(Z, X, w, dictionary.atoms.shape[0])
    steepest = jnp.max(m)

    def one_atom(k, carry):
        atoms, offset = carry
        pull = m * (B[k] - mean_codes[k] * offset - matmul(A[k], atoms))
        moved = atoms[k] + pull / jnp.where(A[k, k] > 0, steepest * A[k, k], 1)
        length = safe_norm(moved)
        usable = (A[k, k] > 0) & (length > 0)
        return atoms.at[k].set(jnp.where(usable, moved / jnp.where(length > 0, length, 1), atoms[k])), offset

    def one_sweep(_, carry):
        atoms, offset = jax.lax.fori_loop(0, A.shape[0], one_atom, carry)
        if problem.offset:
            offset = matmul(w, X) - matmul(mean_codes, atoms)
        return atoms, offset

    return Dictionary(*jax.lax.fori_loop(0, sweeps, one_sweep, (dictionary.atoms, dictionary.offset)))


def _sums_of_codes(codes: Codes, X: Float[Array, "samples d"], w, n_atoms: int):
    """`E[z z^T]`, `E[z^T x]` and `E[z]`; sparse codes are taken in blocks of samples."""

    def one(block):
        codes, X, w = block
        Z = dense_codes(codes, n_atoms)
        weighted = w[:, None] * Z
        return matmul(weighted.T, Z), matmul(weighted.T, X), matmul(w, Z)

    if not isinstance(codes, SparseCodes):
        return one((codes, X, w))
    return sum_in_blocks(one, (codes, X, w), max(1, BLOCK_ENTRIES // n_atoms))
