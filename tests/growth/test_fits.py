"""A width's fit without a certificate says what the certificate would, and a first width is grown into."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdict as jd
from jaxdict.growth import path, rows
from jaxdict.growth.fits import Point, fitted, fullest
from jaxdict.problem import SparseCodes, sparse_codes

LUCK = np.random.default_rng(0)
X = jnp.asarray(LUCK.normal(size=(40, 5)))
ATOMS = jnp.asarray(LUCK.normal(size=(4, 5)))
DICTIONARY = jd.Dictionary(ATOMS / jnp.linalg.norm(ATOMS, axis=1, keepdims=True), jnp.zeros(5))


@pytest.mark.parametrize("size", [1.0, 2.0**100])
def test_numbers_are_the_certificates(size):
    problem = jd.Problem(lam=0.4 * size, weights=jnp.linspace(0.5, 1.5, 40))
    data, dictionary = size * X, jd.Dictionary(DICTIONARY.atoms, size * jnp.ones(5) / 8)
    codes = sparse_codes(jd.encode(problem, dictionary, data, sparse=True).codes)
    found, proved = fitted(problem, dictionary, codes, data, 1e-3), jd.certify(problem, dictionary, codes, data)
    assert found.objective == pytest.approx(float(proved.objective), rel=1e-12)
    assert found.stationarity == pytest.approx(float(proved.stationarity.worst), rel=1e-10)
    assert found.residual_ratio == pytest.approx(float(proved.max_residual_ratio), rel=1e-12)
    assert not found.is_global
    assert found.worthwhile.all()


def test_what_t13_proves_is_told_as_the_certificate_tells_it():
    problem, data = jd.Problem(lam=0.5, offset=False), jnp.array([[2.0, 0.0], [0.0, 1.0]])
    eye = jd.Dictionary(jnp.eye(2), jnp.zeros(2))
    for values in (jnp.array([[1.5], [0.5]]), jnp.array([[1.5], [0.4]])):
        codes = SparseCodes(jnp.array([[0], [1]]), values)
        found, proved = fitted(problem, eye, codes, data, 1e-6), jd.certify(problem, eye, codes, data)
        assert found.is_global == bool(proved.is_globally_optimal(1e-6)) == (float(values[1, 0]) == 0.5)


def test_the_fullest_row_counts_values_in_use():
    assert fullest(SparseCodes(jnp.zeros((2, 3), int), jnp.array([[1.0, 0.0, -2.0], [0.0, 0.0, 3.0]]))) == 2


def test_codes_of_atoms_that_nothing_uses_are_renumbered():
    codes = SparseCodes(jnp.array([[0, 2], [2, 3]]), jnp.array([[1.0, 2.0], [3.0, 0.0]]))
    eye, kept = jnp.eye(4), np.array([True, False, True, False])
    run = SimpleNamespace(ground=SimpleNamespace(look=eye, n=4, codes=None))
    given = path.Fitted(jd.Dictionary(eye), codes, 1.0, 0.1, 2.0, False, kept, 1.0)
    fewer = path.GrowthRun._without(run, given, kept, 0.1)
    assert fewer.dictionary.atoms.tolist() == eye[kept].tolist()
    assert fewer.codes.indices.tolist()[0] == [0, 1]
    assert fewer.codes.indices[1, 0] == 1
    assert fewer.codes.values.tolist() == codes.values.tolist()


@pytest.mark.slow
def test_a_large_first_width_is_grown_into(monkeypatch):
    seen = []

    def fit(problem, X, start, before, **options):
        """No better dictionary, for a test's time, and one code a row."""
        seen.append((start.atoms.shape[0], options["tol"], before is None))
        place = jnp.arange(len(X))[:, None] % start.atoms.shape[0]
        return Point(start, SparseCodes(place.astype(jnp.int32), jnp.ones((len(X), 1))))

    def widened(problem, dictionary, codes, X, count, key, objective=None):
        old = jnp.zeros((0, 5)) if dictionary is None else dictionary.atoms
        whole = jnp.concatenate([old, jnp.eye(5)[len(old) : len(old) + count]])
        return path.Widened(jd.Dictionary(whole, jnp.zeros(5)), 0.25, count)

    monkeypatch.setattr(path, "widened", widened)
    monkeypatch.setattr(path, "GROWN_INTO", 4)
    monkeypatch.setattr(rows, "fit_point", fit)
    grown = jd.grow(jd.Problem(lam=0.5), X, (4,), key=jax.random.key(0), held_out=0, tol=0.1, rough=0.5)
    assert seen == [(1, 0.5, True), (2, 0.5, False), (4, 0.1, False)]
    assert grown.widths == [4]
    assert grown.tree.roots() == [0, 1, 2, 3]
    assert grown.steps[0].born == 4
    assert grown.steps[0].birth_gain == 0.75
    seen.clear()
    jd.grow(jd.Problem(lam=0.5), X, (3,), key=jax.random.key(0), held_out=0, tol=0.1)
    assert [width for width, _, _ in seen] == [3]
