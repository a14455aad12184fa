"""Proxies and weights; and every statement T1 to T9 at optima found in a random metric, to the tolerances of the plain ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdict as jd
from jaxdict import conditions, recovery, synthetic

KEY = jax.random.key(0)
CASES = [(True, False), (False, False), (True, True)]  # offset, signed


def test_variance_and_weights():
    X = jax.random.normal(KEY, (50, 4)) * jnp.array([1.0, 2.0, 0.5, 0.0])
    np.testing.assert_allclose(recovery.dimension_variance(X), np.asarray(X).var(axis=0), rtol=1e-12)
    proxy = recovery.dimension_variance(X)
    np.testing.assert_array_equal(recovery.reweight(proxy, 0.0), 1)
    once = recovery.reweight(proxy, 1.0)
    assert float(once.mean()) == pytest.approx(1)
    np.testing.assert_allclose(once[:3], proxy[:3] / proxy.mean())
    np.testing.assert_allclose(recovery.reweight(proxy, 3.0), once**3, rtol=1e-12)
    assert (once > 0).all()  # the dead dimension too: a metric is positive
    jd.Problem(lam=0.1, metric=once)
    slope = jax.grad(lambda a: recovery.reweight(proxy, a)[1])(1.0)
    assert float(slope) == pytest.approx(float(once[1] * jnp.log(once[1])))


def test_bad_proxies():
    with pytest.raises(ValueError, match="negative entry: -1"):
        recovery.reweight(jnp.array([1.0, -1.0]), 1.0)
    with pytest.raises(ValueError, match="zero in every dimension"):
        recovery.reweight(jnp.zeros(3), 1.0)
    with pytest.raises(ValueError, match="'entropy' is unknown"):
        recovery.metric_from(jnp.ones((3, 2)), 1.0, proxy="entropy")
    with pytest.raises(ValueError, match="labels are not given"):
        recovery.metric_from(jnp.ones((3, 2)), 1.0, proxy="consistency")


def test_consistency_by_counting():
    X = np.array(jnp.maximum(jax.random.normal(KEY, (60, 5)), 0))
    X[:, 4] = 0
    X[3:, 3] = 0
    X[:3, 3] = (1.0, 2.0, 3.0)
    labels = np.random.default_rng(0).choice(["a", "b", "c"], 60)
    found = recovery.semantic_consistency(X, recovery.label_numbers(labels), top=10)
    for column in range(4):
        top = [n for n in np.argsort(-X[:, column], kind="stable")[:10] if X[n, column] > 0]
        shares = [np.mean(labels[top] == name) for name in "abc"]
        assert float(found[column]) == pytest.approx(max(shares))
    assert jnp.isnan(found[4])
    jitted = jax.jit(lambda X, y: recovery.semantic_consistency(X, y, top=10, n_labels=3))
    np.testing.assert_allclose(jitted(X, recovery.label_numbers(labels)), found)
    with pytest.raises(ValueError, match="one label a sample"):
        recovery.semantic_consistency(X, jnp.zeros(5, int))
    m = recovery.metric_from(X[:, :3], 2.0, proxy="consistency", labels=recovery.label_numbers(labels))
    assert m.shape == (3,)


def test_learned_weights_minimise_what_they_say():
    errors, temperature = jnp.array([0.1, 0.5, 0.9]), 0.4
    m = recovery.learned_metric(errors, temperature)
    value = lambda m: float(jnp.sum(m * errors + temperature * m * jnp.log(m)))  # noqa: E731
    for step in jax.random.normal(KEY, (10, 3)):
        moved = m * jnp.exp(0.1 * step)
        assert value(3 * moved / moved.sum()) > value(m)
    soft = -temperature * 3 * jnp.log(jnp.mean(jnp.exp(-errors / temperature)))
    assert value(m) == pytest.approx(float(soft))
    # Its gradient in the errors is m: descending with m held fixed descends this value.
    slope = jax.grad(lambda e: -temperature * 3 * jnp.log(jnp.mean(jnp.exp(-e / temperature))))(errors)
    np.testing.assert_allclose(slope, m, rtol=1e-12)


def test_metric_equals_rescaled_inputs_where_it_must():
    """A metric on the reconstruction is the plain loss of inputs times sqrt(m), decoder rows times sqrt(m)."""
    X, W, V = (
        jax.random.normal(key, shape)
        for key, shape in zip(jax.random.split(KEY, 3), [(20, 3), (5, 3), (5, 3)], strict=True)
    )
    m = jnp.array([0.3, 1.0, 4.0])
    weighted = recovery.reconstruction_loss(recovery.Autoencoder(W, V), X, metric=m)
    root = jnp.sqrt(m)
    plain = recovery.reconstruction_loss(recovery.Autoencoder(W / root, V * root), X * root)
    assert float(weighted) == pytest.approx(float(plain), rel=1e-12)


@pytest.fixture(scope="module", params=[pytest.param(c, marks=pytest.mark.slow) for c in CASES], ids=str)
def fitted(request):
    """A fit in a random positive metric, spread over a factor of ten."""
    offset, signed = request.param
    X = synthetic.independent(jax.random.key(3), 60, 4, 4, noise=0.02).X
    metric = jnp.exp(jax.random.uniform(KEY, (4,), minval=-1.15, maxval=1.15))
    problem = jd.Problem(lam=0.1, offset=offset, signed=signed, metric=metric)
    solution = jd.fit(problem, X, 4, key=KEY, tol=1e-10, solver=jd.solvers.QuasiNewton())
    return problem, solution, X


@pytest.mark.slow
def test_t4_curvature(fitted):
    problem, solution, X = fitted
    certificate = jd.certify(problem, solution.dictionary, solution.codes, X, curvature=True)
    assert float(certificate.curvature.eigenvalue) > -1e-9


def test_t1_t2_t12_certificate(fitted):
    problem, solution, X = fitted
    certificate = solution.certificate
    assert certificate.is_stationary(1e-9), solution.message()
    assert float(certificate.duality_gap.max) < 1e-12
    assert float(certificate.global_gap) > -1e-12
    codes = jd.encode(problem, solution.dictionary, X, tol=1e-13).codes
    np.testing.assert_allclose(codes, solution.codes, atol=1e-9)
    # T1 by hand: residual, metric, unit atoms.
    D, Z, m = solution.dictionary.atoms, solution.codes, problem.metric
    r = X - solution.dictionary.offset - Z @ D
    s = (m * r) @ D.T / problem.lam
    wrong = jnp.where(Z != 0, jnp.abs(jnp.sign(Z) - s), jnp.maximum((jnp.abs(s) if problem.signed else s) - 1, 0))
    assert float(wrong.max()) < 1e-8
    # The metric matters: the same point is far from stationary without it.
    plain = jd.Problem(lam=0.1, offset=problem.offset, signed=problem.signed)
    assert not jd.certify(plain, solution.dictionary, solution.codes, X).is_stationary(1e-2)


def test_t3_envelope(fitted):
    problem, solution, X = fitted
    step = 1e-4
    at = [
        float(jd.fit(jd.Problem(problem.lam + h, problem.offset, problem.signed, metric=problem.metric), X,
                     start=solution.dictionary, tol=1e-10, solver=jd.solvers.QuasiNewton()).objective)
        for h in (-step, step)
    ]  # fmt: skip
    slope = (at[1] - at[0]) / (2 * step)
    assert slope == pytest.approx(float(jnp.abs(solution.codes).sum(axis=1).mean()), rel=1e-4)


def test_t5_to_t9_conditions(fitted):
    problem, solution, X = fitted
    dictionary, codes = solution.dictionary, solution.codes
    live = np.asarray(jnp.mean(jnp.abs(codes), axis=0)) > 0
    assert live.any()
    assert np.abs(np.asarray(conditions.barycentre(problem, dictionary, codes, X)))[:, live].max() <= 1e-8  # T7, T8
    assert np.asarray(conditions.residual(problem, dictionary, codes, X).norm)[live].max() <= 1e-8  # T9
    if problem.signed:
        return
    assert np.nanmin(np.asarray(conditions.pairs(dictionary, codes, offset=problem.offset).margin)) >= -1e-9  # T6
    hull = conditions.hull(dictionary, codes, np.flatnonzero(live), offset=problem.offset)
    assert bool(hull.inside.all())  # T5
