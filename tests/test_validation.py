"""Bad input is refused before compute in one line: what, the value, the remedy; odd but sound input passes."""

import equinox as eqx
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import jaxdict as jd
from jaxdict import validation


def rows(n=6, d=3, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d))


def with_bad(value, row):
    X = rows()
    X[row, 1] = value
    return X


@pytest.mark.parametrize(
    ("X", "words"),
    [
        (with_bad(np.nan, 4), "NaN or infinity in 1 of 6 rows, first in row 4"),
        (with_bad(-np.inf, 0), "first in row 0"),
        (np.ones(3), r"shape \(3,\); jaxdict wants \(samples, features\)"),
        (np.ones((2, 3, 4)), r"flatten to rows: X.reshape\(-1, 4\)"),
        (np.ones((0, 3)), "empty"),
        (np.ones((3, 0)), "empty"),
        (np.ones((3, 2), int), r"dtype int64.*X.astype\(np.float32\)"),
        (np.ones((3, 2), bool), "dtype bool"),
        (np.ones((3, 2), complex), "dtype complex128.*real numbers"),
        (np.ones((3, 2), object), "dtype object"),
        ([[1.0, 2.0], [3.0]], "not a rectangular array"),
    ],
)
def test_bad_data_is_refused_in_one_line(X, words):
    with pytest.raises(ValueError, match=words) as caught:
        validation.check_data(X)
    assert "\n" not in str(caught.value)


def test_overflow_in_the_working_precision_is_named():
    with jax.enable_x64(False), pytest.raises(ValueError, match="overflows float32 in 1 of 6 rows, first in row 2"):
        validation.check_data(with_bad(1e300, 2))


def test_swapped_axes_warn_raise_or_pass():
    wide = rows(3, 6)
    with pytest.warns(UserWarning, match="3 samples for 6 features.*transposed"):
        validation.check_data(wide)
    with pytest.raises(ValueError, match="transposed"):
        validation.check_data(wide, wide="error")
    validation.check_data(wide, wide="allow")


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_dtypes_follow_the_input_from_float32_up(dtype):
    checked = validation.check_data(rows().astype(dtype))
    assert checked.dtype == (np.float64 if dtype is np.float64 else np.float32)


def test_sound_but_odd_data_pass():
    base = rows(40, 4)
    base[3] = base[5]  # duplicates
    base[7] = 0  # a zero row
    base[9] *= 2e4  # a huge row
    base[:, 2] = 1.5  # a constant column
    base[:, 3] = base[:, 0]  # rank deficiency
    assert validation.check_data(base).shape == (40, 4)
    assert validation.check_n_atoms(39, jnp.asarray(base)) == 39


def test_checks_leave_traced_values_alone():
    problem = jd.Problem(lam=0.1)

    @jax.jit
    def checked(lam, X):
        traced = jd.Problem(lam=lam, metric=problem.metric)
        X = validation.check_data(X)
        validation.check_problem(traced, X)
        validation.check_n_atoms(2, X)
        validation.check_codes(jnp.zeros((6, 2)), validation.check_dictionary(jd.Dictionary(X[:2]), X), X)
        return X.sum()

    assert np.isnan(checked(-1.0, with_bad(np.nan, 1)))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"lam": 0.0}, "lam=0 makes no sense"),
        ({"lam": float("nan")}, "lam=nan makes no sense"),
        ({"lam": np.array([0.1, 0.2])}, r"lam has shape \(2,\); give a scalar, or use fit_batch"),
        ({"lam": 1e3}, "all codes would be zero, lam_max = .*; choose lam below"),
        ({"lam": 0.1, "weights": np.ones(5)}, r"weights has shape \(5,\) but the data 6 samples"),
        ({"lam": 0.1, "metric": np.ones(4)}, r"metric has shape \(4,\) but the data 3 features"),
        ({"lam": 0.1, "weights": np.zeros(6)}, "weights are all zero"),
        ({"lam": 0.1, "metric": np.array([1, np.nan, 1])}, "metric has NaN or infinity at index 1"),
    ],
)
def test_bad_problems_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        validation.check_problem(jd.Problem(**settings), jnp.asarray(rows()))


def test_lam_max_is_the_border():
    X = jnp.asarray(rows())
    border = float(jd.lam_max(X))
    validation.check_problem(jd.Problem(lam=border * 0.999), X)
    with pytest.raises(ValueError, match="all codes would be zero"):
        validation.check_problem(jd.Problem(lam=border), X)
    validation.check_problem(jd.Problem(lam=2 * border), X, zero_codes="allow")
    with pytest.raises(ValueError, match="all samples are equal"):
        validation.check_problem(jd.Problem(lam=0.1), jnp.ones((4, 2)))


def test_number_of_atoms():
    X = jnp.asarray(np.repeat(rows(4), 3, axis=0))
    assert validation.check_n_atoms(np.int64(4), X) == 4
    with pytest.raises(ValueError, match=r"n_atoms=5 is more than the 4 distinct samples \(of 12\); use n_atoms <= 4"):
        validation.check_n_atoms(5, X)
    for bad in (0, -1, 2.5, True, None):
        with pytest.raises(ValueError, match="n_atoms="):
            validation.check_n_atoms(bad, X)


def test_distinct_rows_counts_exactly_across_blocks(monkeypatch):
    monkeypatch.setattr(validation, "ROWS_PER_BLOCK", 3)
    X = np.random.default_rng(1).integers(0, 3, size=(50, 2)).astype(float)
    assert validation.distinct_rows(X) == len(np.unique(X, axis=0))
    assert validation.distinct_rows(X, at_most=2) == 2


def test_points_that_do_not_fit_are_refused():
    X, good = jnp.asarray(rows()), jd.Dictionary(jnp.eye(3)[:2])
    for dictionary, words in [
        (jd.Dictionary(jnp.ones((3, 2))), "was it transposed"),
        (jd.Dictionary(jnp.ones((5, 4))), "one atom a row"),
        (jd.Dictionary(jnp.ones((0, 3))), "empty"),
        (jd.Dictionary(jnp.ones((2, 3)), jnp.ones(2)), "offset has shape"),
        (jd.Dictionary(jnp.ones((2, 3)), jnp.array([0, jnp.inf, 0])), "offset has NaN or infinity in row 1"),
        (jd.Dictionary(jnp.array([[1.0, 0, 0], [0, 0, 0]])), "atom 1 is zero"),
    ]:
        with pytest.raises(ValueError, match=words):
            validation.check_dictionary(dictionary, X)
    sparse = jd.SparseCodes(jnp.full((6, 1), 2), jnp.ones((6, 1)))
    for codes, words in [
        (jnp.zeros((6, 3)), r"codes have shape \(6, 3\).*\(6, 2\)"),
        (jnp.zeros((6, 2)).at[3, 0].set(-1), "negative, first in row 3"),
        (jnp.zeros((6, 2)).at[2, 0].set(jnp.nan), "NaN or infinity in row 2"),
        (sparse, "name atom 2, but the dictionary has 2"),
        (jd.SparseCodes(sparse.indices[:4], sparse.values), "both must be"),
        (jd.SparseCodes(sparse.values, sparse.values), "give integers"),
    ]:
        with pytest.raises(ValueError, match=words):
            validation.check_codes(codes, good, X)
    validation.check_codes(jnp.full((6, 2), -1.0), good, X, signed=True)


def test_a_dictionary_that_a_traced_function_closes_over_is_checked_as_any_other():
    dictionary, X = jd.Dictionary(jnp.eye(3)), jnp.ones((4, 3))

    def loop(X):
        step = lambda _, codes: jd.encode(jd.Problem(lam=0.1), dictionary, X + 0 * codes.sum(), slots=3).codes  # noqa: E731
        return jax.lax.fori_loop(0, 2, step, jnp.zeros((4, 3)))

    assert jnp.allclose(jax.jit(loop)(X), 0.9)
    zero = jd.Dictionary(jnp.zeros((3, 3)))
    with pytest.raises(ValueError, match="zero"):
        jax.jit(lambda X: jd.encode(jd.Problem(lam=0.1), zero, X).codes)(X)


CONTEXTS = {
    "jit": lambda f: jax.jit(f)(0.1),
    "scan": lambda f: jax.lax.scan(lambda carry, lam: (carry, f(lam)), 0, jnp.array([0.1]))[1][0],
    "map": lambda f: jax.lax.map(f, jnp.array([0.1]))[0],
    "checkpoint": lambda f: jax.checkpoint(f)(0.1),
    "jit of vmap": lambda f: jax.jit(jax.vmap(f))(jnp.array([0.1]))[0],
    "jit of grad": lambda f: jax.jit(jax.grad(f))(0.1),
}


@pytest.mark.parametrize("context", CONTEXTS)
def test_what_a_traced_function_closes_over_is_checked_without_a_trace(context):
    for kind in (np.asarray, jnp.asarray):
        good, bad, weights = kind(rows()), kind(with_bad(np.nan, 2)), kind(np.ones(6))
        dictionary, codes = jd.Dictionary(kind(np.eye(3)[:2]), kind(np.zeros(3))), kind(np.ones((6, 2)))

        def checked(lam, X, Z, weights=weights, dictionary=dictionary):
            X = validation.check_data(X)
            validation.check_problem(jd.Problem(lam=lam, weights=weights, offset=False), X)
            validation.check_problem(jd.Problem(lam=0.1), X)
            validation.check_n_atoms(2, X)
            return lam * jnp.sum(validation.check_codes(Z, validation.check_dictionary(dictionary, X), X)) * jnp.sum(X)

        assert jnp.isfinite(CONTEXTS[context](lambda lam, X=good, Z=codes: checked(lam, X, Z)))
        with pytest.raises(ValueError, match="X has NaN or infinity"):
            CONTEXTS[context](lambda lam, X=bad, Z=codes: checked(lam, X, Z))
        with pytest.raises(ValueError, match="codes are negative"):
            CONTEXTS[context](lambda lam, X=good, Z=-codes: checked(lam, X, Z))


def test_a_lam_that_was_replaced_by_a_python_number_is_as_good_as_any():
    problem = eqx.tree_at(lambda p: p.lam, jd.Problem(lam=0.3), 7.0)
    with pytest.raises(ValueError, match="lam=7 is too large"):
        validation.check_problem(problem, jnp.asarray(rows()))
    assert problem.like(jnp.ones((2, 3), jnp.float32)).lam.dtype == jnp.float32


def test_how_a_number_is_written_does_not_change_its_type():
    for lam in (0.1, 1, np.float64(0.1), np.float32(0.1), jnp.float64(0.1), [0.1][0]):
        kind = jd.Problem(lam=lam).lam.aval
        assert (kind.dtype, kind.weak_type) == (jnp.float64, False)


def test_byte_orders_and_long_floats_are_converted():
    X = rows()
    for strange in (X.astype(">f8"), X.astype(np.longdouble), X.tolist(), [jnp.asarray(row) for row in X]):
        np.testing.assert_array_equal(validation.check_data(strange), X)
    point = validation.check_point(
        jd.Problem(lam=0.1), jd.Dictionary(np.eye(3, dtype=">f4")), np.ones((6, 3), int), X.astype(np.float16)
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(point)} == {jnp.dtype(jnp.float32)}
