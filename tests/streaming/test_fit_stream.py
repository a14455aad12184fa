"""`fit_stream` against `certify` and `fit` on the same rows, and against what is known of a planted population."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdict as jd
from jaxdict.solvers import Online
from jaxdict.streaming import job, read_codes, write_codes

D_IN, K = 6, 5
TRUE = np.linalg.qr(np.random.default_rng(0).normal(size=(D_IN, D_IN)))[0][:K]
KEY = jax.random.key(1)


def planted(n, seed=0, dtype=np.float64):
    luck = np.random.default_rng(seed)
    codes = (luck.uniform(size=(n, K)) < 0.3) * luck.uniform(0.5, 1.5, (n, K))
    return (codes @ TRUE + 0.05 * luck.normal(size=(n, D_IN))).astype(dtype)


X = planted(600)
SHORT = Online(batch_size=100, epochs=3)
KINDS = {
    "plain": {},
    "signed, no offset": {"signed": True, "offset": False},
    "metric, weights, penalised": {
        "metric": jnp.linspace(0.5, 2, D_IN),
        "weights": jnp.asarray(np.arange(600) % 3, float),
        "gauge": "penalised",
    },
}


@pytest.mark.parametrize("kind", [pytest.param(k, marks=() if k == "plain" else pytest.mark.slow) for k in KINDS])
def test_exact_passes_end_at_a_point_that_certify_confirms(kind):
    problem = jd.Problem(lam=0.1, **KINDS[kind])
    found = jd.fit_stream(problem, X, K, key=KEY, held_out=0, passes=120, tol=1e-6, solver=SHORT)
    assert found.message().startswith("converged")
    codes = jd.encode(problem, found.dictionary, X, tol=1e-13).codes
    seen = jd.certify(problem, found.dictionary, codes, X)
    assert float(seen.objective) == pytest.approx(float(found.objective), rel=1e-12)
    assert float(seen.stationarity.worst) == pytest.approx(float(found.stationarity), rel=1e-3)
    assert float(found.stationarity) <= 1e-6
    assert found.population is None


@pytest.mark.slow
def test_the_objective_stands_on_rows_kept_aside():
    problem, fresh = jd.Problem(lam=0.1), planted(500, seed=5)
    start = jd.Dictionary(jnp.asarray(TRUE + 0.1 * np.random.default_rng(2).normal(size=TRUE.shape)))
    options = {"key": KEY, "held_out": fresh, "passes": 10, "solver": SHORT, "start": start}
    found = jd.fit_stream(problem, planted(2000), **options)
    values = [
        float(jd.objective(problem, there, jd.encode(problem, there, fresh, tol=1e-12).codes, fresh))
        for there in (found.dictionary, jd.Dictionary(jnp.asarray(TRUE), jnp.zeros(D_IN)))
    ]
    assert float(found.objective) == pytest.approx(values[0], rel=1e-9)
    assert float(found.objective) < values[1]
    assert 0 < float(found.standard_error) < 0.1 * float(found.objective)
    assert int(found.population.rows) == 500
    assert float(found.population.rms) < 0.2
    assert "500 rows kept aside" in found.message()
    kept = found.history.objective[found.history.stage == 1]
    assert float(found.objective) == pytest.approx(np.min(kept), rel=1e-9)


@pytest.mark.slow
def test_the_stochastic_stage_alone_finds_the_planted_atoms():
    found = jd.fit_stream(
        jd.Problem(lam=0.1, offset=False), planted(4000), K, key=KEY, passes=0, solver=Online(batch_size=100)
    )
    cosines = np.max(TRUE @ np.asarray(found.dictionary.atoms).T, axis=1)
    assert np.min(cosines) > 0.99
    assert found.history.objective[-1] < found.history.objective[0]
    assert set(found.history.stage) == {0}


@pytest.mark.slow
def test_same_key_same_digits_whatever_the_source_is():
    problem, half = jd.Problem(lam=0.1), planted(500, dtype=np.float16)
    options = {"key": KEY, "held_out": planted(40, seed=3), "passes": 2, "solver": Online(batch_size=100, epochs=0)}
    start = jd.Dictionary(jnp.asarray(TRUE, jnp.float32), jnp.zeros(D_IN, jnp.float32))
    first = jd.fit_stream(problem, half, start=start, **options)
    again = jd.fit_stream(problem, lambda: (half[a : a + 33] for a in range(0, 500, 33)), start=start, **options)
    assert first.dictionary.atoms.dtype == jnp.float32
    np.testing.assert_array_equal(first.dictionary.atoms, again.dictionary.atoms)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["online", "passes"])
def test_dead_atoms_are_reborn(stage):
    """Two atoms point where no row is; afterwards all five are the planted ones."""
    start = jd.Dictionary(jnp.asarray(np.concatenate([TRUE[:3], -TRUE[3:]])))
    solver = Online(batch_size=50, epochs=4 if stage == "online" else 0)
    options = {"passes": 0} if stage == "online" else {"passes": 30}
    held = planted(100, seed=3)
    found = jd.fit_stream(
        jd.Problem(lam=0.1, offset=False), X, start=start, key=KEY, held_out=held, solver=solver, **options
    )
    assert np.min(np.max(TRUE @ np.asarray(found.dictionary.atoms).T, axis=1)) > 0.97


@pytest.mark.slow
def test_progress_says_how_long_and_how_good(monkeypatch):
    monkeypatch.setattr(job, "TELL_SECONDS", 0)
    told = []
    found = jd.fit_stream(jd.Problem(lam=0.1), X, K, key=KEY, passes=2, solver=SHORT, callback=told.append)
    np.testing.assert_array_equal(told[-1].dictionary.atoms, found.dictionary.atoms)
    assert not np.array_equal(told[0].dictionary.atoms, found.dictionary.atoms)
    assert [one.stage for one in told] == sorted(one.stage for one in told)
    for stage in ("online", "passes"):
        own = [one for one in told if one.stage == stage]
        assert all(a.step <= b.step <= b.max_steps for a, b in itertools.pairwise(own))
        assert all(one.seconds_left >= 0 for one in own)
        assert own[-1].rows > 0
    assert told[-1].objective > told[-1].standard_error > 0
    assert told[-1].seconds_left == 0


@pytest.mark.slow
def test_codes_of_a_source_go_to_disk_chunk_by_chunk(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxdict.streaming.sums.MOST_ROWS", 64)
    problem, dictionary = jd.Problem(lam=0.1), jd.Dictionary(jnp.asarray(2 * TRUE))
    parts = list(read_codes(write_codes(problem, dictionary, X[:150], tmp_path)))
    assert [part.values.shape[0] for part in parts] == [64, 64, 22]
    dense = jnp.concatenate([jd.dense_codes(part, K) for part in parts])
    np.testing.assert_allclose(dense, jd.encode(problem, dictionary, X[:150], tol=1e-12).codes, atol=1e-6)
    with pytest.raises(FileNotFoundError, match="no codes"):
        next(read_codes(tmp_path / "elsewhere"))


def test_what_is_refused():
    problem = jd.Problem(lam=0.1)

    def refused(match, problem=problem, source=X, n_atoms=K, **options):
        with pytest.raises(ValueError, match=match):
            jd.fit_stream(problem, source, n_atoms, **{"key": KEY, **options})

    refused("n_atoms is not given", n_atoms=None)
    refused("distinct", source=X[:20], n_atoms=30)
    refused("lam_max", problem=jd.Problem(lam=50.0))
    refused("start=", start="elsewhere")
    refused("start has 5 atoms", n_atoms=4, start=jd.Dictionary(jnp.asarray(TRUE)))
    refused("solver is a Newton", solver=jd.solvers.Newton())
    refused("passes=-1", passes=-1)
    refused("tol=nan", tol=float("nan"))
    refused("metric has shape", problem=jd.Problem(lam=0.1, metric=jnp.ones(3)))
    for name, value in (("batch_size", 0), ("epochs", -1), ("decay", 2), ("averaging", -1), ("code_tol", 0)):
        with pytest.raises(ValueError, match=name):
            Online(**{name: value})


@pytest.mark.parametrize("stage", ["online", "passes"])
def test_what_stops_a_run_carries_the_point_reached(monkeypatch, stage):
    monkeypatch.setattr(job, "TELL_SECONDS", 0)

    class Enough(Exception):
        pass

    def callback(told):
        if told.stage == stage and told.step > 3:
            raise Enough

    with pytest.raises(Enough) as stopped:
        jd.fit_stream(jd.Problem(lam=0.1), X, K, key=KEY, passes=9, solver=SHORT, callback=callback)
    reached = stopped.value.solution
    assert reached.message().startswith("interrupted")
    assert np.isfinite(float(reached.objective))
    np.testing.assert_allclose(np.linalg.norm(reached.dictionary.atoms, axis=1), 1)
