"""T21 to T23: paths rebuilt in numpy, differences and scipy's minima, closed forms."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize_scalar

import jaxdict as jd
from jaxdict.conditions import flat_pairs, penalty_cosines, prefix_pairs
from jaxdict.problem import sparse_codes

EPS = np.finfo(float).eps
PARENT, CHILD = 1, 3


def nested_point(seed, n=60, k=5, d=4):
    """Random codes in which the child is on only where its parent is; unit atoms."""
    rng = np.random.default_rng(seed)
    Z = np.maximum(rng.normal(size=(n, k)), 0)
    Z[Z[:, PARENT] == 0, CHILD] = 0
    D = rng.normal(size=(k, d))
    D /= np.linalg.norm(D, axis=1, keepdims=True)
    b = 0.1 * rng.normal(size=d)
    return Z, D, b, Z @ D + b + 0.3 * rng.normal(size=(n, d))


def moved(Z, D, a):
    Z, D = Z.copy(), D.copy()
    Z[:, PARENT] += a * Z[:, CHILD]
    D[CHILD] -= a * D[PARENT]
    return Z, D


def cosine(D):
    return D[PARENT] @ D[CHILD] / np.linalg.norm(D[PARENT]) / np.linalg.norm(D[CHILD])


def asked(Z, D, b, **options):
    return flat_pairs(jd.Dictionary(jnp.asarray(D), jnp.asarray(b)), jnp.asarray(Z), PARENT, CHILD, **options)


@pytest.mark.parametrize("seed", range(3))
def test_along_the_flat_interval_nothing_changes_but_the_cosine(seed):
    Z, D, b, _ = nested_point(seed)
    found = asked(Z, D, b)
    assert float(found.share) == 1
    assert float(found.lowest) < 0
    for a in (0.999 * float(found.lowest), 0.5, 100.0):
        Z_a, D_a = moved(Z, D, a)
        # a hundred times as large numbers leave as many more roundings
        np.testing.assert_allclose(Z_a @ D_a, Z @ D, atol=64 * EPS * (1 + abs(a)) * np.abs(Z).max())
        assert np.array_equal(Z_a > 0, Z > 0)
    beyond, _ = moved(Z, D, 1.001 * float(found.lowest))
    assert beyond.min() < 0
    ends = [cosine(moved(Z, D, a)[1]) for a in (float(found.lowest), 1e6)]
    assert float(found.absorbed) == pytest.approx(ends[0], abs=1e-12)
    assert float(found.opposite) == pytest.approx(ends[1], abs=1e-9)  # an angle of 1e-6 has a cosine within 5e-13
    assert float(found.cosine) == pytest.approx(cosine(D), abs=1e-14)


def test_a_child_seen_without_its_parent_is_not_flat_unless_those_rows_do_not_count():
    Z, D, b, _ = nested_point(0)
    alone = np.flatnonzero(Z[:, PARENT] == 0)[:2]
    Z[alone, CHILD] = 1.0
    on = Z[:, CHILD] > 0
    found = asked(Z, D, b)
    assert float(found.share) == pytest.approx(1 - 2 / on.sum(), abs=1e-14)
    assert float(found.lowest) == 0
    assert float(found.absorbed) == pytest.approx(cosine(D), abs=1e-14)
    assert float(found.opposite) == pytest.approx(cosine(D), abs=1e-14)
    weights = np.ones(len(Z))
    weights[alone] = 0
    assert float(asked(Z, D, b, weights=jnp.asarray(weights)).lowest) < 0


def test_norms_sparse_codes_batches_and_dead_features():
    Z, D, b, _ = nested_point(1)
    Z[:, 0] = 0
    scale = np.array([1.0, 2.0, 1.0, 0.25, 3.0])
    ids = jnp.array([[PARENT, 2], [PARENT, 0]]), jnp.array([[CHILD, 4], [0, CHILD]])
    unit = flat_pairs(jd.Dictionary(jnp.asarray(D), jnp.asarray(b)), jnp.asarray(Z), *ids)
    scaled = flat_pairs(
        jd.Dictionary(jnp.asarray(D * scale[:, None]), jnp.asarray(b)), sparse_codes(jnp.asarray(Z / scale)), *ids
    )
    for one, other in zip(unit, scaled, strict=True):
        assert one.shape == (2, 2)
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-14)
        assert np.isnan(one[1]).all()
        assert np.isfinite(one[0]).all()


PREFIXES = (2, 3, 5)


def matryoshka(Z, D, b, X, weights=(1, 1, 1)):
    errors = [0.5 * np.mean(np.sum((X - b - Z[:, :p] @ D[:p]) ** 2, axis=1)) for p in PREFIXES]
    return float(np.dot(weights, errors))


@pytest.mark.parametrize("seed", range(2))
def test_matryoshka_loss_is_a_parabola_along_the_path(seed):
    Z, D, b, X = nested_point(seed)
    D *= np.array([1.0, 1.7, 1.0, 0.6, 1.0])[:, None]
    point = jd.Dictionary(jnp.asarray(D), jnp.asarray(b)), jnp.asarray(Z), jnp.asarray(X)
    found = prefix_pairs(*point, PREFIXES, PARENT, CHILD)
    loss = lambda a: matryoshka(*moved(Z, D, a), b, X)  # noqa: E731
    h = 1e-3
    # central differences of a parabola are exact but for rounding over the step
    assert float(found.slope) == pytest.approx((loss(h) - loss(-h)) / (2 * h), abs=1e-10)
    assert float(found.curvature) == pytest.approx((loss(h) - 2 * loss(0) + loss(-h)) / h**2, rel=1e-7)
    best = minimize_scalar(loss)
    assert float(found.step) == pytest.approx(best.x, abs=1e-6)
    assert float(found.gain) == pytest.approx(loss(0) - best.fun, rel=1e-9)
    sparse = prefix_pairs(point[0], sparse_codes(point[1]), point[2], PREFIXES, PARENT, CHILD)
    np.testing.assert_allclose(np.array(found), np.array(sparse), rtol=1e-12)


def test_prefixes_count_for_their_weights_and_the_slope_has_its_standard_error():
    Z, D, b, X = nested_point(3)
    point, v = (jd.Dictionary(jnp.asarray(D), jnp.asarray(b)), jnp.asarray(Z), jnp.asarray(X)), (0.5, 3.0, 2.0)
    found = prefix_pairs(*point, PREFIXES, PARENT, CHILD, prefix_weights=v)
    best = minimize_scalar(lambda a: matryoshka(*moved(Z, D, a), b, X, v))
    assert float(found.step) == pytest.approx(best.x, abs=1e-6)
    assert float(found.gain) == pytest.approx(matryoshka(Z, D, b, X, v) - best.fun, rel=1e-9)
    pulls = sum(
        w * Z[:, CHILD] * ((X - b - Z[:, :p] @ D[:p]) @ D[PARENT]) for w, p in zip(v[:2], PREFIXES[:2], strict=True)
    )
    assert float(found.slope) == pytest.approx(-pulls.mean(), rel=1e-12)
    assert float(found.slope_error) == pytest.approx(np.std(pulls, ddof=1) / np.sqrt(len(X)), rel=1e-12)
    for wrong in ((1.0,), (1.0, 0.0, 1.0), (1.0, np.nan, 1.0)):
        with pytest.raises(ValueError, match="do not fit 3 prefixes"):
            prefix_pairs(*point, PREFIXES, PARENT, CHILD, prefix_weights=wrong)


def test_weights_are_repeated_rows_and_one_prefix_determines_nothing():
    Z, D, b, X = nested_point(4)
    point = jd.Dictionary(jnp.asarray(D), jnp.asarray(b)), jnp.asarray(Z), jnp.asarray(X)
    times = np.arange(len(X)) % 3
    weighted = prefix_pairs(*point, PREFIXES, PARENT, CHILD, weights=jnp.asarray(times, float))
    repeated = prefix_pairs(
        point[0], *(jnp.asarray(np.repeat(rows, times, axis=0)) for rows in (Z, X)), PREFIXES, PARENT, CHILD
    )
    np.testing.assert_allclose(np.array(weighted)[:4], np.array(repeated)[:4], rtol=1e-11)
    whole = prefix_pairs(*point, (5,), PARENT, CHILD)
    assert [float(part) for part in whole] == [0, 0, 0, 0, 0]


@pytest.mark.parametrize("wrong", [(), (0, 3), (3, 2), (2, 6), (2, 2)])
def test_prefixes_that_make_no_sense(wrong):
    Z, D, b, X = nested_point(4)
    with pytest.raises(ValueError, match="prefixes"):
        prefix_pairs(jd.Dictionary(jnp.asarray(D), jnp.asarray(b)), jnp.asarray(Z), jnp.asarray(X), wrong, 0, 1)


def slope_of_power(z):
    return 0.5 * z**-0.5


@pytest.mark.parametrize(
    ("rho", "slope"),
    [(np.sqrt, slope_of_power), (np.log1p, lambda z: 1 / (1 + z))],
    ids=["square root", "logarithm"],
)
def test_a_nested_child_stays_where_the_penalty_is_flat_along_the_path(rho, slope):
    Z, D, b, _ = nested_point(2)
    Z[:, PARENT] += 6 * (Z[:, PARENT] > 0)  # a strong parent: both ends of the path are far

    def penalty(a):
        Z_a, D_a = moved(Z, D, a)
        return np.sum(np.mean(rho(np.maximum(Z_a, 0) * np.linalg.norm(D_a, axis=1)), axis=0))

    steps = np.linspace(-1.5, 1.5, 301)
    at = int(np.argmin([penalty(a) for a in steps]))
    assert 0 < at < len(steps) - 1  # a minimum inside: the pair stays
    best = minimize_scalar(penalty, bounds=(steps[at - 1], steps[at + 1]), method="bounded", options={"xatol": 1e-10})
    Z_a, D_a = moved(Z, D, best.x)
    found = penalty_cosines(jd.Dictionary(jnp.asarray(D_a), jnp.asarray(b)), jnp.asarray(Z_a), slope, PARENT, CHILD)
    # at a minimum found to 1e-8 (half the digits of its value) the law holds to about as much
    assert float(found) == pytest.approx(cosine(D_a), abs=1e-6)


def test_an_l1_penalty_merges_and_a_child_without_its_parent_has_no_law():
    Z, D, b, _ = nested_point(2)
    point = jd.Dictionary(jnp.asarray(D), jnp.asarray(b)), jnp.asarray(Z)
    assert float(penalty_cosines(*point, jnp.ones_like, PARENT, CHILD)) == pytest.approx(1, abs=8 * EPS)
    assert np.isnan(float(penalty_cosines(*point, jnp.ones_like, CHILD, PARENT)))
