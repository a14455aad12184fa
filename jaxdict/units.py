"""A problem in units of its own size: F is covariant, so what is solved need never overflow or underflow.

With `X = s X'`, `m = c m'` and `lam = c s lam'` the codes and the offset are s times, and the objective c s^2 times, those of the primed
problem; atoms and every scale-free measure are the same. s and c are powers of two: nothing is rounded.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float

from jaxdict.numerics import power_of_two
from jaxdict.problem import Codes, Dictionary, Problem, SparseCodes

# Data and metrics whose largest entry is within 2^-16 and 2^16 are taken as they are: fourth powers keep far from float32's limits.
PLAIN_EXPONENT = 16


class Units(NamedTuple):
    """The powers of two s and c."""

    data: Float[Array, ""]
    metric: Float[Array, ""]

    def is_one(self) -> bool:
        """Whether both are known to be one, so that nothing need be scaled."""
        return not any(isinstance(unit, Tracer) for unit in self) and all(float(unit) == 1 for unit in self)

    def of_objective(self, value: Float[Array, "..."]) -> Float[Array, "..."]:
        """A value of the scaled problem's objective in the data's squared units; infinite or zero where they cannot show it."""
        return value * self.data * self.metric * self.data

    def scaled(self, problem: Problem, X: Float[Array, "samples d"]) -> tuple[Problem, Array]:
        """The problem and its data in these units."""
        return (problem, X) if self.is_one() else _scaled(self, problem, X)

    def scaled_dictionary(self, dictionary: Dictionary) -> Dictionary:
        """A dictionary in these units: its offset is of the data's size."""
        if dictionary.offset is None or self.is_one():
            return dictionary
        return Dictionary(dictionary.atoms, dictionary.offset / self.data)

    def scaled_codes(self, codes: Codes) -> Codes:
        """Codes in these units: they are of the data's size."""
        return codes if self.is_one() else _times(codes, 1 / self.data)

    def unscaled(self, dictionary: Dictionary, codes: Codes) -> tuple[Dictionary, Codes]:
        """A dictionary and codes of the scaled problem in the data's own units."""
        if self.is_one():
            return dictionary, codes
        offset = None if dictionary.offset is None else dictionary.offset * self.data
        return Dictionary(dictionary.atoms, offset), _times(codes, self.data)


@jax.jit
def units_of(problem: Problem, X: Float[Array, "samples d"]) -> Units:
    """Powers of two near the largest entry of the data (on samples of positive weight) and of the metric; one where that is moderate.

    >>> import jax.numpy as jnp, jaxdict as jd
    >>> float(units_of(jd.Problem(lam=1.0), jnp.array([[3.0], [-5.0]])).data)
    1.0
    >>> float(units_of(jd.Problem(lam=1.0), jnp.array([[3e20], [-5e20]])).data) == 2.0**69
    True
    """
    problem, X = jax.lax.stop_gradient((problem, X))  # F is covariant, so derivatives do not depend on the units
    counted = X if problem.weights is None else jnp.where(problem.weights[:, None] > 0, X, 0)
    data = _unit(counted)
    return Units(data, jnp.ones_like(data) if problem.metric is None else _unit(problem.metric))


def _unit(array) -> Float[Array, ""]:
    size = power_of_two(array)
    return jnp.where((size >= 2.0**-PLAIN_EXPONENT) & (size <= 2.0**PLAIN_EXPONENT), 1, size)


@jax.jit
def _scaled(units: Units, problem: Problem, X: Float[Array, "samples d"]) -> tuple[Problem, Array]:
    lam = problem.lam / units.data / units.metric
    metric = None if problem.metric is None else problem.metric / units.metric
    return Problem(lam, problem.offset, problem.signed, problem.gauge, metric, problem.weights), X / units.data


def _times(codes: Codes, factor) -> Codes:
    return SparseCodes(codes.indices, codes.values * factor) if isinstance(codes, SparseCodes) else codes * factor
