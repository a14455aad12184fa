"""Training: the loss is problem P's with an encoder, it falls, keys decide, top-k keeps k; no loss below exact codes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compiling import compilations, own

import jaxdict as jd
from jaxdict.numerics import unit_rows
from jaxdict.sae import trainers
from jaxdict.sae.trainers.parts import geometric_median

X = np.random.default_rng(0).normal(size=(300, 5)) @ np.random.default_rng(1).normal(size=(5, 6))
SIZES = {"steps": 300, "batch_size": 100, "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def trained():
    losses = []
    sae = jd.sae.train(X, 8, key=jax.random.key(0), lam=0.2, callback=lambda *told: losses.append(told), **SIZES)
    return sae, losses


def test_loss_is_the_objective_of_the_saes_codes(trained):
    sae, _ = trained
    problem = jd.Problem(lam=0.2)
    own = float(jd.objective(problem, sae.dictionary, sae.encode(X), X))
    assert float(jd.sae.training_loss(sae, jnp.asarray(X), 0.2)) == pytest.approx(own, rel=1e-12)
    exact = jd.encode(problem, sae.dictionary, X, tol=1e-12).codes
    assert own >= float(jd.objective(problem, sae.dictionary, exact, X)) - 1e-12


def test_training_lowers_the_loss_and_reports(trained):
    sae, losses = trained
    start = jd.sae.train(X, 8, key=jax.random.key(0), lam=0.2, steps=1, batch_size=100, learning_rate=1e-9)
    before, after = (float(jd.sae.training_loss(one, jnp.asarray(X), 0.2)) for one in (start, sae))
    assert after < 0.6 * before
    assert [told[:2] for told in losses] == [(100, 300), (200, 300), (300, 300)]
    np.testing.assert_allclose(sae.norms, 1, rtol=1e-12)
    assert (sae.lam, sae.metadata.architecture) == (0.2, "standard")


def test_same_key_same_result_and_another_key_another(trained):
    again = jd.sae.train(X, 8, key=jax.random.key(0), lam=0.2, **SIZES)
    np.testing.assert_array_equal(again.W_dec, trained[0].W_dec)
    other = jd.sae.train(X, 8, key=jax.random.key(1), lam=0.2, **SIZES)
    assert float(jnp.max(jnp.abs(other.W_dec - again.W_dec))) > 0.1


def test_topk_keeps_k():
    sae = jd.sae.train(X, 8, key=jax.random.key(0), architecture="topk", k=2, **SIZES)
    on = np.sum(np.asarray(sae.encode(X)) != 0, axis=1)
    assert on.max() == 2
    assert sae.lam is None
    explained = 1 - np.sum((X - np.asarray(sae(X))) ** 2) / np.sum((X - X.mean(0)) ** 2)
    assert explained > 0.5


def test_every_step_draws_a_batch_of_its_own():
    """One long run of training by hand, in float64: batch k is drawn with `fold_in(key, k)`, across the callback's looks too."""
    steps, size, rate, lam, key = 230, 20, 1e-2, 0.2, jax.random.key(3)
    draw, run = jax.random.split(key)
    W = 0.1 * unit_rows(jax.random.normal(draw, (8, 6), jnp.float64))
    arrays = [W.T, jnp.zeros(8), W, geometric_median(jnp.asarray(X))]
    optimiser = optax.adam(optax.join_schedules(
        [optax.linear_schedule(0.0, rate, 11), optax.constant_schedule(rate), optax.linear_schedule(rate, 0.0, 46)], [11, 184]
    ))  # fmt: skip

    @jax.jit
    def step(arrays, state, k):
        x = jnp.asarray(X)[jax.random.randint(jax.random.fold_in(run, k), (size,), 0, len(X))]
        slopes = jax.grad(lambda a: jd.sae.training_loss(jd.sae.SAE(*a), x, lam))(arrays)
        length = jnp.sqrt(sum(jnp.sum(slope**2) for slope in slopes))
        slopes = [slope / length for slope in slopes]
        updates, state = optimiser.update(slopes, state)
        return optax.apply_updates(arrays, updates), state

    state = optimiser.init(arrays)
    for k in range(steps):
        arrays, state = step(arrays, state, k)
    wanted = jd.sae.SAE(*arrays).canonical()
    sae = jd.sae.train(X, 8, key=key, lam=lam, steps=steps, batch_size=size, learning_rate=rate, scaled=False)
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        np.testing.assert_allclose(
            getattr(sae, name), getattr(wanted, name), rtol=1e-5, atol=1e-6
        )  # optax keeps rates in float32


def test_other_values_are_the_same_program(trained):
    """Another lam, rate, key, number of steps: nothing is compiled."""
    jd.sae.train(X, 8, key=jax.random.key(2), lam=0.4, steps=120, batch_size=100, learning_rate=2e-2)
    with compilations() as seen:
        jd.sae.train(X * 1.5, 8, key=jax.random.key(5), lam=0.1, steps=250, batch_size=100, learning_rate=3e-3)
    assert seen == []


def test_training_inside_a_traced_function():
    def loss(lam):
        sae = jd.sae.train(X, 4, key=jax.random.key(0), lam=lam, steps=5, batch_size=10)
        return jd.sae.training_loss(sae, jnp.asarray(X), lam)

    plain = jd.sae.train(X, 4, key=jax.random.key(0), lam=0.2, steps=5, batch_size=10)
    assert float(jax.jit(loss)(0.2)) == pytest.approx(float(jd.sae.training_loss(plain, jnp.asarray(X), 0.2)), rel=1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architecture": "gate"}, "architecture='gate'"),
        ({}, "lam is None"),
        ({"lam": -1.0}, "lam is -1.0"),
        ({"architecture": "topk"}, "k is None"),
        ({"architecture": "topk", "k": 9}, "k is 9"),
        ({"lam": 0.1, "steps": 0}, "steps is 0"),
        ({"lam": 0.1, "learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"lam": 0.1, "k": 2}, "k is 2; .* leave k out"),
        ({"lam": 0.1, "k": 2, "architecture": "topk"}, "lam is 0.1; .* leave lam out"),
        ({"architecture": "topk", "k": 2.5}, "k is 2.5"),
        ({"architecture": "batchtopk", "k": 0}, "k is 0"),
        ({"architecture": trainers.Matryoshka(group_sizes=(3, 4)), "k": 2}, r"group_sizes is \(3, 4\)"),
        ({"architecture": trainers.JumpReLU(bandwidth=0), "lam": 0.1}, "bandwidth is 0"),
        ({"architecture": trainers.PAnneal(p_end=1.5), "lam": 0.1}, "p_end is 1.5"),
        ({"architecture": trainers.PAnneal(start=0.9), "lam": 0.1}, "from 0.9 to 0.8"),
        ({"architecture": trainers.PAnneal(updates=0), "lam": 0.1}, "updates is 0"),
        ({"architecture": trainers.TopK(auxiliary=-1), "k": 2}, "auxiliary is -1"),
        ({"architecture": 3}, "architecture=3"),
        ({"lam": 0.1, "steps": 5, "epochs": 2}, "steps is 5 and epochs is 2"),
        ({"lam": 0.1, "epochs": -2}, "epochs is -2"),
        ({"lam": 0.1, "lam_warm_up": -1}, "lam_warm_up is -1"),
        ({"lam": 0.1, "dead_steps": 0}, "dead_steps is 0"),
        ({"lam": 0.1, "batch_size": 0}, "batch_size is 0"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message), compilations() as seen:
        jd.sae.train(X, 8, key=jax.random.key(0), **options)
    assert own(seen) == []


def test_traced_values_keep_no_checkpoint(tmp_path):
    train = lambda lam: jd.sae.train(X, 8, key=jax.random.key(0), lam=lam, checkpoint=tmp_path).W_dec  # noqa: E731
    with pytest.raises(ValueError, match="a callback or a checkpoint needs known values"):
        jax.jit(train)(0.1)
