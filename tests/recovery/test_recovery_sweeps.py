"""The sweep is one program, equals its runs one by one, and pairs what it compares."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdict import recovery
from jaxdict.recovery import sweeps

KEY = jax.random.key(0)
DIRECTIONS = recovery.block_map(recovery.identity_map(2), recovery.digon_map(1))
S, ALPHAS, PENALTIES = jnp.array([0.5, 0.9]), (0.0, 1.0), (0.0, 0.1)
SIZES = {"per_pattern": 4, "steps": 40}


@pytest.fixture(scope="module")
def swept():
    before = sweeps._sweep._cache_size()
    found = recovery.sweep_recovery(
        KEY, DIRECTIONS, S, restarts=3, alphas=ALPHAS, penalties=PENALTIES, at_a_time=5, **SIZES
    )
    assert sweeps._sweep._cache_size() == before + 1
    return found


@pytest.mark.slow
def test_entries_equal_single_runs(swept):
    assert swept.loss.shape == (2, 3, 2, 2)
    assert swept.rows.shape == (2, 3, 2, 2, 4, 3)
    keys = jax.random.split(KEY, 3)
    alone = jax.jit(lambda key, s, p, a: recovery.recover(key, DIRECTIONS, jnp.full(4, s), penalty=p, alpha=a, **SIZES))
    for s, r, p, a in [(0, 0, 0, 0), (1, 2, 1, 1), (0, 1, 1, 0)]:
        one = alone(keys[r], S[s], PENALTIES[p], ALPHAS[a])
        for field, value in one._asdict().items():
            np.testing.assert_allclose(getattr(swept, field)[s, r, p, a], value, rtol=1e-8, atol=1e-9, err_msg=field)


def test_runs_differ_where_they_should_and_share_data_where_they_should(swept):
    assert not np.allclose(swept.rows[:, 0], swept.rows[:, 1])
    assert not np.allclose(swept.rows[:, :, 0], swept.rows[:, :, 1])
    assert not np.allclose(swept.rows[..., 0, :, :], swept.rows[..., 1, :, :])
    np.testing.assert_array_equal(swept.energy[..., 0], swept.energy[..., 1])
    np.testing.assert_allclose(swept.weighted_loss[..., 0], swept.loss[..., 0], rtol=1e-12)  # alpha = 0: no weights
    assert not np.allclose(swept.weighted_loss[..., 1], swept.loss[..., 1])


def test_a_sparsity_a_feature(swept):
    grid = dict(restarts=3, alphas=ALPHAS, penalties=PENALTIES, at_a_time=5, **SIZES)
    same = recovery.sweep_recovery(KEY, DIRECTIONS, jnp.broadcast_to(S[:, None], (2, 4)), **grid)
    np.testing.assert_array_equal(same.loss, swept.loss)
    with pytest.raises(ValueError, match=r"give \(s,\)"):
        recovery.sweep_recovery(KEY, DIRECTIONS, jnp.ones((2, 3)), **grid)


@pytest.mark.slow
def test_plain_samples_and_a_proxy_of_ones_own():
    run = lambda proxy, alpha: recovery.recover(  # noqa: E731
        KEY, DIRECTIONS, jnp.full(4, 0.5), alpha=alpha, proxy=proxy, n_samples=64, steps=40
    )
    ones = run(lambda x_p, weights: jnp.ones(3), 2.0)
    tilted = run(lambda x_p, weights: jnp.arange(1.0, 4.0), 2.0)
    assert float(ones.weighted_loss) == pytest.approx(float(ones.loss), rel=1e-12)
    assert not np.allclose(tilted.rows, ones.rows)
