"""Fits driven from Python: the same points as one program, nothing compiled twice, stopped at the next step with what was reached."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import compilations

import jaxdict as jd
from jaxdict.solvers import driven
from jaxdict.solvers.reduced import next_point_and_codes

X = jax.random.normal(jax.random.key(0), (60, 5), jnp.float64)
PROBLEM, KEY, TOL = jd.Problem(lam=0.4), jax.random.key(1), 1e-8


def fit(problem=PROBLEM, X=X, key=KEY, tol=TOL, max_steps=300, **options):
    return jd.fit(problem, X, 7, key=key, tol=tol, max_steps=max_steps, **options)


@pytest.mark.slow
def test_driven_and_traced_runs_are_one():
    seen = []
    alone = fit()
    traced = jax.jit(lambda X: fit(X=X, callback=seen.append))(X)
    jax.effects_barrier()
    assert sorted(progress.step for progress in seen) == list(range(1, int(traced.steps) + 1))
    assert int(alone.status) == int(traced.status) == 0
    assert int(alone.steps) == int(traced.steps)
    # The same pieces in programs of other bounds: only the order of sums inside them may differ.
    np.testing.assert_allclose(alone.dictionary.atoms, traced.dictionary.atoms, atol=1e-9)
    np.testing.assert_allclose(alone.codes, traced.codes, atol=1e-9)
    steps = int(alone.steps)
    for ours, theirs in zip(alone.history, traced.history, strict=True):
        assert ours.shape == (steps,) and theirs.shape == (300,)  # noqa: PT018
        np.testing.assert_allclose(ours, theirs[:steps], rtol=1e-6, atol=1e-9)
        assert np.all(np.asarray(theirs[steps:]) == theirs[steps - 1])  # what it ended with, to the end
    np.testing.assert_allclose(alone.objective, alone.history.objective[-1], rtol=1e-12)


@pytest.mark.slow
def test_chunks_are_not_noticed(monkeypatch):
    whole = fit()
    monkeypatch.setattr(driven, "CHUNK_SECONDS", 0.0)  # one step at a time
    single = fit()
    for ours, theirs in zip(jax.tree.leaves(whole), jax.tree.leaves(single), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.fixture
def compiled():
    """The names of programs compiled while the test runs, by jax's own count."""
    with compilations() as names:
        yield names


def test_other_values_compile_nothing(compiled):
    fit(X=np.asarray(X))
    more = [jnp.float64(0.5), jnp.float32(0.5), np.float32(0.5), 1.01 * X, jax.random.key(7)]
    fit(callback=lambda progress: None)
    compiled.clear()
    for lam in (0.5, *more[:3]):
        fit(jd.Problem(lam=lam))
    fit(eqx.tree_at(lambda p: p.lam, PROBLEM, 0.45))
    for tol in (1, np.float64(1e-5), np.float32(1e-5)):
        fit(tol=tol)
    fit(callback=lambda progress: None)
    fit(X=more[3])
    fit(X=1.02 * np.asarray(X))
    fit(key=more[4])
    fit(max_steps=301)
    assert compiled == []


def test_pieces_that_are_not_met_are_not_compiled(compiled):
    fit(X=X[:59], max_steps=2, tol=1e-3)  # of a shape that no other test has
    assert "jit(advance)" in compiled
    assert not {"jit(revive)", "jit(worthwhile_gain)", "jit(escape)"} & set(compiled)


@pytest.mark.parametrize(
    "error", [ValueError("mine"), KeyboardInterrupt(), SystemExit(3)], ids=lambda e: type(e).__name__
)
def test_what_a_callback_raises_arrives_with_the_point_reached(error):
    seen = []

    def callback(progress):
        seen.append(progress)
        if progress.step == 3:
            raise error

    with pytest.raises(type(error)) as caught:
        fit(callback=callback)
    assert caught.value is error
    assert [progress.step for progress in seen] == [1, 2, 3]
    reached = error.solution
    assert_is_reached(reached, 3)
    np.testing.assert_allclose(reached.history.objective, [progress.objective for progress in seen], rtol=1e-15)
    np.testing.assert_allclose(reached.history.stationarity, [p.stationarity for p in seen], rtol=1e-15)


def assert_is_reached(solution, steps):
    assert int(solution.steps) == steps
    assert "interrupted" in solution.message()
    told = jd.certify(PROBLEM, solution.dictionary, solution.codes, X)
    np.testing.assert_allclose(told.objective, solution.history.objective[-1], rtol=1e-12)
    np.testing.assert_allclose(told.stationarity.worst, solution.history.stationarity[-1], rtol=1e-7)
    assert float(solution.certificate.stationarity.worst) == float(told.stationarity.worst)


def test_ctrl_c_between_chunks_keeps_the_point_reached(monkeypatch):
    monkeypatch.setattr(driven, "CHUNK_SECONDS", 0.0)
    advance, calls = driven.pieces.advance, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return advance(*args)

    monkeypatch.setattr(driven.pieces, "advance", interrupted)
    with pytest.raises(KeyboardInterrupt) as caught:
        fit()
    assert_is_reached(caught.value.solution, 2)


def test_an_exception_that_takes_no_attribute_still_arrives():
    class Bare(Exception):
        __slots__ = ()

        def __setattr__(self, name, value):
            raise AttributeError(name)

    def callback(progress):
        raise Bare

    with pytest.raises(Bare):
        fit(callback=callback)


class Killer(eqx.Module):
    """A user's own solver: each step turns an atom that `reaches` data away from all of them, and calls that stationary."""

    once: bool = eqx.field(static=True, default=False)
    slots: int | None = eqx.field(static=True, default=None)

    def init_at(self, problem, X, iterate, codes):
        return iterate, codes, jnp.isnan(iterate.objective)

    def step(self, problem, X, state):
        iterate = state[0]
        first = iterate.dictionary.atoms[0]
        dies = (first[0] == 1) | (not self.once)
        moved = iterate.dictionary.atoms.at[0].set(jnp.where(dies, -jnp.ones_like(first) / first.size**0.5, first))
        dictionary = jd.Dictionary(moved, iterate.dictionary.offset)
        return *next_point_and_codes(problem, X, dictionary, iterate.slots), ~jnp.isnan(iterate.objective)

    def progress_of(self, state):
        iterate, _, stepped = state
        return iterate.objective, jnp.where(stepped, 0, jnp.inf).astype(iterate.objective.dtype), stepped & False

    def point(self, problem, X, state):
        return state[:2]


POSITIVE, START = jnp.abs(X), jd.Dictionary(jnp.eye(5), jnp.zeros(5))
FIXED = jd.Problem(lam=0.4, offset=False)


@pytest.mark.slow
@pytest.mark.parametrize("trace", [lambda f: f, jax.jit], ids=["driven", "traced"])
def test_dead_atoms_at_the_last_step_and_after_the_last_round(trace):
    def run(X, max_steps):
        return jd.fit(FIXED, X, start=START, solver=Killer(), tol=100.0, max_steps=max_steps)

    last = trace(lambda X: run(X, 1))(POSITIVE)
    assert (int(last.status), int(last.steps)) == (4, 1)
    assert "raise max_steps" in last.message()
    rounds = trace(lambda X: run(X, 50))(POSITIVE)
    assert (int(rounds.status), int(rounds.steps)) == (9, 12)
    assert "rounds used up" in rounds.message() and "max_steps" not in rounds.message()  # noqa: PT018


@pytest.mark.slow
def test_rounds_that_ran_out_away_from_a_stationary_point_are_told_as_such():
    """The solver calls stationary what the certificate does not: more rounds would help, not another precision."""
    solution = jd.fit(FIXED, POSITIVE, start=START, solver=Killer(), tol=1e-9, max_steps=50)
    assert float(solution.certificate.stationarity.worst) > 1e-9
    assert (int(solution.status), int(solution.steps)) == (9, 12)


@pytest.mark.slow
def test_atoms_that_die_in_mid_run_are_reborn():
    solver = jd.solvers.Combined(first=Killer(once=True), second=jd.solvers.Newton(), switch=1e-3)
    seen = []
    solution = jd.fit(FIXED, POSITIVE, start=START, solver=solver, tol=1e-6, max_steps=300, callback=seen.append)
    assert int(solution.status) == 0, solution.message()
    assert int(solution.certificate.n_dead) == 0
    assert (
        len({p.step for p in seen if p.stage == "Killer"}) >= 2
    )  # it died in the first round, and a second one followed


@pytest.mark.slow
def test_a_saddle_that_no_step_is_left_for_is_called_one():
    # One atom between two far directions of equal weight: stationary by symmetry, and worse than either.
    rng = np.random.default_rng(0)
    size = np.repeat(rng.uniform(1, 2, 30), 2)[:, None]
    rows = size * np.array([[0.5, 0.75**0.5], [0.5, -(0.75**0.5)]] * 30)
    start = jd.Dictionary(jnp.array([[1.0, 0.0]]))
    problem = jd.Problem(lam=0.1, offset=False)
    stays = jd.fit(problem, rows, start=start, second_order=True, max_steps=0)
    assert int(stays.status) == 6, stays.message()
    assert stays.history.objective.shape == (0,)
    left = jd.fit(problem, rows, start=start, second_order=True)
    assert int(left.status) == 0, left.message()
    assert float(left.objective) < 0.99 * float(stays.objective)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_scale_does_not_matter(dtype):
    tol, scales = (1e-4, (1e-30, 1e-19, 1e19, 1e30)) if dtype == jnp.float32 else (1e-8, (1e-200, 1e-120, 1e120, 1e200))
    rows = np.asarray(X)
    metric = np.array([0.5, 1, 2, 1, 0.7])
    one = fit(jd.Problem(lam=0.4, metric=metric), X=rows.astype(dtype), tol=tol)
    assert int(one.status) == 0, one.message()
    for scale in scales:
        problem = jd.Problem(lam=0.4 * scale, metric=metric)
        other = fit(problem, X=(rows * scale).astype(dtype), tol=tol)
        assert int(other.status) == 0, other.message()
        # Rounding of the data themselves, times the condition of the optimum.
        loose = 1e-3 if dtype == jnp.float32 else 1e-8
        np.testing.assert_allclose(other.dictionary.atoms, one.dictionary.atoms, atol=loose)
        np.testing.assert_allclose(np.asarray(other.codes, float) / scale, one.codes, atol=loose)
        np.testing.assert_allclose(
            np.asarray(other.dictionary.offset, float) / scale, one.dictionary.offset, atol=loose
        )
        np.testing.assert_allclose(other.explained_variance, one.explained_variance, atol=loose)
    if dtype == jnp.float32:  # and in one program, whose scale is not known before it runs
        traced = jax.jit(lambda X, lam: fit(jd.Problem(lam=lam, metric=metric), X=X, tol=tol))
        for scale in scales:
            other = traced((rows * scale).astype(dtype), np.float32(0.4 * scale))
            assert int(other.status) == 0
            np.testing.assert_allclose(other.dictionary.atoms, one.dictionary.atoms, atol=loose)


@pytest.mark.slow
def test_metrics_of_any_size():
    one = fit()
    for size in (1e-30, 1e30):
        other = fit(jd.Problem(lam=0.4 * size, metric=size * jnp.ones(5)))
        assert int(other.status) == 0
        np.testing.assert_allclose(other.dictionary.atoms, one.dictionary.atoms, atol=1e-8)


@pytest.mark.slow
def test_what_a_solution_says_of_usage_and_variance():
    weights = np.tile([0.0, 1.0, 2.0], 20)
    solution = fit(jd.Problem(lam=0.4, weights=weights), tol=1e-6)
    w, Z = weights / weights.sum(), np.asarray(solution.codes)
    np.testing.assert_allclose(solution.usage, w @ (Z != 0), rtol=1e-12)
    np.testing.assert_allclose(solution.l0, w @ np.sum(Z != 0, axis=1), rtol=1e-12)
    rows = np.asarray(X)
    left = rows - solution.dictionary.offset - Z @ solution.dictionary.atoms
    total = w @ np.sum((rows - w @ rows) ** 2, axis=1)
    np.testing.assert_allclose(
        solution.explained_variance, 1 - w @ np.sum(np.asarray(left) ** 2, axis=1) / total, rtol=1e-12
    )


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "options", [{}, {"offset": False}, {"weights": [1.0, 2.0] * 100}], ids=["free", "fixed", "weighted"]
)
def test_outliers_trap_no_start(seed, options):
    # Three rows in two hundred, 20,000 times as long: each is worth an atom of its own, which leaves of it lam ||x|| in F's mean.
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(200, 8))
    far = rng.choice(200, 3, replace=False)
    rows[far] *= 2e4
    problem = jd.Problem(lam=0.5, **options)
    w = np.asarray(options.get("weights", np.ones(200)))
    least = w[far] / w.sum() @ (0.5 * np.linalg.norm(rows[far], axis=1) - 0.125)
    for start in ("data", "random"):
        ends = [jd.fit(problem, rows, 12, key=jax.random.key(k), start=start, max_steps=300) for k in range(2)]
        assert [int(end.status) for end in ends] == [0, 0]
        assert max(float(end.objective) for end in ends) <= least + 2 + 1e-2 * least
