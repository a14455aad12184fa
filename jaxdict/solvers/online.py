"""Online: a preconditioned stochastic gradient of the reduced problem, exact codes of each batch, iterates averaged."""

from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from jaxdict.objectives import Moments
from jaxdict.problem import Dictionary, Problem

# Smallest and largest batch where none is given: as many rows as atoms between these.
LEAST_BATCH, MOST_BATCH = 256, 4096
# Rows that the running curvature remembers, in batches.
MEMORY = 50
# Curvature of rarely used atoms counts as this share of the mean at least, so that one row does not turn them round.
LEAST_CURVATURE = 1e-2


class OnlineState(NamedTuple):
    """Where the method stands, as NumPy arrays: the moving point, its average (which is what it is worth), and what atoms have seen."""

    atoms: Float[np.ndarray, "atoms d"]
    offset: Float[np.ndarray, " d"]
    mean_atoms: Float[np.ndarray, "atoms d"]
    mean_offset: Float[np.ndarray, " d"]
    curvature: Float[np.ndarray, " atoms"]  # running E[z_k^2] max m + lam zbar_k, the Hessian's diagonal
    unused: Int[np.ndarray, " atoms"]  # rows since the atom was last used
    step: Int[np.ndarray, ""]

    def dictionary(self) -> Dictionary:
        """The averaged point, unit atoms."""
        return _dictionary(_units(self.mean_atoms), self.mean_offset)

    def moving(self) -> Dictionary:
        """The moving point, at which the next batch is coded."""
        return _dictionary(self.atoms, self.offset)


class Online(eqx.Module):
    """The stochastic stage of `jaxdict.fit_stream`: steps on `phi(D, b) = min_Z F` from the exact codes of one batch after another.

    Step t moves each atom on its sphere by `t^-decay E[z_k P_k(m r)] / (E[z_k^2] + lam zbar_k)`, the slope (T3) over the
    Hessian's diagonal, and the offset by `t^-decay E[m r]`; the result is the average of the points, those of the last steps
    weighing most (`averaging` = 0: all alike). It needs no (atoms, atoms) array, and was ahead of Mairal's surrogate on language model
    activations at K = 512 and K = 2,048, at equal seconds, by 1 to 2% of the objective on held-out rows.

    - `batch_size`: rows a step; by default as many as atoms, from 256 to 4,096.
    - `epochs`: most passes over the rows; the stage ends earlier where its gain on held-out rows is below its standard error.
    - `code_tol`: relative duality gap of a batch's codes.

    >>> import jaxdict as jd
    >>> jd.solvers.Online(batch_size=512).batch_size
    512
    """

    batch_size: int | None = eqx.field(static=True, default=None)
    epochs: float = eqx.field(static=True, default=10)
    decay: float = eqx.field(static=True, default=0.5)
    averaging: float = eqx.field(static=True, default=8)
    code_tol: float = eqx.field(static=True, default=1e-4)

    def __check_init__(self):
        good = {
            "batch_size": self.batch_size is None or (self.batch_size == int(self.batch_size) and self.batch_size >= 1),
            "epochs": 0 <= self.epochs < float("inf"),
            "decay": 0 <= self.decay <= 1,
            "averaging": self.averaging >= 0,
            "code_tol": self.code_tol > 0,
        }
        wanted = {
            "batch_size": "a positive integer or None",
            "epochs": "a finite number from 0",
            "decay": "a number from 0 to 1",
            "averaging": "a number from 0",
            "code_tol": "a positive number",
        }
        for name, fine in good.items():
            if not fine:
                raise ValueError(f"{name}={getattr(self, name)!r} makes no sense; give {wanted[name]}")

    def rows_a_step(self, n_atoms: int) -> int:
        """Rows of a batch for a width."""
        return int(self.batch_size or min(max(n_atoms, LEAST_BATCH), MOST_BATCH))

    def init(self, dictionary: Dictionary) -> OnlineState:
        """The state at a dictionary of unit atoms."""
        atoms, offset = np.array(dictionary.atoms), np.array(dictionary.offset)
        nothing = np.zeros(len(atoms), atoms.dtype)
        return OnlineState(
            atoms, offset, atoms, offset, nothing, np.zeros(len(atoms), np.int64), np.zeros((), np.int64)
        )

    def step(self, problem: Problem, state: OnlineState, moments: Moments, rows: int) -> OnlineState:
        """One step from the moments of a batch at the moving point."""
        lam, t, dtype = float(problem.lam), int(state.step) + 1, state.atoms.dtype
        top = 1.0 if problem.metric is None else float(np.max(np.asarray(problem.metric)))
        codes, squares, slopes = (
            np.asarray(part) for part in (moments.mean_codes, moments.mean_squares, moments.cross)
        )
        bend = top * squares + lam * codes
        curvature = state.curvature + max(1 / MEMORY, 1 / t) * (bend - state.curvature)
        floor = max(LEAST_CURVATURE * float(np.mean(curvature)), np.finfo(dtype).tiny)
        tangent = slopes - np.sum(slopes * state.atoms, axis=1, keepdims=True) * state.atoms
        size = t**-self.decay
        atoms = _units(state.atoms + size * tangent / np.maximum(curvature, floor)[:, None])
        pull = np.asarray(moments.mean_residual) / top if problem.offset else 0.0
        offset = state.offset + size * pull
        share = min(1.0, (1 + self.averaging) / (t + self.averaging))
        return OnlineState(
            atoms.astype(dtype),
            offset.astype(dtype),
            (state.mean_atoms + share * (atoms - state.mean_atoms)).astype(dtype),
            (state.mean_offset + share * (offset - state.mean_offset)).astype(dtype),
            curvature.astype(dtype),
            np.where(codes > 0, 0, state.unused + rows),
            np.asarray(t),
        )

    def reborn(self, state: OnlineState, atoms: Float[np.ndarray, "atoms d"], born) -> OnlineState:
        """The state with new atoms in the places `born`, as if they had been used of late."""
        moving, mean, curvature, unused = (
            np.array(part) for part in (state[0], state[2], state.curvature, state.unused)
        )
        moving[born] = mean[born] = atoms[born]
        curvature[born] = np.mean(curvature)
        unused[born] = 0
        return state._replace(atoms=moving, mean_atoms=mean, curvature=curvature, unused=unused)


def _dictionary(atoms, offset) -> Dictionary:
    return Dictionary(jnp.asarray(atoms), jnp.asarray(offset))


def _units(rows):
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norms > 0, norms, 1)
