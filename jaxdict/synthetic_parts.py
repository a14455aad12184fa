"""What planted data are, and the putting together of them: activations where features are on, atoms, noise."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxdict.arrays import is_concrete
from jaxdict.numerics import matmul
from jaxdict.problem import Dictionary, offset_of
from jaxdict.synthetic_atoms import random_atoms

MAGNITUDES = ("uniform", "exponential", "lognormal", "constant")


class Planted(eqx.Module):
    """Planted data: a pytree, `says` static."""

    X: Float[Array, "samples d"]
    codes: Float[Array, "samples atoms"]
    dictionary: Dictionary
    parents: Int[Array, " atoms"]  # each feature's parent; -1 for a feature without
    groups: Int[Array, " atoms"]  # the group that it belongs to; -1 for none
    says: str = eqx.field(static=True)  # what theory.md says of it, by number

    def pairs(self) -> list[tuple[int, int]]:
        """The planted (parent, child) pairs. Host side: not for jit."""
        return [(int(parent), child) for child, parent in enumerate(np.asarray(self.parents)) if parent >= 0]


def plant(key, on, d, magnitudes, scale, noise, offset, says, parents=None, groups=None) -> Planted:
    """Codes where `on`, and random atoms."""
    n_atoms = on.shape[1]
    atoms = random_atoms(jax.random.fold_in(key, 0), n_atoms, n_atoms if d is None else d)
    return assemble(key, draw_sizes(key, on, magnitudes, scale), atoms, noise, offset, says, parents, groups)


def draw_sizes(key, on, magnitudes, scale):
    """Activations of mean `scale` where on, else zero."""
    if magnitudes not in MAGNITUDES:
        raise ValueError(f"magnitudes={magnitudes!r} is unknown; use one of {MAGNITUDES}")
    key = jax.random.fold_in(key, 1)
    sizes = {
        "uniform": lambda: jax.random.uniform(key, on.shape, minval=0.5, maxval=1.5),
        "exponential": lambda: jax.random.exponential(key, on.shape),
        "lognormal": lambda: jnp.exp(0.5 * jax.random.normal(key, on.shape) - 0.125),
        "constant": lambda: jnp.ones(on.shape),
    }[magnitudes]()
    return jnp.where(on, scale * sizes, 0)


def assemble(key, codes, atoms, noise, offset, says, parents=None, groups=None) -> Planted:
    b = jnp.zeros_like(atoms[0]) if offset is None else offset_of(Dictionary(atoms, offset).like(atoms))
    noise = noise * jax.random.normal(jax.random.fold_in(key, 2), (codes.shape[0], atoms.shape[1]))
    none = [-1] * codes.shape[1]
    parents, groups = (jnp.asarray(none if a is None else list(a), int) for a in (parents, groups))
    return Planted(b + matmul(codes, atoms) + noise, codes, Dictionary(atoms, b), parents, groups, says)


def refuse_probability(value, name):
    if is_concrete(value) and not np.all((np.asarray(value) >= 0) & (np.asarray(value) <= 1)):
        raise ValueError(f"{name} is {np.asarray(value)}, not a probability; keep it within [0, 1]")
