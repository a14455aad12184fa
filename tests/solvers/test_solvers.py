"""One contract over every solver: descent, agreement with the certificate, options that are noticed."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdict as jd
from jaxdict.solvers.alternating import update_dictionary
from jaxdict.solvers.reduced import first_point
from jaxdict.solvers.rescue import revive
from jaxdict.solvers.starts import _median, start_dictionary

X = jax.random.normal(jax.random.key(0), (60, 5), jnp.float64)
PROBLEM = jd.Problem(lam=0.4)
SOLVERS = {
    "alternating": jd.solvers.Alternating(),
    "quasi_newton": jd.solvers.QuasiNewton(),
    "newton": jd.solvers.Newton(),
    "projected_gradient": jd.solvers.ProjectedGradient(),
    "combined": jd.solvers.Combined(),
}


@pytest.mark.parametrize("name", SOLVERS)
def test_descends_and_tells_the_truth(name):
    seen = []
    tol = 1e-3 if name == "alternating" else 1e-6  # alternating steps are slow at the end
    solution = jd.fit(
        PROBLEM, X, 7, key=jax.random.key(1), solver=SOLVERS[name], tol=tol, max_steps=400, callback=seen.append
    )
    steps = int(solution.steps)
    values = np.asarray(solution.history.objective)
    assert values.shape == solution.history.stationarity.shape == (steps,)
    assert np.all(np.diff(values) <= 1e-12)  # each step descends, or stays, up to rounding of numbers of order 1
    certificate = jd.certify(PROBLEM, solution.dictionary, solution.codes, X)
    np.testing.assert_allclose(certificate.stationarity.worst, solution.certificate.stationarity.worst, rtol=1e-9)
    np.testing.assert_allclose(values[-1], certificate.objective, rtol=1e-12)
    if name != "projected_gradient":
        assert int(solution.status) == 0
        assert float(certificate.stationarity.worst) <= tol
    assert len(seen) == steps
    assert sorted(p.step for p in seen) == list(range(1, steps + 1))


def test_projected_gradient_gets_there_too():
    # The joint method needs many steps but no inner solves; on a small problem it reaches the same kind of point.
    solution = jd.fit(
        PROBLEM, X, 7, key=jax.random.key(1), solver=SOLVERS["projected_gradient"], tol=1e-5, max_steps=20_000
    )
    assert int(solution.status) == 0, solution.message()
    assert float(solution.certificate.stationarity.worst) <= 1e-5


def test_acceleration_matters():
    def worst(acceleration):
        solver = jd.solvers.ProjectedGradient(acceleration=acceleration)
        return jd.fit(PROBLEM, X, 7, key=jax.random.key(1), solver=solver, tol=1e-9, max_steps=400).objective

    assert float(worst(True)) < float(worst(False))


@pytest.mark.slow
def test_memory_matters():
    def steps(memory):
        solver = jd.solvers.Combined(second=jd.solvers.QuasiNewton(memory=memory))
        return int(jd.fit(PROBLEM, X, 7, key=jax.random.key(1), solver=solver, tol=1e-9).steps)

    assert steps(40) < steps(1)


def test_first_steps_and_switch_are_noticed():
    def stages(**options):
        seen = []
        solver = jd.solvers.Combined(second=jd.solvers.Alternating(sweeps=2), **options)
        jd.fit(PROBLEM, X, 7, key=jax.random.key(1), solver=solver, callback=seen.append, max_steps=8)
        return [p.objective for p in sorted(seen, key=lambda p: p.step)]

    few, more = stages(first_steps=2, switch=0.0), stages(first_steps=4, switch=0.0)
    assert few[:2] == more[:2]  # both alternate with one sweep, then the second stage takes over at its own step
    assert few[2] != more[2]
    assert stages(first_steps=4, switch=1e9)[0] != more[0]  # the switch lets no first step happen


def test_one_atom_update_is_the_exact_minimiser():
    # One sample, one atom, no offset: min over unit d of 1/2 ||x - z d||^2 is d = x / ||x||.
    problem = jd.Problem(lam=0.1, offset=False)
    x = jnp.array([[3.0, 4.0]])
    new = update_dictionary(problem, x, jd.Dictionary(jnp.array([[1.0, 0.0]]), jnp.zeros(2)), jnp.array([[2.0]]))
    np.testing.assert_allclose(new.atoms, [[0.6, 0.8]], atol=1e-15)


def test_atom_updates_under_a_metric_descend_and_rest_where_slopes_vanish():
    # Majorised by the metric's largest entry: no sweep may rise, and what no sweep moves has no slope along the sphere.
    metric = jnp.array([0.2, 1.0, 5.0, 2.0, 0.5])
    problem = jd.Problem(lam=0.4, metric=metric)
    at = start_dictionary(problem, X, 7, jax.random.key(3))
    codes = jd.encode(problem, at, X, tol=1e-10).codes
    values = [float(jd.objective(problem, at, codes, X))]
    step = jax.jit(lambda at, sweeps: update_dictionary(problem, X, at, codes, sweeps))
    for sweeps in (1, 1, 1, 1, 10_000):
        at = step(at, sweeps)
        values.append(float(jd.objective(problem, at, codes, X)))
    assert np.all(np.diff(values) <= 1e-13)
    assert values[-1] < values[0] - 1e-3
    pull = codes.T @ (metric * (X - at.offset - codes @ at.atoms)) / len(X)
    across = pull - jnp.sum(pull * at.atoms, axis=1, keepdims=True) * at.atoms
    np.testing.assert_allclose(across, 0, atol=1e-6)
    np.testing.assert_allclose(jnp.mean(X - codes @ at.atoms, axis=0), at.offset, atol=1e-12)


@pytest.mark.slow
def test_a_joint_step_is_the_proximal_one_with_signs_and_weights():
    # One step from the start of the stage, by hand: codes' soft threshold is w_n lam over their own curvature w_n lambda_max(D D^T).
    weights = jnp.asarray(np.tile([0.5, 1.0, 3.0], 20))
    problem = jd.Problem(lam=0.4, signed=True, weights=weights, offset=False)
    atoms = jnp.linalg.qr(jax.random.normal(jax.random.key(5), (5, 5)))[0][:3]
    solver, dictionary = jd.solvers.ProjectedGradient(), jd.Dictionary(atoms, jnp.zeros(5))
    point, codes = first_point(problem, X, dictionary, 6)
    size, codes = 0.01, codes + 0.3  # so short a step is accepted
    state = solver.init_at(problem, X, point, codes)
    state = eqx.tree_at(lambda s: (s.size, s.objective), state, (jnp.asarray(size), jnp.asarray(jnp.inf)))
    after = jax.jit(lambda state: solver.step(problem, X, state))(state)
    ahead = codes + size * (X - codes @ atoms) @ atoms.T
    expected = jnp.sign(ahead) * jnp.maximum(jnp.abs(ahead) - 0.4 * size, 0)
    np.testing.assert_allclose(after.here.codes, expected, atol=1e-9)


def test_sweeps_are_noticed():
    point = start_dictionary(PROBLEM, X, 7, jax.random.key(3))
    codes = jd.encode(PROBLEM, point, X).codes
    values = [float(jd.objective(PROBLEM, update_dictionary(PROBLEM, X, point, codes, n), codes, X)) for n in (1, 5)]
    assert values[1] < values[0]


@pytest.mark.slow
def test_dead_atoms_are_reborn_where_that_helps():
    away = jnp.concatenate([jnp.eye(5)[:3], jnp.tile(-jnp.ones((1, 5)) / 5**0.5, (2, 1))])
    data = jnp.abs(X) @ jnp.diag(jnp.array([1.0, 1, 1, 3, 3]))
    problem = jd.Problem(lam=0.4, offset=False)
    start = jd.Dictionary(away, jnp.zeros(5))
    before, codes = first_point(problem, data, start, 5)
    assert int(jnp.sum(before.mean_codes == 0)) == 2
    after, _ = revive(problem, data, before, codes)
    assert int(jnp.sum(after.mean_codes == 0)) == 0
    assert float(after.objective) < float(before.objective)
    solution = jd.fit(problem, data, start=start, solver=SOLVERS["quasi_newton"])
    assert int(solution.certificate.n_dead) == 0
    assert int(solution.status) == 0


@pytest.mark.slow
def test_a_dead_atom_with_nothing_to_do_is_reported():
    # Two rays from the origin need two atoms (T13): the third stays dead, and the point is globally optimal.
    rays = jnp.array([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 3.0]])
    start = jd.Dictionary(jnp.array([[1.0, 0.1], [0.1, 1.0], [-1.0, -1.0]]))
    solution = jd.fit(jd.Problem(lam=0.1, offset=False), rays, start=start, solver=SOLVERS["quasi_newton"])
    assert int(solution.status) == 0
    assert int(solution.certificate.n_dead) == 1
    assert bool(solution.certificate.is_globally_optimal())
    assert "dead" in solution.certificate.message()


@pytest.mark.parametrize("start", ["data", "random"])
def test_start_by_key(start):
    one, same, other = (start_dictionary(PROBLEM, X, 7, jax.random.key(k), start) for k in (0, 0, 1))
    assert jnp.array_equal(one.atoms, same.atoms)
    assert not jnp.array_equal(one.atoms, other.atoms)
    np.testing.assert_allclose(jnp.linalg.norm(one.atoms, axis=1), 1, rtol=1e-14)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("n", [1, 2, 9, 40])
def test_medians_are_the_lower_ones_of_what_counts(n, dtype):
    rng = np.random.default_rng(n)
    values = rng.normal(size=(n, 7)).astype(dtype) * 10.0 ** rng.integers(-30, 30, 7).astype(dtype)
    values[:, 1], values[0, 2], values[-1, 3] = 0, np.inf, -np.inf
    counted = rng.random(n) < 0.7
    counted[0] = True
    ordered = np.sort(values[counted], axis=0)
    found = jax.jit(_median)(jnp.asarray(values), jnp.asarray(counted))
    np.testing.assert_array_equal(found, ordered[(counted.sum() - 1) // 2])


def test_data_start_avoids_repeated_directions():
    rows = jnp.concatenate([jnp.eye(4), 2 * jnp.eye(4), jnp.zeros((4, 4))])
    atoms = start_dictionary(jd.Problem(lam=0.1, offset=False), rows, 4, jax.random.key(0)).atoms
    np.testing.assert_allclose(jnp.sort(jnp.argmax(atoms, axis=1)), np.arange(4))


@pytest.mark.parametrize("name", ["combined", pytest.param("projected_gradient", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"offset": False}, marks=pytest.mark.slow),
        pytest.param({"signed": True}, marks=pytest.mark.slow),
        pytest.param({"gauge": "penalised"}, marks=pytest.mark.slow),
        {"metric": [0.5, 1, 2, 1, 0.7], "weights": [0.0, 1.0, 2.0] * 20},
    ],
    ids=lambda o: next(iter(o)),
)
def test_every_variant_of_the_problem(name, options):
    problem = jd.Problem(lam=0.4, **options)
    tol = 1e-6 if name == "combined" else 1e-3
    solution = jd.fit(problem, X, 7, key=jax.random.key(2), solver=SOLVERS[name], tol=tol, max_steps=4000)
    assert float(solution.certificate.stationarity.worst) <= tol, solution.message()
    np.testing.assert_allclose(
        solution.objective, jd.objective(problem, solution.dictionary, solution.codes, X), rtol=1e-12
    )
    if "offset" in options:
        assert not np.any(solution.dictionary.offset)
    if "signed" in options:
        assert bool(jnp.any(solution.codes < 0))
