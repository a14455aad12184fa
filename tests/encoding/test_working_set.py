"""Working sets of plain JAX, piece by piece: the look at all atoms, the small problems, blocks of samples, slots that are full."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import nnls

from jaxdict.encoding.jax_engine import looks, working_set
from jaxdict.encoding.jax_engine.small_problem import _largest_eigenvalue_bound, accelerated, nonnegative_quadratic
from jaxdict.encoding.lasso import Lasso, check, within
from jaxdict.encoding.slots import Slots, dense_from_slots, empty_slots


def random_lasso(n=30, d=12, k=40, lam=0.3, seed=0, dtype: type = np.float64):
    rng = np.random.default_rng(seed)
    Y, A = rng.normal(size=(n, d)).astype(dtype), rng.normal(size=(k, d)).astype(dtype)
    A /= np.linalg.norm(A, axis=1, keepdims=True)
    return Lasso(jnp.asarray(Y), jnp.asarray(A), jnp.asarray(lam, dtype))


def small_problems(n=20, s=10, d=14, seed=0):
    """Gram blocks, pulls at a start, the start, what is inside."""
    rng = np.random.default_rng(seed)
    B, q = rng.normal(size=(n, s, d)), rng.normal(size=(n, s))
    inside = rng.random((n, s)) < 0.8
    A, start = B @ B.transpose(0, 2, 1), np.where(inside & (rng.random((n, s)) < 0.3), 0.1, 0)
    return (*map(jnp.asarray, (A, q - np.einsum("nst,nt->ns", A, start), start, inside)), q)


@pytest.mark.slow
def test_a_look_sees_the_strongest_of_each_bin_and_the_gap_of_all_atoms():
    lasso = random_lasso(k=2 * looks.BINS + 100, d=24)
    slots = Slots(jnp.tile(jnp.array([3, 500, 0]), (30, 1)), jnp.tile(jnp.array([0.2, 0.1, 0.0]), (30, 1)))
    seen = looks.look(lasso._replace(atoms=looks.dealt(lasso.atoms)), slots)
    whole = check(lasso, dense_from_slots(slots, lasso.atoms.shape[0]))
    for name in ("residual", "primal", "gap", "defect"):
        np.testing.assert_allclose(getattr(seen.check, name), getattr(whole, name), rtol=1e-9, atol=1e-12)
    assert whole.correlations is not None
    c = np.asarray(whole.correlations)
    np.testing.assert_allclose(seen.own, c[:, [3, 500, 0]], atol=1e-12)
    np.testing.assert_allclose(seen.pulls, np.take_along_axis(c, np.asarray(seen.atoms), axis=1), atol=1e-12)
    bins = np.full((30, 3 * looks.BINS), -np.inf)
    bins[:, : c.shape[1]] = c
    strongest = -np.sort(-bins.reshape(30, 3, looks.BINS).max(axis=1), axis=1)
    np.testing.assert_allclose(seen.pulls, strongest[:, : looks.ADDED_PER_ROUND], atol=1e-12)


def test_the_residual_leaves_out_empty_slots_wherever_they_point():
    lasso, values = random_lasso(), np.random.default_rng(1).uniform(1, 2, (30, 19))
    values[:, 3:17] = 0
    indices = np.random.default_rng(2).integers(0, 40, (30, 19))
    indices[:, 3] = 40
    right = lasso.targets - np.einsum("ns,nsd->nd", values, np.asarray(lasso.atoms)[np.minimum(indices, 39)])
    slots = Slots(jnp.asarray(indices), jnp.asarray(values))
    np.testing.assert_allclose(looks.slot_residual(lasso, slots), right, atol=1e-12)


def test_a_residual_in_float32_keeps_what_large_codes_leave():
    lasso = random_lasso(dtype=np.float32)
    slots = Slots(jnp.tile(jnp.arange(8), (30, 1)), jnp.full((30, 8), 1e4, jnp.float32))
    exact = np.float64(lasso.targets) - np.float64(1e4) * np.asarray(lasso.atoms[:8], float).sum(axis=0)
    y = jnp.asarray(exact + 1e4 * np.asarray(lasso.atoms[:8], float).sum(axis=0), jnp.float32)
    left = looks.slot_residual(lasso._replace(targets=y), slots)
    right = np.asarray(y, float) - np.float64(1e4) * np.asarray(lasso.atoms[:8], float).sum(axis=0)
    np.testing.assert_allclose(left, right, rtol=1e-6)


@pytest.mark.slow
def test_gradients_find_who_is_in_use():
    A, pull, start, inside, q = small_problems()
    z, left = accelerated(A, pull, start, inside, 1.0)
    np.testing.assert_allclose(left, q - np.einsum("nst,nt->ns", A, z), atol=1e-10)
    objective = lambda z: 0.5 * np.einsum("ns,nst,nt->n", z, A, z) - np.sum(q * z, axis=1)  # noqa: E731
    assert np.all(objective(z) <= objective(start))
    assert np.all(np.asarray(z)[~np.asarray(inside)] == 0)
    exact = jax.vmap(nonnegative_quadratic, (0, 0, 0, 0, None))(A, left, z, inside, 1.0)
    for n in range(4):  # SciPy's judgement, by a factor of the block
        at = np.flatnonzero(inside[n])
        L = np.linalg.cholesky(np.asarray(A)[n][np.ix_(at, at)])
        np.testing.assert_allclose(exact[n, at], nnls(L.T, np.linalg.solve(L, q[n, at]))[0], atol=1e-8)
    # From the minimisers no step is taken: they come back to the last bit.
    again, _ = accelerated(A, q - jnp.einsum("nst,nt->ns", A, exact), exact, inside, 1.0)
    np.testing.assert_array_equal(again, exact)


def test_the_bound_of_a_step_is_a_bound_and_a_close_one():
    A, _, _, inside, _ = small_problems(seed=1)
    masked = np.where(inside[:, :, None] & inside[:, None, :], np.abs(A), 0)
    largest = np.linalg.eigvalsh(masked)[:, -1]
    bound = np.asarray(_largest_eigenvalue_bound(A, inside))
    assert np.all(bound >= largest * (1 - 1e-12))
    assert np.all(bound <= 1.5 * largest)
    np.testing.assert_array_equal(_largest_eigenvalue_bound(A, jnp.zeros_like(inside)), 1)


def test_few_cholesky_solves_end_no_worse_than_the_start():
    A, pull, start, inside, q = small_problems(seed=2)
    objective = lambda z: 0.5 * np.einsum("ns,nst,nt->n", z, A, z) - np.sum(q * z, axis=1)  # noqa: E731
    last = objective(start)
    for most in (1, 2, 4):
        solve = lambda *args, most=most: nonnegative_quadratic(*args, 1.0, most=most)  # noqa: E731
        z = np.asarray(jax.vmap(solve)(A, pull, start, inside))
        assert np.all(z >= 0)
        assert np.all(objective(z) <= last + 1e-12)
        last = objective(z)


@pytest.mark.slow
@pytest.mark.parametrize("gram_atoms", [0, 10**9])
def test_samples_in_blocks_are_solved_as_all_at_once(monkeypatch, gram_atoms):
    monkeypatch.setattr(working_set, "GRAM_ATOMS", gram_atoms)
    lasso = random_lasso(n=45, lam=0.1)
    start = empty_slots(lasso.targets, 16)
    whole, steps = working_set.solve(lasso, start, 1e-11, 200)
    monkeypatch.setattr(working_set, "CPU_LANES", 8)  # six blocks, the last one short; later rounds take fewer
    rows, again = working_set.solve(lasso, start, 1e-11, 200)
    assert bool(jnp.all(within(rows.check, 1e-11)))
    assert int(again) == int(steps)
    dense = lambda rows: np.asarray(dense_from_slots(rows.slots, 40))  # noqa: E731
    np.testing.assert_allclose(dense(rows), dense(whole), atol=1e-9)
    seen = check(lasso, jnp.asarray(dense(rows)))
    np.testing.assert_allclose(rows.check.gap, seen.gap, atol=1e-12)


@pytest.mark.slow
def test_full_slots_overflow_and_no_others():
    lasso = random_lasso(lam=0.02)
    rows, _ = working_set.solve(lasso, empty_slots(lasso.targets, 4), 1e-10, 200)
    enough, _ = working_set.solve(lasso, empty_slots(lasso.targets, 16), 1e-10, 200)
    needed = np.sum(np.asarray(enough.slots.values) > 0, axis=1)
    np.testing.assert_array_equal(np.asarray(rows.overflow), needed > 4)
    assert not np.any(enough.overflow)


@pytest.mark.slow
def test_no_more_rounds_than_allowed():
    lasso = random_lasso(lam=0.02)
    for most in (0, 1, 2):
        rows, steps = working_set.solve(lasso, empty_slots(lasso.targets, 16), 1e-10, most)
        assert int(steps) == most
        np.testing.assert_array_equal(rows.limited, ~np.asarray(within(rows.check, 1e-10)))
        assert bool(jnp.any(rows.limited))
