"""C1 and C3: parents and children are found and nobody else is; absorption descends; the cosine law."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import hypergeom
from stationary_points import made_child, solve

import jaxdict as jd
from jaxdict.conditions import absorption_direction, hierarchy, pairs, predicted_cosine
from jaxdict.conditions.hierarchies import chance_evidence

DRAWS = 100


def planted(seed, n_samples=2000):
    """Eight independent features (.02 to .95), three parents with two children each (rho .2 to .7), four exclusive."""
    rng = np.random.default_rng(seed)
    fires = lambda p: rng.random(n_samples) < p  # noqa: E731
    independent = [fires(p) for p in (0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.95)]
    parents = [fires(p) for p in (0.05, 0.15, 0.3)]
    children = [parent & fires(rng.uniform(0.2, 0.7)) for parent in parents for _ in range(2)]
    turn = rng.integers(0, 8, size=n_samples)
    exclusive = [turn == k for k in range(4)]
    on = np.stack(independent + parents + children + exclusive, axis=1)
    edges = {(8 + k // 2, 11 + k) for k in range(6)}
    return jnp.asarray(on * rng.exponential(size=on.shape)), edges


def test_all_planted_pairs_and_no_others_in_a_hundred_draws():
    found = jax.jit(lambda codes: hierarchy(codes).flagged)
    for seed in range(DRAWS):
        codes, edges = planted(seed)
        flagged = set(zip(*np.nonzero(np.asarray(found(codes))), strict=True))
        assert {(int(i), int(j)) for i, j in flagged} == edges, seed


def test_the_evidence_bounds_the_exact_tail():
    """-log of the hypergeometric tail is never less than the evidence, on either side of chance."""
    samples, rng = 60, np.random.default_rng(0)
    for _ in range(200):
        first, second = rng.integers(1, samples, size=2)
        low, high = max(0, first + second - samples), min(first, second)
        b = int(rng.integers(low, high + 1))
        both = jnp.array([[first, b], [b, second]], float)
        tail = hypergeom(samples, first, second)
        for more, exact in ((True, tail.sf(b - 1)), (False, tail.cdf(b))):
            bound = float(chance_evidence(both, jnp.diagonal(both), samples, more=more)[0, 1])
            assert bound <= -math.log(exact) + 1e-9


def test_rho_and_q_by_hand_and_sparse_codes_and_weights_agree():
    codes = jnp.array([[1.0, 1.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    found = hierarchy(codes)
    assert float(found.q[0, 1]) == 0.5  # of feature 1's two samples feature 0 is on in one
    assert float(found.rho[0, 1]) == pytest.approx(1 / 3)
    assert not bool(found.flagged.any())
    without_misfire = hierarchy(codes, weights=jnp.array([1.0, 1, 1, 0, 1]))
    assert float(without_misfire.q[0, 1]) == 1
    codes, _ = planted(0)
    sparse = hierarchy(jd.sparse_codes(codes), n_atoms=21)
    np.testing.assert_array_equal(sparse.both, hierarchy(codes).both)


def test_candidates_are_ranked_by_rate():
    codes, edges = planted(1)
    atoms = np.random.default_rng(0).normal(size=(21, 8))
    rows = hierarchy(codes, dictionary=jd.Dictionary(jnp.asarray(atoms)), lam=0.1).candidates()
    assert {(row.parent, row.child) for row in rows} == edges
    assert [row.rate for row in rows] == sorted((row.rate for row in rows), reverse=True)


@pytest.mark.slow
def test_absorption_descends_at_its_rate(point):
    problem, dictionary, codes, X = point
    codes = made_child(codes)
    found = hierarchy(codes, dictionary=dictionary, lam=problem.lam, weights=problem.weights)
    assert float(found.q[0, 1]) == 1
    move = absorption_direction(dictionary, codes, 0, 1)
    slope = float(jd.directional_derivative(problem, dictionary, codes, X, move))
    assert slope == pytest.approx(-float(found.rate[0, 1]), abs=1e-10)
    violated = pairs(dictionary, codes, offset=problem.offset, weights=problem.weights).margin[0, 1]
    assert float(violated) == pytest.approx(-(1 - float(dictionary.atoms[0] @ dictionary.atoms[1])), abs=1e-12)
    assert slope < -1e-3


def law_by_hand(codes, lam, offset, varied):
    """C3 for the pair (0, 1), from probabilities and conditional means over the four cells."""
    z = np.asarray(codes)
    half = []
    for i, j in ((0, 1), (1, 0)):
        both, alone, neither = z[:, i] * z[:, j] > 0, (z[:, j] > 0) & (z[:, i] == 0), (z.max(axis=1) == 0)
        p11, p01, p00, p10 = both.mean(), alone.mean(), neither.mean(), ((z[:, i] > 0) & (z[:, j] == 0)).mean()
        c = z[z[:, j] > 0, j].mean()
        if not varied:
            half.append(lam * p11 / (p01 * c) if not offset else lam * (p11 * p00 - p10 * p01) / (p00 * p01 * c))
        elif not offset:
            half.append(lam * p11 / p01 * z[both, j].mean() / (z[alone, j] ** 2).mean())
        else:
            first, second = (z[:, j] * alone).mean(), (z[:, j] ** 2 * alone).mean()
            right = lam * np.array([p10 + p11, (z[:, j] * both).mean()])
            half.append(np.linalg.solve([[p00 + p01, first], [first, second]], right)[1])
    return sum(half)


def cells(seed, counts=(60, 30, 40, 70), spread=0.5):
    """Codes of two features with exact counts in the cells (neither, i only, j only, both)."""
    rng = np.random.default_rng(seed)
    on = np.repeat([[0, 0], [1, 0], [0, 1], [1, 1]], counts, axis=0)
    return on * (1 + spread * rng.exponential(size=on.shape))


@pytest.mark.parametrize("varied", [True, False])
@pytest.mark.parametrize("offset", [True, False])
def test_the_four_forms_of_the_cosine_law(offset, varied):
    codes = cells(0)
    found = predicted_cosine(jnp.asarray(codes), 0.02, offset=offset, varied=varied)
    assert float(found[0, 1]) == pytest.approx(law_by_hand(codes, 0.02, offset, varied), rel=1e-9)
    assert float(found[1, 0]) == pytest.approx(float(found[0, 1]), rel=1e-12)
    sparse = predicted_cosine(jd.sparse_codes(jnp.asarray(codes)), 0.02, offset=offset, varied=varied)
    np.testing.assert_allclose(sparse, found, rtol=1e-9)
    constant = functools.partial(predicted_cosine, jnp.asarray(cells(0, spread=0.0)), 0.02, offset=offset)
    np.testing.assert_allclose(constant(varied=True), constant(varied=False), rtol=1e-9)


@pytest.mark.parametrize("offset", [True, False])
@pytest.mark.parametrize("counts", [(60, 30, 40, 20), (60, 20, 30, 40), (60, 40, 40, 0)])
def test_the_cosine_law_against_solved_dictionaries(offset, counts):
    """Correlated features are drawn together, exclusive ones pushed apart (offset free), to second order in lam."""
    codes = cells(1, counts)
    lam = 0.01
    start = jd.Dictionary(jnp.eye(3)[:2])
    _, solved, _, _ = solve(jd.Problem(lam=lam, offset=offset), codes @ np.eye(3)[:2], 2, seed=0, start=start)
    cosine = float(solved.atoms[0] @ solved.atoms[1])
    predicted = float(predicted_cosine(jnp.asarray(codes), lam, offset=offset)[0, 1])
    assert cosine == pytest.approx(predicted, abs=2e-3)
    assert (predicted < 0) == (counts[3] == 0 and offset)


def test_the_cosine_law_diverges_for_a_child():
    codes = cells(0, (60, 30, 0, 20))
    assert float(predicted_cosine(jnp.asarray(codes), 0.01)[0, 1]) == np.inf
    assert bool(jnp.isnan(predicted_cosine(jnp.pad(jnp.asarray(codes), [(0, 0), (0, 1)]), 0.01)[0, 2]))


def test_negative_codes_are_refused():
    with pytest.raises(ValueError, match="codes >= 0"):
        hierarchy(-jnp.ones((3, 2)))
