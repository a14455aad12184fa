"""Unit atoms to plant: at random, or spread apart; and how close the closest two are."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdict.arrays import data_array
from jaxdict.numerics import matmul, unit_rows
from jaxdict.problem import Dictionary


def random_atoms(key, n_atoms: int, d: int) -> Float[Array, "atoms d"]:
    """Random unit atoms, orthonormal where `d >= n_atoms`.

    >>> import jax
    >>> random_atoms(jax.random.key(0), 3, 2).shape
    (3, 2)
    """
    gaussian = jax.random.normal(key, (n_atoms, d))
    return jnp.linalg.qr(gaussian.T)[0].T if d >= n_atoms else unit_rows(gaussian)


def spread_atoms(atoms: Float[Array, "atoms d"], steps: int = 200) -> Float[Array, "atoms d"]:
    """Unit atoms of lower coherence: each is pushed off those near its line, harder as time goes on; the best met is returned.

    Steps down the potential `sum_{i<j} |G_ij|^p` on the spheres, p growing from 4 to 20. Welch's bound
    `sqrt((K - d) / (d (K - 1)))` is what no K unit vectors go below.

    >>> import jax
    >>> atoms = random_atoms(jax.random.key(0), 8, 4)
    >>> bool(coherence(Dictionary(spread_atoms(atoms))) < coherence(Dictionary(atoms)))
    True
    """
    return _spread(data_array(atoms, "atoms"), steps)


@partial(jax.jit, static_argnames="steps")
def _spread(atoms, steps):
    apart = 1 - jnp.eye(atoms.shape[0], dtype=atoms.dtype)

    def step(carry, time):
        atoms, best = carry
        G = matmul(atoms, atoms.T) * apart
        top = jnp.max(jnp.abs(G))
        push = matmul(jnp.sign(G) * (jnp.abs(G) / top) ** (4 + 16 * time), atoms)
        atoms = unit_rows(atoms - 0.05 * (1 - 0.9 * time) * push)
        better = coherence(Dictionary(atoms)) < coherence(Dictionary(best))
        return (atoms, jnp.where(better, atoms, best)), None

    times = jnp.linspace(0, 1, steps, dtype=atoms.dtype)
    return jax.lax.scan(step, (atoms, atoms), times)[0][1]


def coherence(dictionary: Dictionary) -> Float[Array, ""]:
    """The largest `|cosine|` of two atoms.

    >>> import jax.numpy as jnp
    >>> float(coherence(Dictionary(jnp.eye(3))))
    0.0
    """
    units = unit_rows(dictionary.alone().atoms)
    return jnp.max(jnp.abs(matmul(units, units.T)) * (1 - jnp.eye(units.shape[0], dtype=units.dtype)))
