"""Planted data are what they say: reproducible by key, X = b + Z D, rates as asked, structure exact; jit and float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdict as jd
from jaxdict import synthetic

GENERATORS = [
    synthetic.independent,
    synthetic.hierarchy,
    synthetic.dog_labrador,
    synthetic.exclusive,
    synthetic.correlated,
    synthetic.dense_direction,
    synthetic.rays,
    synthetic.one_dimensional,
    synthetic.superposition,
    synthetic.illustrative,
]
KEY = jax.random.key(0)
parametrize = pytest.mark.parametrize("make", GENERATORS, ids=lambda make: make.__name__)


@parametrize
def test_same_key_same_data_with_and_without_jit(make):
    first, again = make(KEY, 30), jax.jit(functools.partial(make, n_samples=30))(KEY)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-9), first, again)
    assert first.says == again.says
    assert not np.array_equal(first.X, make(jax.random.key(1), 30).X)


@parametrize
def test_data_are_codes_times_unit_atoms(make):
    planted = make(KEY, 30)
    np.testing.assert_allclose(jd.residual(planted.dictionary, planted.codes, planted.X), 0, atol=1e-12)
    np.testing.assert_allclose(jnp.linalg.norm(planted.dictionary.atoms, axis=1), 1, atol=1e-12)
    assert (planted.codes >= 0).all()
    assert planted.parents.shape == planted.groups.shape == planted.codes.shape[1:]


def test_a_tree_has_the_rates_asked_for():
    planted = synthetic.hierarchy(KEY, 20000, parents=(-1, 0, 1), frequency=0.4, rho=0.5, q=0.8)
    on = np.asarray(planted.codes > 0)
    for parent, child in planted.pairs():
        both = (on[:, parent] & on[:, child]).mean()
        assert both / on[:, parent].mean() == pytest.approx(0.5, abs=0.02)
        assert both / on[:, child].mean() == pytest.approx(0.8, abs=0.02)


def test_planted_pairs_and_groups_are_found_by_the_conditions():
    tree = synthetic.hierarchy(KEY, 2000, parents=synthetic.tree(2, 2, 1), rho=0.4)
    assert {(row.parent, row.child) for row in jd.conditions.hierarchy(tree.codes).candidates()} == set(tree.pairs())
    turns = synthetic.exclusive(KEY, 2000, 2, 3)
    same = np.asarray(turns.groups)[:, None] == np.asarray(turns.groups)
    np.testing.assert_array_equal(jd.conditions.exclusive(turns.codes).flagged, same & ~np.eye(6, dtype=bool))


@pytest.mark.parametrize("magnitudes", synthetic.MAGNITUDES)
def test_magnitudes_have_mean_scale(magnitudes):
    codes = synthetic.independent(KEY, 20000, 2, magnitudes=magnitudes, scale=3.0).codes
    assert float(codes[codes > 0].mean()) == pytest.approx(3.0, rel=0.03)


def test_spread_atoms_come_near_welchs_bound():
    found = synthetic.coherence(synthetic.superposition(KEY, 10, 6, 3).dictionary)
    assert 0.4472 - 1e-4 <= float(found) < 0.5


@pytest.mark.parametrize(
    ("make", "options", "says"),
    [
        (synthetic.independent, {"frequency": 1.5}, "frequency"),
        (synthetic.independent, {"magnitudes": "huge"}, "magnitudes"),
        (synthetic.hierarchy, {"parents": (1, -1)}, "parents"),
        (synthetic.hierarchy, {"frequency": 0.9, "rho": 0.9, "q": 0.2}, "probability"),
        (synthetic.superposition, {"n_atoms": 2}, "n_atoms"),
        (synthetic.one_dimensional, {"shape": "round"}, "shape"),
        (synthetic.illustrative, {"missing": "all"}, "missing"),
    ],
)
def test_what_makes_no_sense_is_refused(make, options, says):
    with pytest.raises(ValueError, match=says):
        make(KEY, 10, **options)
