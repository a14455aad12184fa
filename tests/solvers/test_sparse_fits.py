"""`fit(sparse=True)`: the point that dense codes end at, its codes sparse, and no (samples, atoms) array on the way."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdict as jd
from jaxdict.encoding.jax_engine import calls, working_set
from jaxdict.encoding.lasso import lasso_of
from jaxdict.encoding.slots import empty_slots
from jaxdict.results import load_solution, save_solution
from jaxdict.solvers.combined import with_slots

N, D_IN, K = 157, 5, 9
KEY = jax.random.key(0)
X = np.random.default_rng(0).normal(size=(N, D_IN)) ** 3
KINDS = {
    "plain": {},
    "signed": {"signed": True, "offset": False},
    "weights and metric": {"weights": jnp.asarray(np.arange(N) % 3, float), "metric": jnp.linspace(0.5, 2, D_IN)},
}
SOLVERS = {
    "combined": None,
    "alternating": jd.solvers.Alternating(),
    "quasi-newton": jd.solvers.QuasiNewton(),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_point_with_sparse_codes(kind):
    problem = jd.Problem(lam=0.8, **KINDS[kind])
    dense, sparse = (jd.fit(problem, X, K, key=KEY, sparse=sparse) for sparse in (False, True))
    assert isinstance(sparse.codes, jd.SparseCodes)
    assert sparse.message() == dense.message()
    assert float(sparse.objective) == pytest.approx(float(dense.objective), rel=1e-9)
    np.testing.assert_allclose(jd.dense_codes(sparse.codes, K), dense.codes, atol=1e-5)
    np.testing.assert_allclose(sparse.usage, dense.usage, atol=1e-12)
    np.testing.assert_allclose(sparse.explained_variance, dense.explained_variance, rtol=1e-6)
    assert float(sparse.l0) == pytest.approx(float(dense.l0))
    again = jd.certify(problem, sparse.dictionary, sparse.codes, X)
    assert bool(again.is_stationary(1e-6))


@pytest.mark.slow
@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_that_can(solver):
    problem = jd.Problem(lam=0.8)
    options = {"key": KEY, "solver": SOLVERS[solver], "max_steps": 15}
    dense, sparse = (jd.fit(problem, X, K, sparse=sparse, **options) for sparse in (False, True))
    assert float(sparse.objective) == pytest.approx(float(dense.objective), rel=1e-6)


@pytest.mark.slow
def test_slots_that_are_too_few_are_made_up_for_at_the_end():
    solver = jd.solvers.QuasiNewton(slots=2)
    found = jd.fit(jd.Problem(lam=0.3), X, K, key=KEY, solver=solver, sparse=True, tol=1e-4)
    assert found.codes.values.shape[1] > 2
    assert float(found.certificate.shares.duality_gap) < 1e-9
    assert float(found.l0) > 2


@pytest.mark.slow
def test_dead_atoms_are_reborn_and_saddles_left():
    start = jd.Dictionary(jnp.concatenate([jnp.eye(D_IN)[:2], jnp.eye(D_IN)[:1]]))
    problem = jd.Problem(lam=0.8)
    options = {"start": start, "second_order": True}
    dense, sparse = (jd.fit(problem, X, sparse=sparse, **options) for sparse in (False, True))
    assert float(sparse.objective) == pytest.approx(float(dense.objective), rel=1e-6)
    assert int(sparse.certificate.n_dead) == 0
    assert sparse.certificate.curvature is not None


def shapes_in(jaxpr, found):
    for equation in jaxpr.eqns:
        found |= {tuple(out.aval.shape) for out in equation.outvars if hasattr(out.aval, "shape")}
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda part: hasattr(part, "eqns") or hasattr(part, "jaxpr")
        ):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                shapes_in(inner, found)
    return found


@pytest.mark.slow
def test_no_array_of_samples_and_atoms_is_formed(monkeypatch):
    """In the traced program, where blocks are smaller than the data, all engines' branches in it. Five slots: four pack into K columns."""
    blocks = ("jaxdict.objectives", "jaxdict.certificates.schur", "jaxdict.certificates.slopes")
    for name in (*blocks, "jaxdict.solvers.alternating"):
        monkeypatch.setattr(f"{name}.BLOCK_ENTRIES", 40 * K)
    monkeypatch.setattr(calls, "SUM_ENTRIES", 40 * K)
    monkeypatch.setattr(working_set, "ENTRIES", 40 * K)
    jax.clear_caches()
    try:
        for sparse in (False, True):
            options = {"key": KEY, "sparse": sparse, "max_steps": 7, "solver": with_slots(jd.solvers.Combined(), 5)}
            fit = lambda X, options=options: jd.fit(jd.Problem(lam=0.8), X, K, **options)  # noqa: E731
            shapes = shapes_in(jax.make_jaxpr(fit)(X).jaxpr, set())
            assert ((N, K) in shapes) == (not sparse)
    finally:
        jax.clear_caches()


def test_blocks_give_the_same_sums(monkeypatch):
    problem, dictionary = (
        jd.Problem(lam=0.8),
        jd.Dictionary(jnp.asarray(X[:K] / np.linalg.norm(X[:K], axis=1)[:, None])),
    )
    lasso = lasso_of(problem, dictionary._replace(offset=jnp.zeros(D_IN)), jnp.asarray(X))
    args = lasso, jnp.full(N, 1 / N), empty_slots(lasso.targets, K), jnp.asarray(1e-12), jnp.asarray(1e-10)
    whole = calls.sums(*args, dense=False)
    monkeypatch.setattr(calls, "SUM_ENTRIES", 40 * K)
    cut = calls.sums(*args, dense=False)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), whole[2:], cut[2:])
    assert cut[1] is None


@pytest.mark.slow
def test_a_result_on_disk_and_conditions_take_them(tmp_path):
    problem = jd.Problem(lam=0.8)
    found = jd.fit(problem, X, K, key=KEY, sparse=True)
    save_solution(tmp_path, problem, found.dictionary, found.codes)
    saved = load_solution(tmp_path)
    np.testing.assert_array_equal(saved.codes.values, found.codes.values)
    point = problem, found.dictionary, found.codes, X
    dense = problem, found.dictionary, jd.dense_codes(found.codes, K), X
    np.testing.assert_allclose(jd.conditions.barycentre(*point), jd.conditions.barycentre(*dense), atol=1e-9)
    curved = jd.certify(*point, curvature=True).curvature.eigenvalue
    assert float(curved) == pytest.approx(float(jd.certify(*dense, curvature=True).curvature.eigenvalue), abs=1e-7)


@pytest.mark.slow
def test_under_jit():
    problem = jd.Problem(lam=0.8)
    found = jax.jit(lambda X: jd.fit(problem, X, K, key=KEY, sparse=True))(jnp.asarray(X))
    assert isinstance(found.codes, jd.SparseCodes)
    assert bool(found.certificate.is_stationary(1e-6))


def test_what_is_refused():
    with pytest.raises(ValueError, match="ProjectedGradient moves dense codes"):
        jd.fit(jd.Problem(lam=0.8), X, K, key=KEY, sparse=True, solver=jd.solvers.ProjectedGradient())
    with pytest.raises(ValueError, match="implicit=True differentiates dense codes"):
        jd.fit(jd.Problem(lam=0.8), X, K, key=KEY, sparse=True, implicit=True)
