"""The polar of the size-penalised gauge (T15): how high one direction stands, the highest found, and a proof that none is higher."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdict.arrays import data_array
from jaxdict.geometry import project_orthant
from jaxdict.meshes import on_any_mesh
from jaxdict.numerics import safe_norm
from jaxdict.validation import check_data
from jaxdict.wide.cells import MAX_CELLS, Highest, highest


class Polar(NamedTuple):
    """The polar `Omega_tau^o(R) = max_{||d|| = 1} kappa(R d)` from below and from above."""

    value: Float[Array, ""]  # the largest found
    upper: Float[Array, ""]  # certified: no unit d is higher
    direction: Float[Array, " d"]  # where it was found
    starts: int  # local searches, from as many directions
    cells: int  # cells of the sphere that were looked at; none where the sphere has too many dimensions


def polar_height(y: Float[Array, "samples atoms"], tau) -> Float[Array, " atoms"]:
    """Each column's `kappa(y) = max_{z >= 0} <y, z> / (||z||_1 + tau ||z||_2)`: least k with `||(y - k)_+|| <= k tau`.

    By Newton steps from zero on `||(y - k)_+|| - k tau`, convex and decreasing in k, so that they climb to the root.

    >>> import jax.numpy as jnp
    >>> round(float(polar_height(jnp.array([[3.0], [-1.0]]), 0.5)[0]), 3)  # 3 - k = k / 2
    2.0
    """
    y = data_array(y, "y")
    return polar_height_of(y, jnp.asarray(tau, y.dtype))


@on_any_mesh
@jax.jit
def polar_height_of(y, tau):
    """`polar_height` of an array and a tau of one dtype."""

    def climb(_, k):
        above = project_orthant(y - k)
        size = safe_norm(above, axis=0)
        slope = jnp.sum(above, axis=0) / jnp.where(size > 0, size, 1) + tau
        return jnp.where(size > 0, k + jnp.maximum(size - k * tau, 0) / jnp.where(slope > 0, slope, 1), k)

    return jax.lax.fori_loop(0, 40, climb, jnp.zeros_like(y[0]))


def polar(
    R: Float[Array, "samples d"], tau, *, tol: float = 1e-5, level: float = 0.0, max_cells: int = MAX_CELLS
) -> Polar:
    """The polar of Omega_tau at R, `max_{||d|| = 1} kappa(R d)`, from below and from above (T15).

    From below by local searches from many directions. From above by branch and bound over the sphere of R's row space: kappa(R d)
    is convex and positively homogeneous in d, so on the cone of unit vectors v_1, .., v_r

        kappa(R d)  <=  max_{a >= 0} sum_i a_i kappa(R v_i) / ||sum_i a_i v_i||,

    the highest point of the linear function through the corners, which exceeds kappa by about the cell's width squared. Cells whose
    bound is above both `level` and `1 + tol` times the largest value found are halved along their longest edge. At most
    `max_cells` are looked at: enough for r <= 3, mostly for 4 and small data; `upper` is certified whenever it stops, and where no
    sphere is searched it is `min(kappa((||r_n||)_n), ||R||_2 / (1 + tau))`.

    A program of numpy's for the host, in float64. R is (samples, d). Raises ValueError for a negative `tau`, `level` or `max_cells`
    and for a `tol` below 1e-7, which rounding would blur.

    >>> import numpy as np
    >>> found = polar(np.array([[3.0, 0.0], [0.0, 4.0]]), 1.0)
    >>> round(float(found.value), 3), float(found.upper) < 2.0001
    (2.0, True)
    """
    R = check_data(R, name="R", wide="allow")
    if not (float(tau) >= 0 and level >= 0 and max_cells >= 0):
        raise ValueError(f"tau={float(tau):g}, level={level:g}, max_cells={max_cells}: give none below zero")
    if not tol >= 1e-7:
        raise ValueError(f"tol={tol:g} is below what rounding shows; give 1e-7 or more")
    found = highest(np.asarray(R, np.float64), float(tau), tol=tol, level=float(level), max_cells=max_cells)
    return polar_like(R, found)


def polar_like(R, found: Highest) -> Polar:
    """The record in the dtype of R, the certified bound rounded up."""
    upper = np.nextafter(np.asarray(found.upper, R.dtype), np.asarray(np.inf, R.dtype))
    value, direction = (jnp.asarray(leaf, R.dtype) for leaf in (found.value, found.direction))
    return Polar(value, jnp.asarray(upper, R.dtype), direction, found.starts, found.cells)
