"""The conditions at points known to be stationary, and just beside them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from stationary_points import turned

import jaxdict as jd
import jaxdict.conditions
from jaxdict.certificates.stationarity import stationarity


def test_the_reference_points_are_stationary(point):
    found = stationarity(*point)
    assert float(found.worst) < 1e-10
    assert bool(jnp.all(point[2].mean(axis=0) > 0))


def test_signed_reference_points_are_stationary(signed_point):
    assert float(stationarity(*signed_point).worst) < 1e-10
    assert float(signed_point[2].min()) < 0


FUNCTIONS = {
    "pairs": lambda p, dictionary, codes, X: jd.conditions.pairs(dictionary, codes, weights=p.weights),
    "hull": lambda p, dictionary, codes, X: jd.conditions.hull(dictionary, codes, 1, weights=p.weights),
    "barycentre": jd.conditions.barycentre,
    "residual": jd.conditions.residual,
    "hierarchy": lambda p, dictionary, codes, X: jd.conditions.hierarchy(
        codes, dictionary=dictionary, weights=p.weights
    ),
    "exclusive": lambda p, dictionary, codes, X: jd.conditions.exclusive(codes, weights=p.weights),
    "antipodal": lambda p, dictionary, codes, X: jd.conditions.antipodal(dictionary, codes, weights=p.weights),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(FUNCTIONS))
def test_jit_and_vmap_give_what_the_plain_call_gives(point, name):
    problem, dictionary, codes, X = point
    of, dictionary = FUNCTIONS[name], turned(dictionary)  # where residual directions are not mere rounding
    plain = of(problem, dictionary, codes, X)
    other = jax.vmap(lambda scale: of(problem, dictionary, scale * codes, X))(jnp.array([1.0, 2.0]))
    closed = jax.jit(lambda X: of(problem, dictionary, codes, X))(X)  # codes known, not traced
    first = jax.tree.map(lambda leaf: leaf[0], other)
    for one in (jax.jit(of)(problem, dictionary, codes, X), closed, first):
        jax.tree.map(lambda leaf, expected: np.testing.assert_allclose(leaf, expected, atol=1e-10), one, plain)
