"""The reduced problem's gradient is the envelope theorem's (T3): central differences of re-solved problems agree."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxdict as jd
from jaxdict.solvers.reduced import first_point

X = jax.random.normal(jax.random.key(0), (50, 4), jnp.float64)
ATOMS = jax.random.normal(jax.random.key(1), (6, 4), jnp.float64)
START = jd.Dictionary(ATOMS / jnp.linalg.norm(ATOMS, axis=1, keepdims=True), 0.1 * jnp.ones(4))
PROBLEM = jd.Problem(lam=0.4, metric=[0.5, 1.0, 2.0, 1.0])


def phi(problem, dictionary, data):
    codes = jd.encode(problem, dictionary, data, tol=1e-13).codes
    return float(jd.objective(problem, dictionary, codes, data))


def test_gradient_is_minus_the_moments():
    seen = first_point(PROBLEM, X, START, 6)[0]
    rng = np.random.default_rng(0)
    for _ in range(5):
        dD, db = rng.normal(size=(6, 4)), rng.normal(size=4)
        h = 1e-5
        ends = [phi(PROBLEM, jd.Dictionary(START.atoms + t * dD, START.offset + t * db), X) for t in (h, -h)]
        predicted = float(jnp.sum(seen.atoms_slope * dD) + seen.offset_slope @ db)
        np.testing.assert_allclose(
            (ends[0] - ends[1]) / (2 * h), predicted, rtol=1e-6
        )  # h^2 of the difference's error, 1e-10


def test_value_changes_with_lam_by_the_mean_codes():
    seen = first_point(PROBLEM, X, START, 6)[0]
    ends = [phi(jd.Problem(lam=0.4 + h, metric=PROBLEM.metric), START, X) for h in (1e-5, -1e-5)]
    np.testing.assert_allclose((ends[0] - ends[1]) / 2e-5, jnp.sum(seen.mean_codes), rtol=1e-6)
