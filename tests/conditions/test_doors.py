"""What conditions must refuse, and the rows, roles and signs that they must not forget."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdict as jd
from jaxdict import conditions

PROBLEM = jd.Problem(lam=0.3)


def point(seed=0, n=12, d=3, k=4):
    rng = np.random.default_rng(seed)
    D = rng.normal(size=(k, d))
    D /= np.linalg.norm(D, axis=1, keepdims=True)
    return jd.Dictionary(D, np.zeros(d)), np.maximum(rng.normal(size=(n, k)), 0), rng.normal(size=(n, d))


BY_FEATURE = {
    "hull": lambda D, Z, X, i: conditions.hull(D, Z, i),
    "pair_costs": lambda D, Z, X, i: conditions.pair_costs(PROBLEM, D, Z, X, 0, i),
    "mop_up": lambda D, Z, X, i: conditions.mop_up(PROBLEM, D, Z, X, i, np.ones(3)),
    "barycentre_weights": lambda D, Z, X, i: conditions.barycentre_weights(PROBLEM, D, Z, X, i),
    "residual_samples": lambda D, Z, X, i: conditions.residual_samples(PROBLEM, D, Z, X, i, np.ones(3)),
    "absorption_direction": lambda D, Z, X, i: conditions.absorption_direction(D, Z, 0, i),
    "row_direction": lambda D, Z, X, i: conditions.row_direction(D, Z, i, np.ones(4)),
}


@pytest.mark.parametrize("name", BY_FEATURE)
def test_features_out_of_range_are_refused(name):
    for wrong in (4, 99, -1, np.int64(-7), jnp.array(4)):
        with pytest.raises(ValueError, match=r"names no feature: there are 4, numbered from 0"):
            BY_FEATURE[name](*point(), wrong)
    with pytest.raises(ValueError, match="give the number of a feature"):
        BY_FEATURE[name](*point(), 1.5)


OF_POINTS = {
    "objective": lambda D, Z, X: jd.objective(PROBLEM, D, Z, X),
    "residual": lambda D, Z, X: jd.residual(D, Z, X),
    "correlations": lambda D, Z, X: jd.correlations(PROBLEM, D, Z, X),
    "certify": lambda D, Z, X: jd.certify(PROBLEM, D, Z, X),
    "optimality_map": lambda D, Z, X: jd.optimality_map(PROBLEM, D, Z, X),
    "steepest": lambda D, Z, X: jd.steepest_feasible_direction(PROBLEM, D, Z, X),
    "barycentre": lambda D, Z, X: conditions.barycentre(PROBLEM, D, Z, X),
    "residual_conditions": lambda D, Z, X: conditions.residual(PROBLEM, D, Z, X),
    "pair_costs": lambda D, Z, X: conditions.pair_costs(PROBLEM, D, Z, X, 0, 1),
    "hull": lambda D, Z, X: conditions.hull(D, Z, 0),
    "pairs": lambda D, Z, X: conditions.pairs(D, Z),
    "antipodal": lambda D, Z, X: conditions.antipodal(D, Z),
}
WITHOUT_DATA = ("hull", "pairs", "antipodal")


@pytest.mark.parametrize("name", OF_POINTS)
def test_what_would_broadcast_is_refused(name):
    D, Z, X = point()
    call = OF_POINTS[name]
    wrong = [D, Z[0], X], [D, Z.T, X], [D._replace(offset=np.zeros(1)), Z, X], [D._replace(atoms=D.atoms[0]), Z, X]
    wrong = [
        *wrong,
        [D._replace(atoms=D.atoms + 0j), Z, X],
        [D, Z + 0j, X],
        [D._replace(atoms=np.ones((4, 3), int)), Z, X],
    ]
    if name not in WITHOUT_DATA:
        wrong = [*wrong, [D, Z[:1], X], [D, Z[:, :1], X], [D, Z, X[0]], [D, Z, X.astype(int)], [D, Z, X + 0j]]
    for arguments in wrong:
        with pytest.raises(ValueError, match=r"want|give|convert|jaxdict"):
            call(*arguments)
    outside = jd.SparseCodes(np.full((12, 1), 4), np.ones((12, 1)))
    with pytest.raises(ValueError, match="name atom 4, but the dictionary has 4"):
        call(D, outside, X)


@pytest.mark.parametrize("name", OF_POINTS)
def test_numbers_of_any_kind_give_the_same(name):
    D, Z, X = point()
    Z = np.round(Z)
    plain = OF_POINTS[name](D, Z, X)
    swapped = jd.Dictionary(D.atoms.astype(">f8"), D.offset.tolist())
    for other in (OF_POINTS[name](swapped, Z.astype(int), X.astype(">f8")), OF_POINTS[name](D, Z.tolist(), X.tolist())):
        for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12)


@pytest.mark.slow
def test_traced_indices_out_of_range_name_no_atom_anywhere():
    D, _, X = point()
    outside = jd.SparseCodes(np.array([[0, 9]] * 12), np.ones((12, 2)))
    inside = jd.SparseCodes(np.array([[0, 1]] * 12), np.array([[1.0, 0.0]] * 12))
    for name in ("objective", "certify", "barycentre", "pairs"):
        traced = jax.jit(lambda Z, X, name=name: OF_POINTS[name](D, Z, X))(outside, X)
        for a, b in zip(jax.tree.leaves(traced), jax.tree.leaves(OF_POINTS[name](D, inside, X)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


def test_weights_must_be_one_a_sample():
    D, Z, X = point()
    for call in (
        lambda w: jd.objective(jd.Problem(lam=0.3, weights=w), D, Z, X),
        lambda w: conditions.hull(D, Z, 0, weights=w),
        lambda w: conditions.exclusive(Z, weights=w),
        lambda w: jd.recovery.dimension_variance(X, w),
    ):
        with pytest.raises(ValueError, match="weights has shape"):
            call(np.ones((12, 1)))


@pytest.mark.slow
def test_rows_of_weight_zero_are_no_hull_points():
    """Without its last row feature 1 fires only with feature 0; that row has weight zero and must not save it."""
    D, Z = jd.Dictionary(np.eye(2)), np.array([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0], [0.0, 5.0]])
    assert bool(conditions.hull(D, Z, 0).inside)
    found = conditions.hull(D, Z, 0, weights=np.array([1.0, 1.0, 1.0, 0.0]))
    assert not bool(found.inside)
    assert float(found.weights[3]) == 0
    np.testing.assert_allclose(found.violation, conditions.hull(D, Z[:3], 0).violation)
    # Nor as a row of zeros: with one the hull of 3 / 2 and 4 / 2 would hold the cosine's 1.
    Z = np.array([[1.0, 0.5], [1.0, 0.5], [0.0, 3.0], [0.0, 4.0], [0.0, 9.0]])
    found = conditions.hull(D, Z, 0, weights=np.array([1.0, 1.0, 1.0, 1.0, 0.0]))
    assert not bool(found.inside)
    assert float(found.distance) == pytest.approx(0.5)


def test_rows_of_weight_zero_do_not_set_the_least_f():
    D, Z, X = jd.Dictionary(np.array([[1.0, 0.0]]), np.zeros(2)), np.array([[1.0], [0.0], [0.0]]), np.zeros((3, 2))
    X[:, 1] = [1.0, -1.0, -50.0]
    problem = jd.Problem(lam=0.3, weights=np.array([1.0, 1.0, 0.0]))
    found = conditions.mop_up(problem, D, Z, X, 0, np.array([0.0, 1.0]))
    assert float(found.f_mean) == pytest.approx(1.0)
    assert float(found.f_mean_code) == pytest.approx(1.0)


@pytest.mark.parametrize("cosine", [-0.97, -0.5, 0.0, 0.6])
def test_the_guaranteed_part_is_a_part_of_the_decrease_at_every_angle(cosine):
    """The bound of the second derivative must hold along the whole path: at obtuse atoms nu is least in mid-way."""
    atoms = np.array([[1.0, 0.0], [cosine, np.sqrt(1 - cosine**2)]])
    for ratio in (0.6, 1.0, 5.0):
        codes = np.array([[ratio, 1.0], [2 * ratio, 2.0], [1.0, 0.0], [0.0, 0.0]])
        cost = conditions.pair_costs(
            jd.Problem(lam=0.2, offset=False), jd.Dictionary(atoms), codes, codes @ atoms, 0, 1
        )
        assert 0 <= float(cost.guaranteed) <= float(cost.decrease) + 1e-12
        if ratio == 5.0:  # nothing is clipped before the bound's own step: the truth is near where nu bends least
            t = np.linspace(0, 5, 20001)
            mean = codes[:, 1].mean()
            nu = np.sqrt(1 + 2 * t * cosine + t**2)
            np.testing.assert_allclose(cost.decrease, -0.2 * mean * (nu - 1 - t).min(), rtol=1e-3)


def test_evidence_is_the_larger_of_both_roles_and_symmetric():
    """A rare child of a frequent parent: the bound is tight in one role only, and the flag must not depend on which."""
    n = np.arange(400)
    rare, common = (n % 40 == 0), (n % 4 == 0)
    codes = np.stack([common, rare], 1) * 1.0
    found = conditions.hierarchy(codes, dictionary=jd.Dictionary(np.eye(2)))
    p, b, of = 0.25, 10, 10  # the child's role: 10 of 10 at 1/4
    by_child = of * np.log(b / of / p)
    share, q = 0.1, 10 / 400  # the parent's role: 10 of 100 at 1/40
    by_parent = 100 * (share * np.log(share / q) + (1 - share) * np.log((1 - share) / (1 - q)))
    assert abs(by_child - by_parent) > 1
    np.testing.assert_allclose(found.evidence[0, 1], max(by_child, by_parent), rtol=1e-5)
    np.testing.assert_allclose(found.evidence, found.evidence.T)


def test_barycentre_and_costs_at_every_scale_in_float32():
    D, Z, X = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), point(1))
    for scale in (np.float32(2.0**-100), np.float32(2.0**100)):
        problem = jd.Problem(lam=jnp.float32(0.3) * scale)
        for f in (
            conditions.barycentre,
            lambda *p: conditions.residual(*p).norm,
            lambda *p: conditions.pair_costs(*p, 0, 1).step,
        ):
            plain = f(jd.Problem(lam=jnp.float32(0.3)), D, Z, X)
            np.testing.assert_allclose(f(problem, D, Z * scale, X * scale), plain, rtol=2e-4, atol=2e-5)
