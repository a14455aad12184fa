"""Laws of how often features fire, the commonest feature first."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@dataclass(frozen=True)
class Zipfian:
    """`i^-exponent` for i = 1 ... n, moved and scaled so that the first is `max_prob` and the last `min_prob`.

    >>> [f"{p:.2f}" for p in Zipfian(1.0, 0.5, 0.1).draw(jax.random.key(0), 3)]
    ['0.50', '0.20', '0.10']
    """

    name: ClassVar[str] = "zipfian"
    exponent: float = 1.0
    max_prob: float = 0.3
    min_prob: float = 0.01

    def __post_init__(self):
        _check_ends(self)
        if not self.exponent > 0:
            raise ValueError(f"exponent={self.exponent} is not positive; the first feature is the commonest")

    def draw(self, key, n_features: int) -> Float[Array, " features"]:
        """Probabilities of `n_features`; the key is not used."""
        falls = jnp.arange(1, n_features + 1, dtype=jnp.result_type(float)) ** -self.exponent
        reach = falls[0] - falls[-1] if n_features > 1 else 1
        return self.max_prob - (self.max_prob - self.min_prob) * (falls[0] - falls) / reach


@dataclass(frozen=True)
class Linear:
    """In equal steps from `max_prob` to `min_prob`.

    >>> [f"{p:.2f}" for p in Linear(0.5, 0.1).draw(jax.random.key(0), 3)]
    ['0.50', '0.30', '0.10']
    """

    name: ClassVar[str] = "linear"
    max_prob: float = 0.3
    min_prob: float = 0.01

    def __post_init__(self):
        _check_ends(self)

    def draw(self, key, n_features: int) -> Float[Array, " features"]:
        """Probabilities of `n_features`; the key is not used."""
        return jnp.linspace(self.max_prob, self.min_prob, n_features)


@dataclass(frozen=True)
class Random:
    """Uniform on [`min_prob`, `max_prob`], each feature for itself.

    >>> bool((Random(0.5, 0.1).draw(jax.random.key(0), 9) > 0.1).all())
    True
    """

    name: ClassVar[str] = "random"
    max_prob: float = 0.5
    min_prob: float = 0.01

    def __post_init__(self):
        _check_ends(self)

    def draw(self, key, n_features: int) -> Float[Array, " features"]:
        """Probabilities of `n_features`, drawn by key."""
        return jax.random.uniform(key, (n_features,), minval=self.min_prob, maxval=self.max_prob)


@dataclass(frozen=True)
class Constant:
    """The same for all.

    >>> Constant(0.25).draw(jax.random.key(0), 2).tolist()
    [0.25, 0.25]
    """

    name: ClassVar[str] = "constant"
    probability: float = 0.1

    def __post_init__(self):
        if not 0 <= self.probability <= 1:
            raise ValueError(f"probability={self.probability} is not within [0, 1]; give a share of the samples")

    def draw(self, key, n_features: int) -> Float[Array, " features"]:
        """Probabilities of `n_features`; the key is not used."""
        return jnp.full(n_features, self.probability, jnp.result_type(float))


FIRING = {law.name: law for law in (Zipfian, Linear, Random, Constant)}


def _check_ends(law) -> None:
    if not 0 <= law.min_prob <= law.max_prob <= 1:
        raise ValueError(f"min_prob={law.min_prob} and max_prob={law.max_prob}; give 0 <= min_prob <= max_prob <= 1")
