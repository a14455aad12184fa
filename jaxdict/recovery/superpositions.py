"""Superposition maps: which direction of a small space stands for which feature (theory.md section 6).

A map is `W_p^T`, shape (features, d), one feature a row, as atoms are elsewhere; the polysemantic input is `x_p = x W_p^T`.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from jaxtyping import Array, Float

from jaxdict.numerics import matmul, unit_rows
from jaxdict.problem import Dictionary
from jaxdict.recovery.ground_truth import sparse_features
from jaxdict.synthetic import coherence, random_atoms, spread_atoms


class LearnedSuperposition(NamedTuple):
    """What the toy model learns: `x' = relu(x W_p^T W_p + b)`."""

    directions: Float[Array, "features d"]
    bias: Float[Array, " features"]
    loss: Float[Array, ""]  # E sum_i importance_i (x_i - x'_i)^2


def superpose(x: Float[Array, "samples features"], directions) -> Float[Array, "samples d"]:
    """The polysemantic input `x_p = x W_p^T`.

    >>> import jax.numpy as jnp
    >>> superpose(jnp.array([[3.0, 1.0]]), digon_map(1)).tolist()
    [[2.0]]
    """
    return matmul(x, directions)


def identity_map(n: int) -> Float[Array, "features d"]:
    """A dimension of its own for each feature."""
    return jnp.eye(n)


def digon_map(axes: int) -> Float[Array, "features d"]:
    """Antipodal pairs along orthonormal axes: features 2i and 2i + 1 are `e_i` and `-e_i`; shape (2 axes, axes).

    >>> digon_map(2).astype(int).tolist()
    [[1, 0], [-1, 0], [0, 1], [0, -1]]
    """
    return jnp.repeat(jnp.eye(axes), 2, axis=0) * jnp.tile(jnp.array([1.0, -1.0]), axes)[:, None]


def polygon_map(n: int) -> Float[Array, "features 2"]:
    """n unit directions at equal angles in the plane, the first along the first axis."""
    angles = 2 * jnp.pi / n * jnp.arange(n, dtype=float)
    return jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=1)


def tetrahedron_map() -> Float[Array, "4 3"]:
    """Four unit directions in space, every two at cosine -1/3."""
    return jnp.array([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) / 3**0.5


def block_map(*blocks: Float[Array, "features d"]) -> Float[Array, "features d"]:
    """Several maps side by side, each in dimensions of its own.

    >>> block_map(identity_map(1), polygon_map(3)).shape
    (4, 3)
    """
    return jax.scipy.linalg.block_diag(*blocks)


def random_map(key, n: int, d: int, *, largest_cosine=None) -> Float[Array, "features d"]:
    """n random unit directions in d dimensions; with `largest_cosine`, of that coherence (largest `|cosine|` of two).

    The path leads from directions spread apart, over random ones, to random ones two of which agree; coherence is
    continuous along it, so bisection meets every value from the spread ones' up to one, to rounding.
    Random directions are orthonormal where d >= n. The result is a constant of `largest_cosine` for derivatives.

    Raises ValueError if `largest_cosine` is below what spreading reaches (Welch's bound is a floor) or above one.

    >>> import jax
    >>> from jaxdict import Dictionary
    >>> from jaxdict.synthetic import coherence
    >>> round(float(coherence(Dictionary(random_map(jax.random.key(0), 6, 4, largest_cosine=0.5)))), 5)
    0.5
    """
    atoms = random_atoms(key, n, d)
    if largest_cosine is None:
        return atoms
    spread, agreeing = spread_atoms(atoms), atoms.at[1].set(atoms[0])
    lowest = coherence(Dictionary(spread))
    known = not isinstance(lowest, Tracer) and not isinstance(largest_cosine, Tracer)
    if known and not float(lowest) <= float(largest_cosine) <= 1:
        raise ValueError(
            f"largest_cosine={float(largest_cosine):g} is out of reach for {n} directions in {d} dimensions; "
            f"give a value from {float(lowest):.3f} to 1, or more dimensions"
        )

    return _meet(spread, atoms, agreeing, jnp.asarray(largest_cosine, atoms.dtype))


@jax.jit
def _meet(spread, atoms, agreeing, largest_cosine):
    """By bisection, the last point of the path whose coherence is at most `largest_cosine`."""

    def along(t):
        early, late = (1 - t) * spread + t * atoms, (2 - t) * atoms + (t - 1) * agreeing
        return unit_rows(jnp.where(t < 1, early, late))

    def halve(_, ends):
        low, high = ends
        middle = (low + high) / 2
        over = coherence(Dictionary(along(middle))) > largest_cosine
        return jnp.where(over, low, middle), jnp.where(over, middle, high)

    zero = jnp.zeros_like(largest_cosine)
    return along(jax.lax.fori_loop(0, 60, halve, (zero, zero + 2))[0])


def learned_map(
    key, sparsity, d: int, *, importance=None, n_samples: int = 1024, steps: int = 2000, learning_rate=3e-2
) -> LearnedSuperposition:
    """The map that the toy model of superposition learns: minimise `E sum_i importance_i (x_i - relu(x W_p^T W_p + b)_i)^2`.

    `sparsity` and `importance` (ones by default) are (features,). Adam, a fresh draw of `n_samples` at every step, rate
    decaying to zero. Where sparsity or importance differ, the frequent and important features get dimensions of
    their own and the rest share (`dimensions_per_feature`). Magnitudes uniform on [0, 1]. Model: Elhage et al. 2022.

    >>> import jax, jax.numpy as jnp
    >>> learned = learned_map(jax.random.key(0), jnp.array([0.1, 0.1, 0.99]), 2, steps=300, n_samples=256)
    >>> learned.directions.shape
    (3, 2)
    """
    sparsity = jnp.asarray(sparsity, jnp.result_type(float))
    importance = jnp.ones(sparsity.shape) if importance is None else jnp.asarray(importance, sparsity.dtype)
    rate = jnp.asarray(learning_rate, sparsity.dtype)
    return _learned(key, sparsity, importance, rate, d=d, n_samples=n_samples, steps=steps)


@partial(jax.jit, static_argnames=("d", "n_samples", "steps"))
def _learned(key, sparsity, importance, learning_rate, *, d, n_samples, steps):
    start_key, data_key = jax.random.split(key)
    optimiser = optax.adam(optax.cosine_decay_schedule(learning_rate, steps))  # type: ignore[arg-type]

    def loss(parameters, x):
        W, b = parameters
        out = jax.nn.relu(matmul(matmul(x, W), W.T) + b)
        return jnp.mean(jnp.sum(importance * (x - out) ** 2, axis=1))

    def step(carry, key):
        parameters, state = carry
        x = sparse_features(key, n_samples, sparsity).x
        value, slope = jax.value_and_grad(loss)(parameters, x)
        updates, state = optimiser.update(slope, state)
        return (optax.apply_updates(parameters, updates), state), value

    parameters = jax.random.normal(start_key, (len(sparsity), d)) / d**0.5, jnp.zeros(len(sparsity))
    (parameters, _), values = jax.lax.scan(
        step, (parameters, optimiser.init(parameters)), jax.random.split(data_key, steps)
    )
    return LearnedSuperposition(*parameters, jnp.mean(values[-max(1, steps // 20) :]))


def dimensions_per_feature(directions: Float[Array, "features d"]) -> Float[Array, " features"]:
    """How many dimensions a feature has to itself, `||w_i||^2 / sum_j (w_i/||w_i|| . w_j)^2`: 1 alone, 1/2 in a digon.

    A feature of length zero has none. Measure: Elhage et al. 2022.

    >>> dimensions_per_feature(block_map(identity_map(1), digon_map(1))).tolist()
    [1.0, 0.5, 0.5]
    """
    directions = jnp.asarray(directions)
    shared = jnp.sum(matmul(unit_rows(directions), directions.T) ** 2, axis=1)
    return jnp.sum(directions**2, axis=1) / jnp.where(shared > 0, shared, 1)


def single_feature_error(directions: Float[Array, "features d"]) -> Float[Array, " features"]:
    """What the closed form gets wrong when one feature is on alone: `(1 - G_ii)^2 + sum_{j != i} (G_ij)_+^2`, `G = W_p^T W_p`.

    As sparsity goes to one, `L_GT / E||x||^2` at the closed form tends to its mean, weighted by `(1 - S_i) E[x_i^2]`. Zero
    for identity, digons, triangles, tetrahedra; not for polygons of five and more, whose neighbours have a positive cosine.

    >>> single_feature_error(digon_map(1)).tolist(), round(float(single_feature_error(polygon_map(5))[0]), 4)
    ([0.0, 0.0], 0.191)
    """
    G = matmul(directions, jnp.asarray(directions).T)
    apart = 1 - jnp.eye(G.shape[0], dtype=G.dtype)
    return (1 - jnp.diag(G)) ** 2 + jnp.sum(apart * jnp.maximum(G, 0) ** 2, axis=1)
