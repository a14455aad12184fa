"""Means over rows kept aside and their standard errors: by hand, and beside the paired comparisons of fresh rows (T18)."""

import jax.numpy as jnp
import numpy as np

from jaxdict.population.comparisons import paired
from jaxdict.streaming.aside import Held
from jaxdict.streaming.held_out import mean_and_error


def test_two_groups_by_hand():
    # Mean 2; sums of what is left by group -2 and 2; sqrt((4 + 4) 2 / 1) / 4.
    assert mean_and_error(np.array([1.0, 1, 3, 3]), Held(None, None, np.array([0, 0, 1, 1]))) == (2.0, 1.0)
    assert mean_and_error(np.array([1.0, 3.0]), Held(None, None, np.array([0, 0]))) == (2.0, np.inf)


def test_it_is_that_of_paired_comparisons():
    luck = np.random.default_rng(0)
    values, groups, w = (
        luck.normal(size=60),
        luck.integers(0, 9, 60),
        luck.uniform(0.5, 2, 60) * (luck.uniform(size=60) > 0.3),
    )
    w[groups == 4] = 0  # a group that does not count
    for weights in (None, w):
        want = paired(jnp.asarray(values), jnp.ones(60) if weights is None else jnp.asarray(w), jnp.asarray(groups))
        found = mean_and_error(values, Held(None, weights, groups))
        np.testing.assert_allclose(found, (want.gain, want.standard_error), rtol=1e-12)  # the order of sums
