"""Laws of how large activations are: of features' means, and of the spreads about them."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@dataclass(frozen=True)
class Constant:
    """The same for all.

    >>> Constant(2.0).draw(jax.random.key(0), 2).tolist()
    [2.0, 2.0]
    """

    name: ClassVar[str] = "constant"
    value: float = 1.0

    def __post_init__(self):
        if not self.value >= 0:
            raise ValueError(f"value={self.value} is no size; give one >= 0")

    def draw(self, key, n_features: int) -> Float[Array, " features"]:
        """Sizes of `n_features`; the key is not used."""
        return jnp.full(n_features, self.value, jnp.result_type(float))


@dataclass(frozen=True)
class Linear:
    """In equal steps from `start` to `end`.

    >>> Linear(5.0, 4.0).draw(jax.random.key(0), 3).tolist()
    [5.0, 4.5, 4.0]
    """

    name: ClassVar[str] = "linear"
    start: float
    end: float

    def __post_init__(self):
        _check_positive(self)

    def draw(self, key, n_features: int) -> Float[Array, " features"]:
        """Sizes of `n_features`; the key is not used."""
        return jnp.linspace(self.start, self.end, n_features)


@dataclass(frozen=True)
class Exponential:
    """`start (end / start)^t`, t in equal steps from 0 to 1.

    >>> Exponential(1.0, 4.0).draw(jax.random.key(0), 3).round(3).tolist()
    [1.0, 2.0, 4.0]
    """

    name: ClassVar[str] = "exponential"
    start: float
    end: float

    def __post_init__(self):
        _check_positive(self)

    def draw(self, key, n_features: int) -> Float[Array, " features"]:
        """Sizes of `n_features`; the key is not used."""
        return self.start * (self.end / self.start) ** jnp.linspace(0, 1, n_features)


@dataclass(frozen=True)
class FoldedNormal:
    """`|mean + std z|`, z normal, each feature for itself; kept within `min_value` and `max_value` where they are given.

    >>> bool((FoldedNormal(0.5, 0.5, max_value=1.0).draw(jax.random.key(0), 9) <= 1).all())
    True
    """

    name: ClassVar[str] = "folded_normal"
    mean: float = 0.0
    std: float = 0.1
    min_value: float | None = None
    max_value: float | None = None

    def __post_init__(self):
        if not self.std > 0:
            raise ValueError(f"std={self.std} is not positive; for equal sizes use Constant")
        if (self.min_value or 0) < 0 or (self.max_value is not None and not self.max_value > (self.min_value or 0)):
            raise ValueError(
                f"min_value={self.min_value} and max_value={self.max_value}; give 0 <= min_value < max_value"
            )

    def draw(self, key, n_features: int) -> Float[Array, " features"]:
        """Sizes of `n_features`, drawn by key."""
        return self.fold(jax.random.normal(key, (n_features,)))

    def fold(self, z):
        """The sizes that normal numbers stand for."""
        return jnp.clip(jnp.abs(self.mean + self.std * z), self.min_value, self.max_value)


SIZES = {law.name: law for law in (Constant, Linear, Exponential, FoldedNormal)}


def size_law(given, name: str):
    """A law of sizes from itself or from a number, or a ValueError.

    >>> size_law(2, "means")
    Constant(value=2.0)
    """
    if isinstance(given, tuple(SIZES.values())):
        return given
    if isinstance(given, bool) or not isinstance(given, (int, float)):
        raise ValueError(f"{name}={given!r} is no law of sizes; give a number or one of {tuple(SIZES)}")
    return Constant(float(given))


def _check_positive(law) -> None:
    if not (law.start > 0 and law.end > 0):
        raise ValueError(f"start={law.start} and end={law.end}; give two positive sizes")
