"""Fits end to end: real and planted data, batches, precision, devices. The independent judge is tests/reference/certificate.py."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from certificate import certificate as independent
from sklearn.datasets import load_digits

import jaxdict as jd
from jaxdict.encoding import engines


@pytest.fixture(scope="module")
def digits():
    X = load_digits().data / 16
    X = X - X.mean(0)
    return X / np.sqrt((X**2).sum(1).mean())


def planted_synthetic(key, n=2000, d=32, k=64, active=4, noise=0.02):
    keys = jax.random.split(key, 4)
    D = jax.random.normal(keys[0], (k, d))
    D = D / jnp.linalg.norm(D, axis=1, keepdims=True)
    order = jax.vmap(lambda key: jax.random.permutation(key, k))(jax.random.split(keys[1], n))
    Z = jnp.where(order < active, jax.random.uniform(keys[2], (n, k), minval=0.5, maxval=1.5), 0)
    return Z @ D + noise * jax.random.normal(keys[3], (n, d)), D


def assert_agrees(solution, X, lam):
    # Both sum the same terms in float64 in another order: rounding is that of the largest sample's share, whatever the mean.
    largest = float(np.max(np.sum(np.asarray(X) ** 2, axis=1)))
    rounding = 64 * np.finfo(float).eps * max(1.0, largest)
    told = solution.certificate
    truth = independent(X, solution.dictionary.atoms, solution.codes, solution.dictionary.offset, lam)
    for block in ("codes", "atoms", "offset", "worst"):
        assert abs(float(getattr(told.stationarity, block)) - truth[block]) <= 1e-9
    assert abs(float(told.objective) - truth["objective"]) <= rounding
    # The reference's gap is a difference of two such values, ours a sum of small terms.
    assert abs(float(told.duality_gap.mean) - truth["gap"]) <= rounding


@pytest.mark.slow
def test_digits_in_part(digits):
    solution = jd.fit(jd.Problem(lam=0.1), digits[:250], 30, key=jax.random.key(0), tol=1e-6)
    assert int(solution.status) == 0
    assert float(solution.certificate.stationarity.worst) <= 1e-6
    assert_agrees(solution, digits[:250], 0.1)


@pytest.mark.slow
def test_digits_five_keys(digits):
    solutions = [jd.fit(jd.Problem(lam=0.1), digits, 100, key=jax.random.key(k), tol=1e-6) for k in range(5)]
    for solution in solutions:
        assert float(solution.certificate.stationarity.worst) <= 1e-6
        assert_agrees(solution, digits, 0.1)
    assert np.mean([float(solution.objective) for solution in solutions]) <= 0.1724


@pytest.mark.slow
def test_synthetic_to_1e_8():
    X, _ = planted_synthetic(jax.random.key(0))
    solution = jd.fit(jd.Problem(lam=0.1), X, 64, key=jax.random.key(1), tol=1e-8)
    assert float(solution.certificate.stationarity.worst) <= 1e-8
    assert_agrees(solution, X, 0.1)


def test_planted_dictionary_is_found():
    X, D = planted_synthetic(jax.random.key(0), n=600, d=8, k=10, active=2)
    solution = jd.fit(jd.Problem(lam=0.02, offset=False), X, 10, start=jd.Dictionary(D), tol=1e-8)
    assert float(solution.certificate.stationarity.worst) <= 1e-8
    # At lam and noise of 2% of the codes the optimum next to the truth keeps each atom's direction.
    assert float(jnp.min(jnp.max(D @ solution.dictionary.atoms.T, axis=1))) > 0.98


def planted_hierarchy(n=400):
    rng = np.random.default_rng(0)
    parent = rng.uniform(size=n) < 0.5
    child = parent & (rng.uniform(size=n) < 0.4)
    other = rng.uniform(size=n) < 0.3
    Z = np.stack([parent, child, other], 1) * rng.uniform(0.5, 1.5, (n, 3))
    D = np.eye(4)[:3]
    return Z @ D, jd.Dictionary(D, jnp.zeros(4))


@pytest.mark.slow
def test_hierarchy_is_refuted_and_left():
    X, truth = planted_hierarchy()
    problem = jd.Problem(lam=0.05, offset=False)
    codes = jd.encode(problem, truth, X, tol=1e-13).codes
    seen = jd.certify(problem, truth, codes, X)
    assert float(seen.stationarity.worst) > 1e-2
    assert not bool(seen.is_stationary())
    assert "Not stationary" in seen.message()
    # C1: the child absorbs the parent (d_child gains along d_parent) and the parent leaves the child's samples.
    direction = jd.steepest_feasible_direction(problem, truth, codes, X)
    assert float(direction.atoms[1] @ truth.atoms[0]) > 0
    assert float(seen.directional_derivative) < 0
    solution = jd.fit(problem, X, start=truth, tol=1e-9)
    assert float(solution.certificate.stationarity.worst) <= 1e-9
    assert float(solution.objective) < float(seen.objective)
    assert float(solution.dictionary.atoms[1] @ truth.atoms[0]) > 0.1


def planted_saddle(n=200):
    """Two directions, two identical atoms between them with equal codes: symmetric, so first-order stationary, but not minimal."""
    rng = np.random.default_rng(0)
    side = np.where(np.arange(n) % 2 == 0, 1.0, -1.0)
    size = np.repeat(rng.uniform(1, 2, n // 2), 2)
    X = size[:, None] * np.stack([np.ones(n), 0.8 * side], 1)
    middle = np.array([[1.0, 0.0], [1.0, 0.0]])
    return X, jd.Dictionary(middle, jnp.zeros(2))


@pytest.mark.slow
def test_saddle_is_refuted_by_curvature_and_left():
    X, twins = planted_saddle()
    problem = jd.Problem(lam=0.2, offset=False)
    one = jd.encode(problem, jd.Dictionary(twins.atoms[:1], twins.offset), X, tol=1e-13).codes
    halves = jnp.concatenate([one, one], axis=1) / 2
    seen = jd.certify(problem, twins, halves, X, curvature=True)
    assert float(seen.stationarity.worst) <= 1e-9
    assert float(seen.curvature.eigenvalue) < -1e-3
    solution = jd.fit(problem, X, start=twins, tol=1e-9, second_order=True)
    assert int(solution.status) == 0, solution.message()
    assert float(solution.certificate.stationarity.worst) <= 1e-9
    assert float(solution.certificate.curvature.eigenvalue) > 0
    assert float(solution.objective) < 0.9 * float(seen.objective)
    assert abs(float(solution.dictionary.atoms[0] @ solution.dictionary.atoms[1])) < 0.9


@pytest.mark.slow
def test_saddle_is_kept_without_the_option(monkeypatch):
    X, twins = planted_saddle()
    problem = jd.Problem(lam=0.2, offset=False)
    solution = jd.fit(problem, X, start=twins, tol=1e-9, second_order=True)
    # The numba kernels share codes unevenly between twins, which leaves this saddle by itself; plain JAX keeps the symmetry.
    monkeypatch.setattr(engines, "kernels", lambda: None)
    jax.clear_caches()
    stays = jd.fit(problem, X, start=twins, tol=1e-9)
    jax.clear_caches()
    assert float(stays.objective) > float(solution.objective) + 1e-3  # without the option the saddle is kept


@pytest.mark.slow
def test_one_dimensional_data_end_at_the_antipodal_pair():
    x = jax.random.normal(jax.random.key(0), (100, 1)) + 0.3
    solution = jd.fit(jd.Problem(lam=0.2), x, 2, start=jd.Dictionary(jnp.array([[1.0], [-1.0]])), tol=1e-12)
    assert abs(float(solution.certificate.global_gap)) <= 1e-12
    np.testing.assert_allclose(sorted(solution.dictionary.atoms[:, 0]), [-1, 1])


def test_as_many_atoms_as_samples_reach_the_wide_bound():
    # T13: one atom for each sample suffices. No offset: the samples' own directions are optimal.
    for seed in range(3):
        X = jax.random.normal(jax.random.key(seed), (8, 4))
        solution = jd.fit(jd.Problem(lam=0.3, offset=False), X, 8, key=jax.random.key(seed), tol=1e-9)
        assert float(solution.certificate.global_gap) + 1e-12 >= 0
        assert float(solution.certificate.global_gap) <= 1e-6


@pytest.mark.slow
def test_batch_is_one_program_and_equals_single_runs():
    X = jax.random.normal(jax.random.key(0), (60, 5))
    lams, n_keys = jnp.array([0.3, 0.5, 0.7, 0.9]), 4
    lam, keys = jnp.repeat(lams, n_keys), jnp.tile(jax.random.split(jax.random.key(1), n_keys), 4)
    solver = jd.solvers.QuasiNewton()  # one stage compiles faster than three
    before = jd.fitting._solve_batch._cache_size()
    runs = jd.fit_batch(jd.Problem(lam=lam), X, 6, keys=keys, tol=1e-8, solver=solver, max_steps=2000)
    again = jd.fit_batch(jd.Problem(lam=lam + 0.01), X, 6, keys=keys, tol=1e-1, solver=solver, max_steps=2000)
    assert jd.fitting._solve_batch._cache_size() == before + 1
    assert runs.objective.shape == again.objective.shape == (16,)
    assert np.all(np.asarray(runs.status) == 0)
    assert float(jnp.max(runs.certificate.stationarity.worst)) <= 1e-8
    for i in (0, 6, 15):
        alone = jd.fit(jd.Problem(lam=lam[i]), X, 6, key=keys[i], tol=1e-8, solver=solver, max_steps=2000)
        # The same program up to the order of sums inside batched products: both end within 1e-8 of the same stationary point.
        np.testing.assert_allclose(alone.objective, runs.objective[i], rtol=1e-10)
        np.testing.assert_allclose(alone.dictionary.atoms, runs.dictionary.atoms[i], atol=1e-5)


ROUGH = {"solver": jd.solvers.Alternating(), "tol": 1e-2}  # compiles fast, where the solver does not matter


@pytest.mark.slow
def test_one_bad_run_leaves_the_others_untouched():
    X = jax.random.normal(jax.random.key(0), (60, 5))
    keys = jax.random.split(jax.random.key(1), 4)
    good = jd.fit_batch([jd.Problem(lam=v) for v in (0.3, 0.5, 0.7, 0.9)], X, 6, keys=keys, **ROUGH)
    mixed = jd.fit_batch([jd.Problem(lam=v) for v in (0.3, float("nan"), 0.7, 1e6)], X, 6, keys=keys, **ROUGH)
    assert mixed.status.tolist() == [0, 3, 0, 5]
    for i in (0, 2):
        np.testing.assert_array_equal(mixed.dictionary.atoms[i], good.dictionary.atoms[i])
        np.testing.assert_array_equal(mixed.codes[i], good.codes[i])


@pytest.mark.slow
def test_one_bad_data_set_leaves_the_others_untouched():
    X = jax.random.normal(jax.random.key(0), (60, 5))
    data = jnp.stack([X, X.at[3, 2].set(jnp.nan)])
    by_data = jd.fit_batch(jd.Problem(lam=0.5), data, 6, keys=jax.random.split(jax.random.key(1)), **ROUGH)
    assert by_data.status.tolist() == [0, 3]


@pytest.mark.slow
def test_problems_whose_lam_is_a_python_number():
    X, keys = jax.random.normal(jax.random.key(0), (60, 5)), jax.random.split(jax.random.key(1), 4)
    plain = [eqx.tree_at(lambda p: p.lam, jd.Problem(lam=1.0), lam) for lam in (0.3, 0.5, 0.7, 0.9)]
    arrays = jd.fit_batch([jd.Problem(lam=v) for v in (0.3, 0.5, 0.7, 0.9)], X, 6, keys=keys, **ROUGH)
    numbers = jd.fit_batch(plain, X, 6, keys=keys, **ROUGH)
    np.testing.assert_array_equal(arrays.codes, numbers.codes)
    one = jd.fit(plain[1], X, 6, key=keys[1], **ROUGH)
    np.testing.assert_allclose(one.objective, numbers.objective[1], rtol=1e-9)
    assert numbers.l0.shape == numbers.explained_variance.shape == (4,)
    assert numbers.usage.shape == (4, 6)
    # Histories of a batch go on with what each run ended with.
    values, steps = np.asarray(numbers.history.objective), np.asarray(numbers.steps)
    assert all(np.all(row[n:] == row[n - 1]) for row, n in zip(values, steps, strict=True))


@pytest.mark.slow
def test_whole_fits_meet_no_nan_and_mix_no_dtypes():
    X = jax.random.normal(jax.random.key(0), (60, 5))
    with jax.debug_nans(True), jax.numpy_dtype_promotion("strict"):
        for dtype in (jnp.float32, jnp.float64):
            jd.fit(jd.Problem(lam=0.5), X.astype(dtype), 6, key=jax.random.key(1), tol=1e-3)
        jd.fit_batch([jd.Problem(lam=v) for v in (0.3, 0.5)], X, 6, keys=jax.random.split(jax.random.key(1)), **ROUGH)


@pytest.fixture
def without_kernels(monkeypatch):
    """Plain JAX everywhere, as where numba is missing or the device is an accelerator."""
    monkeypatch.setattr(engines, "kernels", lambda: None)
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.mark.slow
def test_plain_jax_fits_and_batches(without_kernels):
    X = jax.random.normal(jax.random.key(0), (60, 5))
    keys = jax.random.split(jax.random.key(1), 2)
    one = jd.fit(jd.Problem(lam=0.5), X, 6, key=keys[0], tol=1e-6)
    assert int(one.status) == 0, one.message()
    assert_agrees(one, X, 0.5)
    runs = jd.fit_batch(jd.Problem(lam=jnp.array([0.5, 0.7])), X, 6, keys=keys, **ROUGH)
    alone = jd.fit(jd.Problem(lam=0.7), X, 6, key=keys[1], **ROUGH)
    assert runs.status.tolist() == [0, 0]
    np.testing.assert_allclose(runs.objective[1], alone.objective, rtol=1e-9)
    np.testing.assert_allclose(runs.dictionary.atoms[1], alone.dictionary.atoms, atol=1e-7)


def test_float32_end_to_end(digits):
    X = np.asarray(digits[:250], np.float32)
    solution = jd.fit(jd.Problem(lam=0.1), X, 12, key=jax.random.key(0), tol=1e-4)
    assert solution.dictionary.atoms.dtype == solution.codes.dtype == solution.objective.dtype == jnp.float32
    assert float(solution.certificate.stationarity.worst) <= 1e-4
    parts = [
        np.asarray(v, np.float64) for v in (X, solution.dictionary.atoms, solution.codes, solution.dictionary.offset)
    ]
    truth = independent(*parts, float(np.float32(0.1)))
    assert truth["worst"] <= 1.2e-4  # float32's own rounding of a measure of 1e-4: a few 1e-6
    # The gap in float32 differs from the truth by the rounding of the residual, below 1e-6 of the objective.
    assert abs(truth["gap"] - float(solution.certificate.duality_gap.mean)) <= 1e-6 * truth["objective"]
    assert abs(truth["objective"] - float(solution.objective)) <= 1e-6 * truth["objective"]


SHARDED = """
import jax, jax.numpy as jnp
jax.config.update("jax_enable_x64", True)
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
import numpy as np, jaxdict as jd
X = jax.random.normal(jax.random.key(0), (80, 4))
assert jax.device_count() == 8
def fit(X):
    return jd.fit(jd.Problem(lam=0.4), X, 5, key=jax.random.key(1), tol=1e-8)
one = fit(X)
mesh = Mesh(np.array(jax.devices()), ("samples",))
many = fit(jax.device_put(X, NamedSharding(mesh, P("samples", None))))
assert int(one.status) == int(many.status) == 0
print(float(one.objective), float(many.objective), abs(float(one.objective) / float(many.objective) - 1))
assert abs(float(one.objective) / float(many.objective) - 1) <= 1e-9
"""


@pytest.mark.slow
def test_eight_devices_give_the_same_objective(on_eight_devices):
    on_eight_devices(SHARDED)


@pytest.mark.slow
def test_fewer_samples_than_features_where_it_is_said():
    X = jax.random.normal(jax.random.key(0), (4, 20))
    solution = jd.fit(
        jd.Problem(lam=0.4), X, 3, key=jax.random.key(1), allow_wide=True, solver=jd.solvers.Alternating()
    )
    assert int(solution.status) == 0


def test_awkward_data_work():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(120, 6)) @ rng.normal(size=(6, 8))  # rank 6 of 8
    X[:, 3] = 0.25  # a constant column
    X[10:20] = X[0]  # duplicates
    X[30] = 0
    X[31] *= 100
    solution = jd.fit(jd.Problem(lam=0.5), X, 10, key=jax.random.key(0))
    assert int(solution.status) == 0, solution.message()
    assert_agrees(solution, X, 0.5)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda X: jd.fit(jd.Problem(lam=0.1), X.at[2, 1].set(jnp.nan), 3, key=jax.random.key(0)), "row 2"),
        (lambda X: jd.fit(jd.Problem(lam=0.1), X.T, 3, key=jax.random.key(0)), "transposed"),
        (lambda X: jd.fit_batch(jd.Problem(lam=jnp.ones(3)), X.T, 3, keys=jax.random.key(0)), "transposed"),
        (lambda X: jd.fit(jd.Problem(lam=1e3), X, 3, key=jax.random.key(0)), "lam_max"),
        (lambda X: jd.fit(jd.Problem(lam=0.0), X, 3, key=jax.random.key(0)), "lam"),
        (lambda X: jd.fit(jd.Problem(lam=0.1), X, 3), "key is not given"),
        (lambda X: jd.fit(jd.Problem(lam=0.1), X, key=jax.random.key(0)), "n_atoms is not given"),
        (lambda X: jd.fit(jd.Problem(lam=0.1), X, 100, key=jax.random.key(0)), "distinct samples"),
        (lambda X: jd.fit(jd.Problem(lam=0.1), X, 3, key=jax.random.key(0), start="best"), "start='best'"),
        (lambda X: jd.fit_batch(jd.Problem(lam=0.1), X, 3, keys=jax.random.key(0)), "run axis"),
        (
            lambda X: jd.fit_batch(jd.Problem(lam=jnp.ones(3)), X, 3, keys=jax.random.split(jax.random.key(0), 2)),
            "run axes",
        ),
    ],
)
def test_bad_input_is_refused_before_compute(call, match):
    with pytest.raises(ValueError, match=match):
        call(jax.random.normal(jax.random.key(0), (20, 4)))
