"""The trainer: it descends, every option is used, and a batch equals its runs one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdict import recovery
from jaxdict.recovery import Autoencoder

KEY = jax.random.key(0)
X_P = recovery.superpose(recovery.sparse_features(KEY, 64, jnp.full(5, 0.6)).x, recovery.polygon_map(5))
SIZES = {"steps": 60}


def leading(tree, n):
    return jax.tree.map(lambda leaf: leaf[n], tree)


def test_descends_to_a_stationary_point():
    done = recovery.train(KEY, X_P, 5, steps=1500)
    assert done.history[0] > 100 * done.loss
    assert done.gradient_norm < 1e-2  # a zero-loss valley: still moving, slowly
    assert "1500 steps" in done.message()
    x_p = recovery.superpose(recovery.sparse_features(KEY, 64, jnp.full(3, 0.6)).x, recovery.polygon_map(3))
    assert recovery.train(KEY, x_p, 3, steps=1500).gradient_norm < 1e-9


def test_loss_is_what_the_parts_say():
    metric, weights = jnp.array([0.5, 2.0]), jnp.linspace(0, 2, 64)
    done = recovery.train(KEY, X_P, 5, weights=weights, metric=metric, penalty=0.1, tied=False, bias=True, **SIZES)
    parts = recovery.reconstruction_loss(done.sae, X_P, weights=weights, metric=metric)
    parts += 0.1 * recovery.penalty_term(done.sae, X_P, weights=weights)
    assert float(done.loss) == pytest.approx(float(parts), rel=1e-12)
    # Twice problem P: the same number from jaxdict's own objective, lam = penalty / 2.
    import jaxdict as jd

    problem = jd.Problem(lam=0.05, metric=metric, weights=weights, gauge="penalised")
    point = jd.Dictionary(done.sae.atoms, done.sae.offset), done.sae.encode(X_P)
    assert float(done.loss) == pytest.approx(2 * float(jd.objective(problem, *point, X_P)), rel=1e-12)


OPTIONS = {
    "plain": {},
    "metric": {"metric": jnp.array([0.2, 3.0])},
    "weights": {"weights": jnp.linspace(0, 2, 64)},
    "penalty": {"penalty": 0.3},
    "temperature": {"temperature": 0.05},
    "k": {"k": 1},
    "bias": {"bias": True},
    "untied": {"tied": False},
}


@pytest.fixture(scope="module")
def by_option():
    return {name: recovery.train(KEY, X_P, 5, **SIZES, **option) for name, option in OPTIONS.items()}


@pytest.mark.slow
def test_every_option_changes_the_run(by_option):
    for name, done in by_option.items():
        assert np.isfinite(done.loss)
        assert name == "plain" or not np.allclose(done.sae.atoms, by_option["plain"].sae.atoms, atol=1e-6)
    assert (by_option["k"].sae.encode(X_P) > 0).sum(axis=1).max() == 1
    assert by_option["bias"].sae.bias is not None
    assert not np.allclose(by_option["untied"].sae.decoder, by_option["untied"].sae.encoder)
    # A penalty makes latents sparser, in sum; a learned metric has mean one and favours the easier dimension.
    size = lambda done: float(recovery.penalty_term(done.sae, X_P))  # noqa: E731
    assert size(by_option["penalty"]) < size(by_option["plain"])
    learned = by_option["temperature"]
    errors = recovery.errors_by_dimension(learned.sae, X_P)
    assert float(learned.metric.mean()) == pytest.approx(1)
    assert int(learned.metric.argmax()) == int(errors.argmin())


def test_a_batch_equals_its_runs():
    keys = jax.random.split(KEY, 5)  # five runs, two at a time: an uneven end
    metric, penalty = jax.random.uniform(KEY, (5, 2), minval=0.5, maxval=2), jnp.linspace(0, 0.2, 5)
    batch = recovery.train_batch(keys, X_P, 5, metric=metric, penalty=penalty, at_a_time=2, **SIZES)
    assert batch.history.shape == (5, 60)
    for n in (0, 4):
        alone = recovery.train(keys[n], X_P, 5, metric=metric[n], penalty=penalty[n], **SIZES)
        for one, other in zip(jax.tree.leaves(alone), jax.tree.leaves(leading(batch, n)), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-10)
    with pytest.raises(ValueError, match="take one"):
        batch.message()


def test_a_batch_over_data_and_starts():
    keys = jax.random.split(KEY, 2)
    data = jnp.stack([X_P, 2 * X_P])
    starts = Autoencoder(jax.random.normal(KEY, (2, 5, 2)))
    batch = recovery.train_batch(keys, data, 5, start=starts, **SIZES)
    alone = recovery.train(keys[1], data[1], 5, start=leading(starts, 1), **SIZES)
    np.testing.assert_allclose(leading(batch, 1).sae.encoder, alone.sae.encoder, rtol=1e-9, atol=1e-10)


def test_float32_and_one_compilation():
    done = recovery.train(KEY, X_P.astype(jnp.float32), 5, **SIZES)
    assert {leaf.dtype for leaf in jax.tree.leaves(done)} == {jnp.dtype(jnp.float32)}
    from jaxdict.recovery import training

    before = training._train._cache_size()
    recovery.train(jax.random.key(7), 2 * X_P.astype(jnp.float32), 5, **SIZES)
    assert training._train._cache_size() == before


def test_refusals():
    with pytest.raises(ValueError, match="k=9 of 5"):
        recovery.train(KEY, X_P, 5, k=9)
    with pytest.raises(ValueError, match="metric has shape"):
        recovery.train(KEY, X_P, 5, metric=jnp.ones(3))
    with pytest.raises(ValueError, match="x_p has shape"):
        recovery.train(KEY, X_P[0], 5)
    with pytest.raises(ValueError, match="less than the 5 features"):
        recovery.closed_form(recovery.polygon_map(5), 4)
