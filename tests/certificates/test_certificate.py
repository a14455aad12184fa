"""The certificate as a whole: known optima and refutations, its sentences, its errors, jit, vmap and float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdict as jd
from jaxdict.certificates.certificate import certify
from jaxdict.certificates.slopes import steepest_slope
from jaxdict.certificates.stationarity import directional_derivative, stationarity, steepest_feasible_direction
from jaxdict.objectives import moments

N, K, D = 20, 5, 3


def point(seed=0, **options):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(N, D)) * 2
    atoms = rng.normal(size=(K, D))
    atoms /= np.linalg.norm(atoms, axis=1)[:, None]
    codes = np.abs(rng.normal(size=(N, K))) * (rng.random((N, K)) < 0.4)
    return jd.Problem(lam=0.5, **options), jd.Dictionary(atoms, np.zeros(D)), codes, X


def optimum():
    """T14: the pair +1, -1 is globally optimal for one-dimensional data; here b = 0 and F = (2 (3 - 1/2) + 0) / 3."""
    X = np.array([[3.0], [-3.0], [0.0]])
    pair = jd.Dictionary(np.array([[1.0], [-1.0]]), np.zeros(1))
    return jd.Problem(lam=1.0), pair, np.array([[2.0, 0.0], [0.0, 2.0], [0.0, 0.0]]), X


def test_a_global_optimum_is_certified():
    c = certify(*optimum(), curvature=True)
    assert bool(c.is_stationary(1e-12))
    assert bool(c.is_globally_optimal(1e-12))
    np.testing.assert_allclose([c.objective, c.wide_bound], 5 / 3, rtol=1e-14)
    assert abs(float(c.global_gap)) < 1e-14
    assert float(c.duality_gap.max) == float(c.birth.gain) == float(c.directional_derivative) == 0
    assert (int(c.n_rays), int(c.n_dead), float(c.max_residual_ratio)) == (2, 0, 1)
    assert "Globally optimal" in c.message()
    assert "positive" in c.message()


def test_a_random_point_is_refuted_and_every_part_is_the_parts_own():
    args = point()
    c = certify(*args)
    problem, dictionary, codes, X = jax.tree.map(jnp.asarray, args)
    expected = stationarity(problem, dictionary, codes, X)
    np.testing.assert_allclose(c.stationarity.worst, expected.worst, rtol=1e-12)
    np.testing.assert_allclose(c.objective, jd.objective(problem, dictionary, codes, X), rtol=1e-13)
    direction = steepest_feasible_direction(problem, dictionary, codes, X)
    unit = (1, problem.lam, problem.lam)  # slopes in the variables (D, Z / lam, b / lam)
    slope = -jnp.sqrt(sum(jnp.sum((l * part) ** 2) for l, part in zip(unit, direction, strict=True)))
    np.testing.assert_allclose(c.directional_derivative, slope, rtol=1e-10)
    assert not bool(c.is_stationary())
    assert float(c.global_gap) > 0
    assert c.curvature is None
    assert "Not stationary" in c.message()
    assert "One more atom would lower it" in c.message()


def test_stationary_saddle_and_dead_atom_are_named():
    """One atom in two copies that share its code (stationary, a saddle), and one that is dead."""
    X = np.array([[3.0, 1.0], [3.0, -1.0]])
    atoms = np.array([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    c = certify(
        jd.Problem(lam=0.1, offset=False), jd.Dictionary(atoms), np.array([[1.45, 1.45, 0]] * 2), X, curvature=True
    )
    assert bool(c.is_stationary(1e-9))
    assert float(c.curvature.second_derivative) < 0
    assert "A saddle" in c.message()
    assert "1 of 3 atoms is dead" in c.message()
    assert "Globally" not in c.message()


@pytest.mark.parametrize("options", [{}, {"gauge": "penalised"}, {"signed": True, "metric": np.array([0.5, 1.0, 2.0])}])
def test_sparse_codes_give_the_same_certificate(options):
    problem, dictionary, codes, X = point(1, **options)
    if problem.signed:
        codes = codes * np.random.default_rng(1).choice([-1.0, 1.0], size=codes.shape)
    dense = certify(problem, dictionary, codes, X)
    sparse = certify(problem, dictionary, jd.sparse_codes(jnp.array(codes)), X)
    # The new atom is found by iteration, and argmax may break ties otherwise: gains agree to the iteration's accuracy.
    for one, other in zip(
        jax.tree.leaves(dense._replace(birth=0)), jax.tree.leaves(sparse._replace(birth=0)), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(dense.birth.gain, sparse.birth.gain, rtol=1e-8)


def test_blocked_slope_is_the_direct_one_with_weights_and_many_blocks(monkeypatch):
    weights = np.random.default_rng(2).integers(0, 3, N) * 1.0
    problem, dictionary, codes, X = jax.tree.map(jnp.asarray, point(2, weights=weights))
    sums = moments(problem, dictionary, codes, X)
    direct = steepest_slope(problem, dictionary, codes, X, sums)
    down = steepest_feasible_direction(problem, dictionary, codes, X)
    square = problem.lam**2
    along = down._replace(codes=square * down.codes, offset=square * down.offset)
    length = jnp.sqrt(jnp.sum(along.atoms**2) + (jnp.sum(along.codes**2) + jnp.sum(along.offset**2)) / square)
    slope = directional_derivative(problem, dictionary, codes, X, along) / length
    np.testing.assert_allclose(direct, slope, rtol=1e-12)
    monkeypatch.setattr("jaxdict.certificates.slopes.BLOCK_ENTRIES", 3 * K)  # blocks of 3, the last one padded
    np.testing.assert_allclose(steepest_slope(problem, dictionary, jd.sparse_codes(codes), X, sums), direct, rtol=1e-12)


def test_nan_is_a_measure_not_an_error():
    problem, dictionary, codes, X = point(3)
    codes[0, 0] = np.nan
    c = certify(problem, dictionary, codes, X)
    assert not bool(c.is_stationary(1e6))
    assert "Nothing is proved" in c.message()


def test_jit_vmap_and_float32():
    problem, dictionary, codes, X = jax.tree.map(jnp.asarray, point(4))
    c = certify(problem, dictionary, codes, X)
    lams = jnp.array([0.5, 1.0])
    run = jax.jit(jax.vmap(lambda lam: certify(jd.Problem(lam=lam), dictionary, codes, X)))
    many = run(lams)
    np.testing.assert_allclose(many.objective[0], c.objective, rtol=1e-13)
    np.testing.assert_allclose(many.wide_bound[0], c.wide_bound, rtol=1e-12)
    assert many.is_stationary().shape == (2,)
    with pytest.raises(ValueError, match="batch of shape"):
        many.message()
    assert isinstance(jax.tree.map(lambda leaf: leaf[0], many).message(), str)
    single = certify(*jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (problem, dictionary, codes, X)))
    assert {leaf.dtype for leaf in jax.tree.leaves(single) if jnp.issubdtype(leaf.dtype, jnp.floating)} == {
        jnp.dtype("float32")
    }
    np.testing.assert_allclose(single.objective, c.objective, rtol=1e-6)
    np.testing.assert_allclose(single.wide_bound, c.wide_bound, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda p, d, z, X: (p, d._replace(atoms=d.atoms.T), z, X), r"\(3, 5\).*transposed"),
        (lambda p, d, z, X: (p, d, z.T, X), r"codes have shape \(5, 20\).*\(20, 5\).*transposed"),
        (lambda p, d, z, X: (p, d._replace(offset=np.zeros(2)), z, X), r"offset has shape \(2,\)"),
        (lambda p, d, z, X: (jd.Problem(lam=0.5, metric=np.ones(4)), d, z, X), r"metric has shape \(4,\)"),
        (lambda p, d, z, X: (jd.Problem(lam=np.ones(2)), d, z, X), r"lam has shape \(2,\)"),
        (lambda p, d, z, X: (p, d, z, X[0]), r"X has shape \(3,\)"),
        (
            lambda p, d, z, X: (p, d, jd.SparseCodes(np.zeros((3, 2), int), np.zeros((3, 2))), X),
            r"must be \(20, slots\)",
        ),
    ],
)
def test_shapes_that_do_not_fit_are_refused(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        certify(*change(*point()))
