"""Several new atoms at once: the gain that is told is F's exact fall, each row counted once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdict as jd
from jaxdict.certificates.births import birth
from jaxdict.certificates.joint_births import joint_births

N, D_IN, K = 60, 5, 3
DRAW = np.random.default_rng(0)
X = jnp.asarray(DRAW.normal(size=(N, D_IN)))
ATOMS = DRAW.normal(size=(K, D_IN))
POINT = jd.Dictionary(jnp.asarray(ATOMS / np.linalg.norm(ATOMS, axis=1, keepdims=True)), jnp.asarray([0.1] * D_IN))
KINDS = {
    "plain": {},
    "signed": {"signed": True},
    "weights": {"weights": jnp.asarray(DRAW.uniform(0.2, 2, N))},
    "metric": {"metric": jnp.linspace(0.5, 2, D_IN)},
}


def with_new(problem, codes, new):
    """The point with the new atoms, each row using the one that serves it best, by brute force."""
    m = np.ones(D_IN) if problem.metric is None else np.asarray(problem.metric)
    r = np.asarray(jd.residual(POINT, codes, X))
    along, size = (m * r) @ new.T, np.sum(m * new**2, axis=1)
    if problem.signed:
        z = np.sign(along) * np.maximum(np.abs(along) - float(problem.lam), 0) / size
    else:
        z = np.maximum(along - float(problem.lam), 0) / size
    best = np.argmax(z**2 * size, axis=1)
    z = np.where(np.arange(len(new)) == best[:, None], z, 0)
    wider = jd.Dictionary(jnp.concatenate([POINT.atoms, jnp.asarray(new)]), POINT.offset)
    return wider, jnp.concatenate([codes, jnp.asarray(z)], axis=1)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gain_is_the_fall_of_the_objective(kind):
    problem = jd.Problem(lam=0.4, **KINDS[kind])
    codes = jd.encode(problem, POINT, X, tol=1e-13).codes
    new = joint_births(problem, POINT, codes, X, 4, key=jax.random.key(1))
    np.testing.assert_allclose(np.linalg.norm(new.atoms, axis=1), 1, rtol=1e-12)
    fall = jd.objective(problem, POINT, codes, X) - jd.objective(
        problem, *with_new(problem, codes, np.asarray(new.atoms)), X
    )
    assert float(new.gain) == pytest.approx(float(fall), rel=1e-10)
    assert float(jnp.sum(new.gains)) == pytest.approx(float(new.gain), rel=1e-12)
    assert np.all(np.diff(new.gains) <= 0)
    assert np.min(new.gains) > 0


def test_one_atom_is_about_as_good_as_the_best_that_many_starts_find():
    problem = jd.Problem(lam=0.4)
    codes = jd.encode(problem, POINT, X, tol=1e-13).codes
    best = float(birth(problem, POINT, codes, X, starts=N).gain)
    found = [float(joint_births(problem, POINT, codes, X, 1, key=jax.random.key(k)).gain) for k in range(5)]
    assert max(found) <= best * (1 + 1e-6)
    assert min(found) > 0.95 * best


def test_sweeps_raise_the_gain_and_more_atoms_gain_more():
    problem = jd.Problem(lam=0.4)
    codes = jd.encode(problem, POINT, X, tol=1e-13).codes
    of = lambda count, sweeps: float(  # noqa: E731
        joint_births(problem, POINT, codes, X, count, key=jax.random.key(0), max_sweeps=sweeps).gain
    )
    assert of(3, 20) > of(3, 0) > 0
    assert of(6, 20) > of(3, 20) > of(1, 20)


@pytest.mark.slow
def test_no_more_atoms_than_rays_find_rows():
    planted = jd.synthetic.rays(jax.random.key(2), 40, 4, 3)
    nothing = jd.Dictionary(jnp.eye(1, 3), jnp.zeros(3)), jnp.zeros((40, 1))
    new = joint_births(jd.Problem(lam=0.1, offset=False), *nothing, planted.X, 7, key=jax.random.key(0))
    cosines = np.asarray(new.atoms) @ np.asarray(planted.dictionary.atoms).T
    found = np.asarray(new.gains) > 1e-12
    assert np.sum(found) == 4
    np.testing.assert_allclose(np.max(cosines[found], axis=0), 1, atol=1e-9)
    # One atom a ray reaches F_wide at once: the fall is the whole of what there is to gain.
    bound = jd.wide.bound(planted.X, 0.1, offset=False).value
    assert float(new.gain) == pytest.approx(float(0.5 * jnp.mean(jnp.sum(planted.X**2, axis=1)) - bound), rel=1e-9)


def test_the_gain_scales_with_the_data():
    problem, scale = jd.Problem(lam=0.4), 2.0**60
    codes = jd.encode(problem, POINT, X, tol=1e-13).codes
    small = joint_births(problem, POINT, codes, X, 3, key=jax.random.key(0))
    moved = jd.Dictionary(POINT.atoms, scale * POINT.offset)
    large = joint_births(jd.Problem(lam=0.4 * scale), moved, scale * codes, scale * X, 3, key=jax.random.key(0))
    np.testing.assert_allclose(large.gains, scale**2 * small.gains, rtol=1e-9)


def test_an_atom_of_two_kinds_of_rows_needs_one_new_one():
    """Four rays, an old atom between the first two and one between the others: two new atoms, a kind each, however many are asked for."""
    kinds = np.eye(4) + 0.2
    kinds /= np.linalg.norm(kinds, axis=1, keepdims=True)
    old = jd.Dictionary(jnp.asarray((kinds[::2] + kinds[1::2]) / np.linalg.norm(kinds[0] + kinds[1])), jnp.zeros(4))
    rows, problem = jnp.asarray(3 * np.repeat(kinds, 5, axis=0)), jd.Problem(lam=0.1, offset=False)
    codes = jd.encode(problem, old, rows, tol=1e-12).codes
    for given in (codes, jd.sparse_codes(codes, 2)):
        new = joint_births(problem, old, given, rows, 4, key=jax.random.key(0))
        assert np.sum(np.asarray(new.gains) > 1e-9) == 2
        away = np.asarray(new.atoms)[:2] @ kinds.T
        assert {int(np.argmax(row)) // 2 for row in away} == {0, 1}
