"""Alternating minimisation: exact codes, then each atom in turn, then the offset. Fast at first, slow to the end."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdict.numerics import matmul, safe_norm
from jaxdict.problem import Dictionary, Problem, metric_of, sample_weights
from jaxdict.solvers.reduced import Iterate, next_point_and_codes


class CodedIterate(eqx.Module):
    """A point with its codes at hand, (samples, atoms)."""

    point: Iterate
    codes: Float[Array, "samples atoms"]


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
        dictionary = update_dictionary(problem, X, state.point.dictionary, state.codes, self.sweeps)
        return CodedIterate(*next_point_and_codes(problem, X, dictionary, state.point.slots))

    def progress_of(self, state: CodedIterate):
        point = state.point
        return point.objective, point.stationarity, ~jnp.isfinite(point.objective)

    def point(self, problem: Problem, X: Float[Array, "samples d"], state: CodedIterate) -> tuple[Iterate, Array]:
        return state.point, state.codes


def update_dictionary(
    problem: Problem, X: Float[Array, "samples d"], dictionary: Dictionary, Z, sweeps: int = 1
) -> Dictionary:
    """One or more sweeps of exact minimisation over each atom for fixed codes, and the offset where it is free."""
    w, m = sample_weights(problem, X) / X.shape[0], metric_of(problem, X)
    weighted = w[:, None] * Z
    A = matmul(weighted.T, Z)
    B = matmul(weighted.T, X)
    mean_codes = matmul(w, Z)
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
