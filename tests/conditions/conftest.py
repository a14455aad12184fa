from functools import cache

import jax
import numpy as np
import pytest
from stationary_points import solve, sparse_data

import jaxdict as jd

WEIGHTS = np.where(np.arange(48) % 6 == 0, 0.0, 1.0 + np.arange(48) % 3)
PROBLEMS = {
    "offset": lambda: jd.Problem(lam=0.25),
    "no offset": lambda: jd.Problem(lam=0.25, offset=False),
    "weighted": lambda: jd.Problem(lam=0.25, metric=np.array([1.0, 2.0, 0.7]), weights=WEIGHTS, gauge="penalised"),
}


# A parametrised fixture is set up anew whenever its parameter comes back, perhaps right after a doctest, which runs without x64.
@cache
def solved(kind):
    jax.config.update("jax_enable_x64", True)
    return solve(PROBLEMS[kind](), sparse_data(3), 4, seed=2)


@cache
def solved_signed(offset):
    jax.config.update("jax_enable_x64", True)
    return solve(jd.Problem(lam=0.15, signed=True, offset=offset), sparse_data(5, signed=True), 3, seed=2)


@pytest.fixture(scope="session", params=list(PROBLEMS))
def point(request):
    """A stationary point (problem, dictionary, codes, X), codes >= 0."""
    return solved(request.param)


@pytest.fixture(scope="session", params=[True, False])
def signed_point(request):
    return solved_signed(request.param)
