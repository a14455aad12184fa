"""Ground truth by key: non-negative features, each zero with its own probability (theory.md section 6)."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

# Activity patterns double with every feature; beyond this many features they are no longer listed one by one.
MOST_STRATIFIED = 14
# sigma of log-normal magnitudes, whose mean is one.
LOG_SPREAD = 0.5
MAGNITUDES: dict[str, Callable] = {
    "uniform": jax.random.uniform,
    "exponential": jax.random.exponential,
    "lognormal": lambda key, shape: jnp.exp(LOG_SPREAD * jax.random.normal(key, shape) - LOG_SPREAD**2 / 2),
    "constant": lambda key, shape: jnp.ones(shape),
}


class Features(NamedTuple):
    """Samples of the ground truth and their weights; expectations are weighted means over samples."""

    x: Float[Array, "samples features"]
    weights: Float[Array, " samples"]  # mean one

    @property
    def energy(self) -> Float[Array, ""]:
        """`E||x||^2`."""
        return jnp.mean(self.weights * jnp.sum(self.x**2, axis=1))


def sparse_features(key, n_samples: int, sparsity, *, magnitudes="uniform") -> Features:
    """Independent features `x_i >= 0`, zero with probability `sparsity_i` (theory.md section 6).

    `sparsity` is (features,), in [0, 1], and may be traced: with the same key more sparsity only switches entries off.
    `magnitudes` of active entries: "uniform" on [0, 1], "exponential" (mean 1), "lognormal" (mean 1, sigma 1/2),
    "constant" (1), or any function of (key, shape). Returns x (samples, features) and weights one.

    Raises ValueError for a sparsity that is no vector of probabilities and for an unknown name.

    >>> import jax, jax.numpy as jnp
    >>> features = sparse_features(jax.random.key(0), 1000, jnp.array([0.9, 0.5]))
    >>> jnp.mean(features.x > 0, axis=0).round(1).tolist()
    [0.1..., 0.5...]
    """
    sparsity = _checked(sparsity)
    draw = _draw(magnitudes)
    on_key, size_key = jax.random.split(key)
    shape = (n_samples, sparsity.shape[0])
    on = jax.random.uniform(on_key, shape) >= sparsity
    return Features(jnp.where(on, draw(size_key, shape), 0), jnp.ones(n_samples))


def stratified_features(key, per_pattern: int, sparsity, *, magnitudes="uniform") -> Features:
    """The same law, every activity pattern drawn `per_pattern` times and weighted by its probability.

    What depends on how many features are on then has no sampling noise, however rare the pattern: with sparsity .99
    and five features, patterns of probability 1e-10 are there. All `2^features` patterns are listed, so features <= 14;
    all-off needs one sample only but is drawn like the others. x does not depend on `sparsity`, only the weights do.

    Returns x (2^features per_pattern, features). Raises ValueError as `sparse_features`, and for too many features.

    >>> import jax, jax.numpy as jnp
    >>> features = stratified_features(jax.random.key(0), 4, jnp.array([0.9, 0.5]))
    >>> features.x.shape, jnp.mean(features.weights[:, None] * (features.x > 0), axis=0).round(6).tolist()
    ((16, 2), [0.1..., 0.5])
    """
    sparsity = _checked(sparsity)
    draw, n = _draw(magnitudes), sparsity.shape[0]
    if n > MOST_STRATIFIED:
        raise ValueError(f"{n} features have 2^{n} activity patterns; use sparse_features beyond {MOST_STRATIFIED}")
    on = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
    on = jnp.asarray(np.repeat(on, per_pattern, axis=0), bool)
    chance = jnp.prod(jnp.where(on, 1 - sparsity, sparsity), axis=1)
    return Features(jnp.where(on, draw(key, on.shape), 0), chance * 2**n)


def _draw(magnitudes):
    if callable(magnitudes):
        return magnitudes
    if magnitudes not in MAGNITUDES:
        raise ValueError(f"magnitudes={magnitudes!r} is unknown; use one of {tuple(MAGNITUDES)} or a function")
    return MAGNITUDES[magnitudes]


def _checked(sparsity):
    if not isinstance(sparsity, Tracer):
        given = np.asarray(sparsity)
        if given.ndim != 1:
            raise ValueError(
                f"sparsity has shape {given.shape}; give one probability a feature, as in jnp.full(6, 0.9)"
            )
        if not np.all((given >= 0) & (given <= 1)):
            raise ValueError(f"sparsity is {given}: not probabilities; keep them within [0, 1]")
    return jnp.asarray(sparsity, jnp.result_type(float))
