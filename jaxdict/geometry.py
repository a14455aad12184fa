"""The sets the problem lives on, for one atom at a time (`jax.vmap` adds the rest): unit sphere, unit ball, orthant.

`project_*` is the nearest point of the set; `*_tangent` projects a vector on the tangent space or cone at a point.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdict.numerics import safe_norm


def sphere_tolerance(dtype) -> float:
    """How close to one a norm counts as one: the rounding of atoms normalised in float32, even where the data are float64."""
    return max(1e-6, float(jnp.finfo(dtype).eps ** 0.5))


def project_ball(atom: Float[Array, " d"]) -> Float[Array, " d"]:
    """Nearest point of the unit ball, `d / max(1, ||d||)`.

    >>> import jax.numpy as jnp
    >>> project_ball(jnp.array([0.0, 4.0])).tolist(), project_ball(jnp.array([0.5, 0.25])).tolist()
    ([0.0, 1.0], [0.5, 0.25])
    """
    return atom / jnp.maximum(1, safe_norm(atom))


def project_orthant(codes: Float[Array, "..."]) -> Float[Array, "..."]:
    """Nearest non-negative codes, `max(z, 0)`."""
    return jnp.maximum(codes, 0)


def soft_threshold(codes: Float[Array, "..."], width: Float[Array, "..."]) -> Float[Array, "..."]:
    """Proximal map of `width |z|`: the signed variant's shrinkage, `sign(z) max(|z| - width, 0)`."""
    return jnp.sign(codes) * jnp.maximum(jnp.abs(codes) - width, 0)


def sphere_tangent(atom: Float[Array, " d"], vector: Float[Array, " d"]) -> Float[Array, " d"]:
    """The part of a vector tangent to the unit sphere at a unit atom, `v - <d, v> d`."""
    return vector - jnp.dot(atom, vector, precision=jax.lax.Precision.HIGHEST) * atom


def ball_tangent(atom: Float[Array, " d"], vector: Float[Array, " d"]) -> Float[Array, " d"]:
    """Projection on the tangent cone of the unit ball: on the sphere the outward part goes, inside everything stays.

    >>> import jax.numpy as jnp
    >>> ball_tangent(jnp.array([1.0, 0.0]), jnp.array([2.0, 3.0])).tolist()
    [0.0, 3.0]
    """
    norm = safe_norm(atom)
    unit = atom / jnp.where(norm > 0, norm, 1)
    outward = jnp.maximum(jnp.dot(unit, vector, precision=jax.lax.Precision.HIGHEST), 0)
    on_sphere = norm >= 1 - sphere_tolerance(atom.dtype)
    return jnp.where(on_sphere, vector - outward * unit, vector)


def orthant_tangent(codes: Float[Array, "..."], vector: Float[Array, "..."]) -> Float[Array, "..."]:
    """Projection on the tangent cone of the orthant: where `z = 0` only increases stay."""
    return jnp.where(codes > 0, vector, jnp.maximum(vector, 0))
