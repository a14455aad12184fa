"""`Growing` in `fit`: as many atoms as T13 needs, no more than asked for; pieces of growth against brute force."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdict as jd
from jaxdict.solvers import Growing
from jaxdict.solvers.widening import worthwhile_atoms

KEY = jax.random.key(1)


def rays(seed, n_rays=5, d=4, n=100):
    return jd.synthetic.rays(jax.random.key(seed), n, n_rays, d)


def ends_at_one_atom_a_ray(seed):
    planted = rays(seed)
    problem = jd.Problem(lam=0.1, offset=False)
    found = jd.fit(problem, planted.X, key=KEY, solver=Growing(max_atoms=32))
    assert bool(found.certificate.is_globally_optimal(1e-6)), found.certificate.message()
    assert found.dictionary.atoms.shape[0] == 5
    limit = jd.wide.bound(planted.X, 0.1, offset=False)
    assert float(found.objective) == pytest.approx(float(limit.value), rel=1e-9)
    cosines = np.asarray(found.dictionary.atoms @ planted.dictionary.atoms.T)
    np.testing.assert_allclose(np.max(cosines, axis=0), 1, atol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_rays_are_given_one_atom_each(seed):
    ends_at_one_atom_a_ray(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3, 20))
def test_rays_of_more_draws_are_given_one_atom_each(seed):
    ends_at_one_atom_a_ray(seed)


@pytest.mark.parametrize("offset", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_in_general_position_every_row_beyond_lam_is_given_one(offset):
    X = jnp.asarray(np.random.default_rng(3).normal(size=(12, 3)))
    problem = jd.Problem(lam=0.3, offset=offset)
    found = jd.fit(problem, X, 6, key=KEY, solver=Growing(max_atoms=24), tol=1e-8)
    limit = jd.wide.bound(X, 0.3, offset=offset)
    assert float(found.objective) == pytest.approx(float(limit.value), rel=1e-6)
    assert found.dictionary.atoms.shape[0] == int(limit.n_rays)


@pytest.mark.slow
def test_max_atoms_holds_and_grown_is_no_worse_than_from_data():
    X = jnp.asarray(np.random.default_rng(4).normal(size=(120, 4)))
    problem = jd.Problem(lam=0.3)
    found = jd.fit(problem, X, key=KEY, solver=Growing(max_atoms=6, factor=3.0))
    plain = jd.fit(problem, X, 6, key=KEY)
    assert found.dictionary.atoms.shape == (6, 4)
    assert float(found.certificate.stationarity.worst) <= 1e-6
    assert float(found.objective) <= 1.02 * float(plain.objective)


@pytest.mark.slow
def test_it_goes_on_from_a_dictionary():
    planted = rays(0)
    start = jd.Dictionary(planted.dictionary.atoms[:3])
    problem = jd.Problem(lam=0.1, offset=False)
    found = jd.fit(problem, planted.X, start=start, key=KEY, solver=Growing(max_atoms=4))
    assert found.dictionary.atoms.shape == (4, 4)
    limit = float(found.objective)
    assert limit < float(jd.fit(problem, planted.X, start=start).objective)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"n_atoms": 9}, "max_atoms=4"),
        ({"key": None}, "key is not given"),
        ({"start": "random"}, "start='random' cannot go with Growing"),
        ({"start": jd.Dictionary(jnp.eye(6, 4)[:3]), "n_atoms": 2}, "start has 3 atoms"),
    ],
)
def test_what_cannot_be_is_refused(options, told):
    with pytest.raises(ValueError, match=told):
        jd.fit(jd.Problem(lam=0.1), rays(0).X, **({"key": KEY, "solver": Growing(max_atoms=4)} | options))


def test_settings_are_refused_and_so_are_programs():
    for settings, told in (
        ({"max_atoms": 0}, "max_atoms=0"),
        ({"max_atoms": 4, "factor": 1.0}, "factor=1.0"),
        ({"max_atoms": 4, "rough": -1.0}, "rough=-1.0"),
        ({"max_atoms": 4, "solver": Growing(max_atoms=2)}, "another Growing"),
    ):
        with pytest.raises(ValueError, match=told):
            Growing(**settings)
    problem, X = jd.Problem(lam=0.1), rays(0).X
    with pytest.raises(ValueError, match="not known under jit"):
        jax.jit(lambda X: jd.fit(problem, X, key=KEY, solver=Growing(max_atoms=4)).objective)(X)
    with pytest.raises(ValueError, match="runs of different widths"):
        jd.fit_batch(jd.Problem(lam=jnp.array([0.1])), X, 4, keys=KEY[None], solver=Growing(max_atoms=4))


def test_atoms_are_worth_what_their_absence_costs():
    X = jnp.asarray(np.random.default_rng(5).normal(size=(50, 4)))
    problem, atoms = jd.Problem(lam=0.5), np.random.default_rng(6).normal(size=(5, 4))
    atoms[3] = atoms[1] + 1e-4 * atoms[0]
    atoms[4] = 0.0
    atoms /= np.maximum(np.linalg.norm(atoms, axis=1, keepdims=True), 1e-300)
    atoms[4] = -np.sum(atoms, axis=0) / np.linalg.norm(np.sum(atoms, axis=0))
    dictionary = jd.Dictionary(jnp.asarray(atoms), jnp.zeros(4))
    codes = jd.encode(problem, dictionary, X, tol=1e-12).codes.at[:, 4].set(0)
    kept = worthwhile_atoms(problem, dictionary, codes, X)
    assert not kept[4]
    assert kept[1] != kept[3]
    assert kept[0]
    assert kept[2]
