"""Encoders between one matmul and exact codes: closed forms, ISTA by numpy, the gap as judge, training that never loses."""

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import compilations, own

import jaxdict as jd
from jaxdict.encoding.lasso import check, lasso_of
from jaxdict.sae import SAE, Activation, Transcoder, UnrolledEncoder

N, D, K, LAM = 60, 6, 12, 0.2
draw = np.random.default_rng(0)
ATOMS = draw.normal(size=(K, D))
ATOMS /= np.linalg.norm(ATOMS, axis=1, keepdims=True)
OFFSET = 0.3 * draw.normal(size=D)
X = (
    (draw.exponential(size=(N, K)) * (draw.uniform(size=(N, K)) < 0.2)) @ ATOMS
    + OFFSET
    + 0.05 * draw.normal(size=(N, D))
)
PROBLEM, DICTIONARY = jd.Problem(lam=LAM), jd.Dictionary(ATOMS, OFFSET)
# An SAE with rows of other lengths, whose dictionary is the same.
NORMS = draw.uniform(0.5, 2, K)
START = SAE(ATOMS.T + 0.1 * draw.normal(size=(D, K)), -0.4 * np.ones(K), ATOMS * NORMS[:, None], OFFSET)


def objective(codes) -> float:
    return float(jd.objective(PROBLEM, DICTIONARY, codes, X))


@pytest.fixture(scope="module")
def exact():
    return np.asarray(jd.encode(PROBLEM, DICTIONARY, X, tol=1e-12).codes)


@pytest.fixture(scope="module")
def trained():
    return jd.sae.train_unrolled(PROBLEM, DICTIONARY, X, 2, key=jax.random.key(0), steps=60, batch_size=32)


def test_one_step_with_hand_made_numbers_is_an_sae():
    sizes, levels = draw.uniform(0.5, 2, K), draw.uniform(0.1, 0.5, K)
    encoder = UnrolledEncoder(PROBLEM, DICTIONARY, sizes[None], levels[None], np.zeros(1))
    sae = SAE(ATOMS.T * sizes, -sizes * levels, ATOMS, OFFSET)
    np.testing.assert_allclose(encoder.encode(X), sae.encode(X), rtol=1e-12, atol=1e-14)


def test_one_untrained_step_is_a_tied_sae_where_atoms_are_orthonormal():
    plane = jd.Dictionary(np.eye(D), OFFSET)
    np.testing.assert_allclose(
        jd.sae.unroll(PROBLEM, plane, 1).encode(X), jd.sae.tied_sae(plane, LAM).encode(X), rtol=1e-12
    )


def by_numpy(depth, size, accelerated, z):
    """ISTA or FISTA as in Beck and Teboulle, a step a line."""
    v, t = z, 1.0
    for _ in range(depth):
        new = np.maximum(v + size * ((X - OFFSET - v @ ATOMS) @ ATOMS.T - LAM), 0)
        t_new = (1 + np.sqrt(1 + 4 * t * t)) / 2
        v = new + (t - 1) / t_new * (new - z) if accelerated else new
        z, t = new, t_new
    return z


@pytest.mark.parametrize("accelerated", [False, True])
@pytest.mark.parametrize("start", [None, START])
def test_with_nothing_learned_it_is_ista_and_fista_by_numpy(accelerated, start):
    encoder = jd.sae.unroll(PROBLEM, DICTIONARY, 4, start=start, accelerated=accelerated)
    size = float(encoder.step_sizes[0, 0])
    largest = np.linalg.eigvalsh(ATOMS @ ATOMS.T)[-1]
    assert largest <= 1 / size <= 1.06 * largest
    begin = np.zeros((N, K)) if start is None else np.asarray(start.encode(X)) * NORMS
    np.testing.assert_allclose(encoder.encode(X), by_numpy(4, size, accelerated, begin), rtol=1e-10, atol=1e-12)


def test_no_step_from_an_sae_is_the_sae():
    for encoder in (
        jd.sae.unroll(PROBLEM, DICTIONARY, 0, start=START),
        jd.sae.unroll_moves(PROBLEM, DICTIONARY, 0, start=START),
    ):
        np.testing.assert_allclose(encoder.encode(X), START.canonical().encode(X), rtol=1e-12)
    assert not np.any(jd.sae.unroll(PROBLEM, DICTIONARY, 0).encode(X))


def test_untrained_steps_never_raise_the_objective_and_close_the_gap():
    codes = [jd.sae.unroll(PROBLEM, DICTIONARY, depth, accelerated=False).encode(X) for depth in (1, 2, 4, 16, 2000)]
    values = [objective(one) for one in codes]
    assert values == sorted(values, reverse=True)
    gaps = [
        float(check(lasso_of(PROBLEM, DICTIONARY, jnp.asarray(X)), one).gap.max()) for one in (codes[1], codes[-1])
    ]  # T2
    assert gaps[1] < 1e-5 < 1e-2 < gaps[0]


def test_moves_are_greedy_coordinate_descent_by_hand():
    z, step = np.zeros((N, K)), 5
    for _ in range(step):
        pulls = (X - OFFSET - z @ ATOMS) @ ATOMS.T
        change = np.maximum(z + pulls - LAM, 0) - z
        best = np.argmax(change * (pulls - LAM) - change**2 / 2, axis=1)
        z[np.arange(N), best] += change[np.arange(N), best]
    np.testing.assert_allclose(jd.sae.unroll_moves(PROBLEM, DICTIONARY, step).encode(X), z, rtol=1e-10, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("start", [None, START])
def test_moves_never_raise_the_objective_and_end_at_exact_codes(start, exact):
    codes = [jd.sae.unroll_moves(PROBLEM, DICTIONARY, moves, start=start).encode(X) for moves in (0, 1, 4, 2000)]
    values = [objective(one) for one in codes]
    assert values == sorted(values, reverse=True)
    assert values[-1] == pytest.approx(objective(exact), rel=1e-10)
    assert min(float(one.min()) for one in codes) >= 0


@pytest.mark.slow
def test_codes_are_for_the_atoms_as_they_are():
    """Free norms, a metric: the encoder's fixed point is still that of `encode`."""
    problem = jd.Problem(lam=LAM, gauge="penalised", metric=draw.uniform(0.5, 2, D), weights=np.ones(N))
    longer = jd.Dictionary(ATOMS * NORMS[:, None], OFFSET)
    exact = jd.encode(problem, longer, X, tol=1e-12).codes
    for encoder in (jd.sae.unroll(problem, longer, 2000, start=START), jd.sae.unroll_moves(problem, longer, 2000)):
        np.testing.assert_allclose(encoder.encode(X), exact, atol=1e-4)
    # The SAE's rows are these atoms: its codes are codes of them.
    np.testing.assert_allclose(jd.sae.unroll(problem, longer, 0, start=START).encode(X), START.encode(X), rtol=1e-12)


def test_training_lowers_the_objective_of_its_rows(trained):
    ista = jd.sae.unroll(PROBLEM, DICTIONARY, 2, accelerated=False)
    assert objective(trained.encode(X)) < objective(ista.encode(X))
    gap = jd.sae.amortisation_gap(PROBLEM, DICTIONARY, trained.encode(X), X, tol=1e-10)
    assert gap.shape == (N,)
    assert float(gap.min()) > -1e-8
    assert float(gap.mean()) < 0.6 * float(jd.sae.amortisation_gap(PROBLEM, DICTIONARY, ista.encode(X), X).mean())
    assert float(trained.encode(X).min()) == 0


def test_no_step_raises_the_objective_of_any_row_whatever_was_learned():
    """Step sizes that would diverge by far, levels of nothing in particular: each row goes the best part of each step."""
    sizes, levels = draw.uniform(0, 50, (6, K)), draw.uniform(0, 1, (6, K))
    codes = [
        UnrolledEncoder(PROBLEM, DICTIONARY, sizes[:depth], levels[:depth], None, START).encode(X) for depth in range(7)
    ]
    gaps = np.stack([jd.sae.amortisation_gap(PROBLEM, DICTIONARY, one, X, tol=1e-10) for one in codes])
    assert np.all(np.diff(gaps, axis=0) <= 1e-12)
    assert gaps[-1].mean() < 0.9 * gaps[0].mean()
    z = np.asarray(codes[0])
    new = np.maximum(z + sizes[0] * ((X - OFFSET - z @ ATOMS) @ ATOMS.T - levels[0]), 0)
    tried = [jd.sae.amortisation_gap(PROBLEM, DICTIONARY, z + a * (new - z), X) for a in np.linspace(0, 1, 11)]
    assert np.all(gaps[1] <= np.min(tried, axis=0) + 1e-9)


def test_training_that_goes_wrong_gives_back_its_start():
    options = {"key": jax.random.key(0), "steps": 20, "batch_size": 32}
    wild = jd.sae.train_unrolled(PROBLEM, DICTIONARY, X, 2, learning_rate=30.0, **options)
    start = objective(jd.sae.unroll(PROBLEM, DICTIONARY, 2).encode(X))
    assert objective(wild.encode(X)) <= start * (1 + 1e-12)


@pytest.mark.slow
def test_training_starts_from_the_sae_that_is_given(trained):
    options = {"key": jax.random.key(0), "steps": 20, "batch_size": 32}
    encoder = jd.sae.train_unrolled(PROBLEM, DICTIONARY, X, 1, start=START, **options)
    untrained = jd.sae.unroll(PROBLEM, DICTIONARY, 1, start=START)
    assert objective(encoder.encode(X)) < objective(untrained.encode(X)) < objective(START.canonical().encode(X))


@pytest.mark.slow
def test_rows_of_weight_zero_have_no_part():
    weights, others = np.where(np.arange(N) < 10, 1.0, 0.0), np.where(np.arange(N)[:, None] < 10, X, 2 * X)

    def sizes(rows, w):
        options = {"key": jax.random.key(0), "steps": 20, "batch_size": 32}
        return jd.sae.train_unrolled(jd.Problem(lam=LAM, weights=w), DICTIONARY, rows, 2, **options).step_sizes

    np.testing.assert_allclose(sizes(X, weights), sizes(others, weights), rtol=1e-9)
    assert np.any(np.abs(sizes(X, None) - sizes(others, None)) > 1e-3)


def test_a_second_training_compiles_nothing():
    def train(rows, lam, **options):
        return jd.sae.train_unrolled(jd.Problem(lam=lam), DICTIONARY, rows, 2, batch_size=32, **options)

    jax.block_until_ready(train(X, LAM, key=jax.random.key(0), steps=20))
    with compilations() as programs:
        jax.block_until_ready(train(0.9 * X, 0.9 * LAM, key=jax.random.key(1), steps=30, learning_rate=0.1))
    assert not own(programs)


@pytest.mark.slow
def test_more_steps_and_a_faster_rate_go_further():
    """Options that are heard: each changes what comes out."""
    base = {"key": jax.random.key(0), "steps": 20, "batch_size": 32, "learning_rate": 1e-3}
    changed = ({"key": jax.random.key(1)}, {"steps": 40}, {"batch_size": 16}, {"learning_rate": 1e-2})
    first, *others = (jd.sae.train_unrolled(PROBLEM, DICTIONARY, X, 2, **base | more) for more in ({}, *changed))
    assert all(np.any(np.asarray(one.step_sizes) != np.asarray(first.step_sizes)) for one in others)


def test_it_is_kept_and_read_again_by_equinox(trained, tmp_path):
    like = replace(jd.sae.unroll(PROBLEM, DICTIONARY, 2), momentum=None)
    eqx.tree_serialise_leaves(tmp_path / "encoder.eqx", trained)
    again = eqx.tree_deserialise_leaves(tmp_path / "encoder.eqx", like)
    np.testing.assert_array_equal(again.encode(X), trained.encode(X))


@pytest.mark.slow
def test_an_encoder_is_an_argument_like_any_other(trained):
    rows = jnp.asarray(X)
    wanted = trained.encode(rows)
    np.testing.assert_allclose(jax.jit(lambda e, x: e.encode(x))(trained, rows), wanted, rtol=1e-12)
    np.testing.assert_allclose(jax.vmap(lambda x: trained.encode(x[None])[0])(rows), wanted, rtol=1e-10, atol=1e-14)
    assert trained.encode(X.astype(np.float32)).dtype == np.float32


@pytest.mark.parametrize("sparse", [False, True])
def test_exact_codes_from_an_sae_are_those_of_a_cold_start(sparse, exact):
    done = jd.sae.exact_codes(START, X, LAM, tol=1e-12, sparse=sparse)
    assert int(done.status) == 0
    assert float(done.gap.max()) < 1e-11
    np.testing.assert_allclose(jd.dense_codes(done.codes, K), exact, atol=1e-5)


@pytest.mark.slow
def test_exact_codes_start_where_the_sae_is():
    """An SAE that is right already needs no round; its own lam is taken where none is given."""
    plane = jd.sae.tied_sae(jd.Dictionary(np.eye(D), OFFSET), LAM)
    done = jd.sae.exact_codes(plane, X, method="working_set")
    assert int(done.steps) == 0
    np.testing.assert_allclose(done.codes, plane.encode(X), atol=1e-12)
    assert int(jd.sae.exact_codes(START, X, LAM, method="gradient", max_steps=1, tol=1e-12).status) == 1
    assert jd.sae.exact_codes(plane, X, sparse=True, slots=D).codes.indices.shape == (N, D)


def made(**fields):
    return replace(START, **fields)


REFUSED = {
    "signed codes": (lambda: jd.sae.unroll(jd.Problem(lam=LAM, signed=True), DICTIONARY, 1), "signed=True: .*encode"),
    "depth below zero": (lambda: jd.sae.unroll(PROBLEM, DICTIONARY, -1), "depth is -1; .* at least 0"),
    "half a step": (lambda: jd.sae.unroll(PROBLEM, DICTIONARY, 1.5), r"depth is 1\.5; "),
    "moves below zero": (lambda: jd.sae.unroll_moves(PROBLEM, DICTIONARY, -2), "moves is -2; "),
    "another SAE's start": (
        lambda: jd.sae.unroll(PROBLEM, jd.Dictionary(ATOMS[:5]), 1, start=START),
        "start has 12 features of width 6 but the dictionary 5 atoms of width 6; ",
    ),
    "a start that normalises": (
        lambda: jd.sae.unroll(PROBLEM, DICTIONARY, 1, start=made(normalisation="layer_norm")),
        r"start normalises its input \(layer_norm\).*; ",
    ),
    "a start with signs": (
        lambda: jd.sae.unroll_moves(PROBLEM, DICTIONARY, 1, start=made(activation=Activation("abstopk", k=2))),
        "start has activation 'abstopk'.*; ",
    ),
    "a transcoder": (
        lambda: jd.sae.exact_codes(Transcoder(ATOMS.T, np.zeros(K), ATOMS, np.zeros(D)), X, LAM),
        "sae is a Transcoder; ",
    ),
    "no lam": (lambda: jd.sae.exact_codes(START, X), "lam is not given .*; give lam"),
    "hand-made numbers of another shape": (
        lambda: UnrolledEncoder(PROBLEM, DICTIONARY, np.ones((2, K)), np.ones((2, K - 1)), np.zeros(2)),
        r"levels has shape \(2, 11\), expected \(2, 12\)",
    ),
    "no training step": (
        lambda: jd.sae.train_unrolled(PROBLEM, DICTIONARY, X, 1, key=jax.random.key(0), steps=0),
        "steps is 0; ",
    ),
    "an empty batch": (
        lambda: jd.sae.train_unrolled(PROBLEM, DICTIONARY, X, 1, key=jax.random.key(0), batch_size=0),
        "batch_size is 0; ",
    ),
    "a rate of zero": (
        lambda: jd.sae.train_unrolled(PROBLEM, DICTIONARY, X, 1, key=jax.random.key(0), learning_rate=0.0),
        r"learning_rate is 0\.0; ",
    ),
    "NaN in the rows": (
        lambda: jd.sae.train_unrolled(PROBLEM, DICTIONARY, np.full((N, D), np.nan), 1, key=jax.random.key(0)),
        "NaN or infinity",
    ),
    "rows of another width": (
        lambda: jd.sae.unroll(PROBLEM, DICTIONARY, 1).encode(X[:, :4]),
        r"\(12, 6\).* 4 features",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused_before_any_compute(what):
    call, says = REFUSED[what]
    with pytest.raises(ValueError, match=says):
        call()
