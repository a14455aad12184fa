"""Unit atoms pushed towards being orthogonal, by Adam, as SynthSAEBench has it."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxdict.arrays import data_array
from jaxdict.meshes import on_any_mesh
from jaxdict.numerics import matmul, unit_rows


@dataclass(frozen=True)
class Orthogonal:
    """How atoms are spread: so many steps of Adam at this rate."""

    steps: int = 200
    rate: float = 0.01


@jax.jit
def crowding(atoms: Float[Array, "atoms d"]) -> Float[Array, ""]:
    """`sum_{i != j} (d_i . d_j)^2 + n sum_i (||d_i||^2 - 1)^2`, n the number of atoms.

    The first sum is `||D^T D||^2 - sum_i ||d_i||^4`: of more atoms than dimensions no (atoms, atoms) array is formed.

    >>> round(float(crowding(jnp.array([[1.0, 0.0], [0.6, 0.8]]))), 4), float(crowding(2 * jnp.eye(2)))
    (0.72, 36.0)
    """
    n, d = atoms.shape
    squares = jnp.sum(atoms * atoms, axis=1)
    gram = matmul(atoms.T, atoms) if n > d else matmul(atoms, atoms.T)
    return jnp.sum(gram * gram) - jnp.sum(squares**2) + n * jnp.sum((squares - 1) ** 2)


def orthogonalise(atoms: Float[Array, "atoms d"], steps: int = 200, rate: float = 0.01) -> Float[Array, "atoms d"]:
    """Unit atoms after `steps` of Adam down `crowding`, from the atoms' directions.

    A step costs `4 atoms d min(atoms, d)` products. For the lowest largest cosine see `spread_atoms`.

    >>> from jaxdict.synthetic_atoms import random_atoms
    >>> atoms = random_atoms(jax.random.key(0), 6, 4)
    >>> bool(crowding(orthogonalise(atoms)) < crowding(atoms))
    True
    """
    return _orthogonalise(data_array(atoms, "atoms"), rate, steps)


@on_any_mesh
@partial(jax.jit, static_argnames="steps")
def _orthogonalise(atoms, rate, steps):
    descent = optax.adam(rate)

    def step(carry, _) -> tuple[tuple[Array, optax.OptState], None]:
        atoms, state = carry
        updates, state = descent.update(jax.grad(crowding)(atoms), state)
        return (jnp.asarray(optax.apply_updates(atoms, updates)), state), None

    start = unit_rows(atoms)
    return unit_rows(jax.lax.scan(step, (start, descent.init(start)), None, length=steps)[0][0])
