"""How monosemantic latents are, and how near to the truth (theory.md section 6)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdict.arrays import data_array
from jaxdict.numerics import matmul, unit_rows
from jaxdict.points import weights_like
from jaxdict.recovery.autoencoders import assignment


class Agreement(NamedTuple):
    """Whether restarts reach one solution, up to the order of the latents."""

    share: Float[Array, ""]  # of restarts that reach the best one's solution, itself included
    same: Bool[Array, " runs"]
    distance: Float[Array, " runs"]  # of each restart's rows to the best one's, relative
    best: Int[Array, ""]

    def message(self) -> str:
        """The finding in a sentence."""
        runs = self.same.shape[0]
        count = int(self.same.sum())
        return f"{count} of {runs} restarts reach the best solution found; the farthest is {float(self.distance.max()):.2g} away."


def average_active(latents: Float[Array, "samples latents"], weights=None) -> Float[Array, ""]:
    """How many latents are on in a sample, on average (L0). `weights` (samples,) of mean one.

    >>> import jax.numpy as jnp
    >>> float(average_active(jnp.array([[1.0, 2.0], [0.0, 3.0]])))
    1.5
    """
    latents = data_array(latents, "latents")
    weights = weights_like(weights, latents.shape[0], latents.dtype)
    on = jnp.sum(latents > 0, axis=1, dtype=latents.dtype)
    return jnp.mean(on if weights is None else weights * on)


def alignment(rows: Float[Array, "latents d"], directions: Float[Array, "features d"]) -> Float[Array, " features"]:
    """The cosine of each true direction with the row matched to it, one to one, at the largest total; zero for none.

    One for every feature iff the rows are the true directions up to order and scale.

    >>> import jax.numpy as jnp
    >>> alignment(jnp.array([[0.0, 2.0], [3.0, 0.0]]), jnp.eye(2)).tolist()
    [1.0, 1.0]
    """
    return _aligned(jnp.asarray(rows), jnp.asarray(directions))


@jax.jit
def _aligned(rows, directions):
    cosines = matmul(unit_rows(directions), unit_rows(rows).T)
    n, n_m = cosines.shape
    size = max(n, n_m)
    cosines = jnp.pad(cosines, ((0, size - n), (0, size - n_m)))
    return jnp.take_along_axis(cosines, assignment(-cosines)[:, None], axis=1)[:n, 0]


def row_distance(rows: Float[Array, "latents d"], others: Float[Array, "latents_ d"]) -> Float[Array, ""]:
    """`min_P ||W - P V|| / ||V||` over permutations P, the shorter filled up with zero rows.

    >>> import jax.numpy as jnp
    >>> float(row_distance(jnp.eye(2)[::-1], jnp.eye(2)))
    0.0
    """
    return _distance(jnp.asarray(rows), jnp.asarray(others))


@jax.jit
def _distance(rows, others):
    size = max(rows.shape[0], others.shape[0])
    W, V = (jnp.pad(array, ((0, size - array.shape[0]), (0, 0))) for array in (rows, others))
    cost = jnp.sum((W[:, None] - V[None]) ** 2, axis=2)
    matched = assignment(cost)
    return jnp.sqrt(jnp.sum((W - V[matched]) ** 2) / jnp.sum(V**2))


def agreement(rows: Float[Array, "runs latents d"], losses: Float[Array, " runs"], *, tol: float = 1e-2) -> Agreement:
    """Uniqueness by restarts: the share whose rows equal, up to order, those of the restart of least loss.

    Within `tol`, relative (`row_distance`). With several solutions of equal loss the share is below one.

    >>> import jax.numpy as jnp
    >>> rows = jnp.stack([jnp.eye(2), jnp.eye(2)[::-1], 2 * jnp.eye(2)])
    >>> round(float(agreement(rows, jnp.array([0.0, 0.0, 1.0])).share), 3)
    0.667
    """
    best = jnp.argmin(jnp.where(jnp.isnan(losses), jnp.inf, losses))
    distance = jax.vmap(_distance, in_axes=(0, None))(rows, rows[best])
    same = distance <= tol
    return Agreement(jnp.mean(same, dtype=rows.dtype), same, distance, best)
