"""What a fit returns: the point, its certificate, and how the run ended."""

from functools import partial

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdict.certificates.certificate import Certificate
from jaxdict.compiling import compiled_in_a_hurry
from jaxdict.meshes import on_any_mesh
from jaxdict.numerics import matmul
from jaxdict.objectives import residual
from jaxdict.problem import Codes, Dictionary, Problem, SparseCodes, sample_weights
from jaxdict.solvers.loop import History
from jaxdict.solvers.rounds import Ended

(
    CONVERGED,
    STEP_LIMIT,
    ROUNDING,
    NOT_FINITE,
    DEAD_ATOMS,
    ALL_ZERO,
    SADDLE,
    NOT_STRICT,
    INTERRUPTED,
    OUT_OF_ROUNDS,
) = range(10)
MESSAGES = (
    "converged: no first-order descent direction beyond tol exists at this point",
    "step limit: the point is not stationary within tol; raise max_steps or loosen tol",
    "stalled: the solver can make no more progress in this precision; loosen tol or use float64",
    "non-finite values met: look for NaN or inf in the data, the start or lam",
    "stationary within tol at the step limit, with dead atoms that a re-birth would still help; raise max_steps, or lower n_atoms",
    "all codes are zero: lam is at or above lam_max, where that is the global optimum; choose lam below",
    "stationary, but a saddle: the curvature has a negative eigenvalue, and no step along it lowered the objective or none was left",
    "stationary, but not a strict minimum: the smallest curvature is zero within rounding, so the optimum has no derivative",
    "interrupted: the point reached is returned as it is",
    "rounds used up: after 12 rounds atoms that died could still be given a better life, or a saddle be left; lower n_atoms, "
    "or fit again from this dictionary",
)


class Solution(eqx.Module):
    """A fitted dictionary with its codes, the certificate of the point and how the run ended."""

    dictionary: Dictionary
    codes: Codes
    objective: Float[Array, ""]  # F, in the data's squared units
    certificate: Certificate
    status: Int[Array, ""]
    steps: Int[Array, ""]
    history: History
    usage: Float[Array, " atoms"]  # share of the samples, by weight, on which each atom is on: 0 to 1
    explained_variance: Float[Array, ""]  # 1 - E||r||^2 / E||x - E x||^2, by weight, Euclidean whatever the metric

    @property
    def l0(self) -> Float[Array, ""]:
        """Atoms that are on, a sample, on (weighted) average: the sum of `usage`."""
        return jnp.sum(self.usage, axis=-1)

    def message(self) -> str:
        """The status as a sentence, with the certificate's worst stationarity."""
        worst = float(self.certificate.stationarity.worst)
        return f"{MESSAGES[int(self.status)]} (worst stationarity {worst:.1e} after {int(self.steps)} steps)"


def conclude(
    certificate: Certificate, dictionary: Dictionary, codes, task: tuple[Problem, Array], ended: Ended, tol, max_steps
) -> Solution:
    """The solution: (dictionary, codes) in the data's units as certified, the rest from the rounds, in theirs (`task`)."""
    # A history is as long as the run: no program may depend on it.
    assert ended.history is not None
    usage, explained, status = _read_off(certificate, *task, ended._replace(history=None), tol, max_steps)
    return Solution(
        dictionary,
        codes,
        certificate.objective,
        certificate,
        status,
        ended.steps,
        ended.history,
        usage,
        explained,
    )


@on_any_mesh
@partial(compiled_in_a_hurry, light=lambda: True)
def _read_off(certificate: Certificate, problem: Problem, X: Float[Array, "samples d"], ended: Ended, tol, max_steps):
    return *_described(problem, X, ended), _status(certificate, ended, tol, max_steps)


def _described(problem: Problem, X: Float[Array, "samples d"], ended: Ended):
    w = sample_weights(problem, X) / X.shape[0]
    left = residual(ended.iterate.dictionary, ended.codes, X)
    centred = X - matmul(w, X)[None]
    lost, variance = (matmul(w, jnp.sum(rows * rows, axis=1)) for rows in (left, centred))
    explained = jnp.where(variance > 0, 1 - lost / jnp.where(variance > 0, variance, 1), 0)
    return _usage(ended.codes, w, ended.iterate.dictionary.atoms.shape[0]), jnp.where(
        jnp.isnan(variance), variance, explained
    )


def _usage(codes: Codes, w, n_atoms: int) -> Float[Array, " atoms"]:
    """The weight of samples on which each atom is on."""
    if not isinstance(codes, SparseCodes):
        return matmul(w, (codes != 0).astype(w.dtype))
    return jnp.zeros_like(w[:1], shape=n_atoms).at[codes.indices].add(jnp.where(codes.values != 0, w[:, None], 0))


def _status(certificate: Certificate, ended: Ended, tol, max_steps) -> Int[Array, ""]:
    """How the run ended, told by the certificate of the point."""
    worst = certificate.stationarity.worst
    values = ended.codes.values if isinstance(ended.codes, SparseCodes) else ended.codes
    out, unused = ended.steps >= max_steps, ended.left
    saddle = jnp.zeros_like(unused)
    if certificate.curvature is not None:
        saddle = certificate.curvature.eigenvalue < -(float(jnp.finfo(worst.dtype).eps) ** 0.5)
    reached = jnp.where(unused, jnp.where(out, DEAD_ATOMS, OUT_OF_ROUNDS), jnp.where(saddle, SADDLE, CONVERGED))
    short = jnp.where(out, STEP_LIMIT, jnp.where(unused, OUT_OF_ROUNDS, ROUNDING))
    status = jnp.where(worst <= tol, reached, short)
    status = jnp.where(jnp.all(values == 0) & ~unused, ALL_ZERO, status)
    status = jnp.where(ended.interrupted, INTERRUPTED, status)
    # Of the scaled problem: the data's own units may not be able to show the objective.
    return jnp.where(jnp.isfinite(ended.iterate.objective) & jnp.isfinite(worst), status, NOT_FINITE)
