"""`polish`: better SAEs are shown on fresh rows or not at all; what changed is told, the new SAE reads back and serves."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from audited import ACTIVE, ATOMS, LAM, K, bare, noisy_sae, planted, rows, top_three, truth_sae, turned

import jaxdict as jd
from jaxdict.sae.models import Metadata

pytestmark = pytest.mark.slow


def loss(sae, X, lam=None):
    """What an SAE's own codes are worth by row, recomputed with NumPy."""
    f = np.asarray(sae.encode(X), float)
    r = np.asarray(X, float) - f @ np.asarray(sae.W_dec, float) - np.asarray(sae.b_dec, float)
    squares = np.sum(r * r, axis=1)
    norms = np.linalg.norm(np.asarray(sae.W_dec, float), axis=1)
    return squares if lam is None else 0.5 * squares + lam * np.abs(f) @ norms


@pytest.fixture(scope="module")
def hierarchies():
    """An L1 SAE whose decoder is a truth with hierarchies, which no optimum keeps (C1); polished; and rows it never saw."""
    X, atoms, pairs, _ = planted(n_rows=4800)
    X = X.astype(np.float64)
    stages = []
    done = jd.polish(truth_sae(atoms), X[:1600], callback=lambda told: stages.append(told))
    return X[1600:], atoms, pairs, done, stages


def test_an_l1_sae_gets_better_on_rows_that_no_part_of_it_saw(hierarchies):
    fresh, atoms, _, done, _ = hierarchies
    assert done.better
    assert done.lam == LAM
    before, after = loss(truth_sae(atoms), fresh, LAM), loss(done.sae, fresh, LAM)
    falls = before - after
    assert falls.mean() > 3 * falls.std() / np.sqrt(len(falls))
    # What was reported, of some 200 rows, is what is found on 3,200 others.
    error = np.hypot(float(done.sae_gain.standard_error), falls.std() / np.sqrt(len(falls)))
    assert float(done.sae_gain.gain) == pytest.approx(falls.mean(), abs=4 * error)
    assert float(done.sae_before - done.sae_after) == pytest.approx(float(done.sae_gain.gain), rel=1e-6)
    assert 200 <= done.rows.judged == int(done.sae_gain.rows) == int(done.gain.rows) <= 210
    assert done.rows.fitted + done.rows.aside + done.rows.judged == 1600
    assert "blocks of neighbours" in done.message()
    assert "is better" in done.message()


def test_the_dictionarys_gain_is_that_of_exact_codes(hierarchies):
    fresh, atoms, _, done, _ = hierarchies
    problem, start = jd.Problem(lam=LAM), jd.Dictionary(jnp.asarray(atoms), jnp.zeros(16))
    found = jd.population.compare(problem, start, done.dictionary, fresh)
    assert float(found.z) > 3
    error = np.hypot(float(done.gain.standard_error), float(found.standard_error))
    assert float(done.gain.gain) == pytest.approx(float(found.gain), abs=4 * error)
    assert float(done.before - done.after) == pytest.approx(float(done.gain.gain), rel=1e-6)


def test_children_of_hierarchies_are_what_changed(hierarchies):
    _, atoms, pairs, done, _ = hierarchies
    changed = done.changes()
    assert {change.feature for change in changed} & {child for _, child in pairs}
    assert not {change.feature for change in changed} & {8, 9, 10, 11}  # the independent ones stay
    for change in changed:
        new = np.asarray(done.dictionary.atoms)[change.feature]
        assert change.cosine == pytest.approx(float(new @ atoms[change.feature]), abs=1e-6)
        assert change.nearest_cosine >= change.cosine - 1e-12
        assert 0 <= change.frequency_after <= 1
    assert [change.cosine for change in changed] == sorted(change.cosine for change in changed)
    assert f"of {len(atoms)} features turned" in done.message()


def test_its_stages_are_told(hierarchies):
    *_, stages = hierarchies
    assert {told.stage for told in stages} == {"passes", "encoder", "judging"}
    assert all(told.step <= told.max_steps and np.isfinite(told.seconds_left) for told in stages)


@pytest.mark.slow
def test_the_new_sae_reads_back_and_a_fitted_encoder_beats_a_tied_one(hierarchies, tmp_path):
    fresh, atoms, _, done, _ = hierarchies
    read = jd.sae.load(done.save(tmp_path / "better"))
    np.testing.assert_allclose(read.encode(fresh.astype(np.float32)), done.sae.encode(fresh), atol=1e-4)
    assert read.lam == pytest.approx(LAM)
    X = planted(n_rows=4800)[0].astype(np.float64)[:1600]
    tied = jd.polish(truth_sae(atoms), X, encoder="tied")
    assert float(done.sae_after) < float(tied.sae_after)
    assert loss(done.sae, fresh, LAM).mean() < loss(tied.sae, fresh, LAM).mean()
    if tied.better:
        np.testing.assert_allclose(tied.sae.W_enc, tied.sae.W_dec.T, rtol=1e-12)
        np.testing.assert_allclose(tied.sae.b_enc, -LAM, rtol=1e-12)


@pytest.fixture(scope="module")
def mended():
    """A TopK SAE with one atom turned, polished without any lam."""
    stages = []
    return jd.polish(top_three(turned()), rows(0, 1200), callback=lambda told: stages.append(told.stage)), stages


def test_a_turned_atom_of_a_topk_sae_is_turned_back(mended):
    done, stages = mended
    assert done.better
    assert done.lam is None
    assert done.solution is None
    fresh = rows(7, 3000)
    before, after = loss(top_three(turned()), fresh), loss(done.sae, fresh)
    assert after.mean() < 0.5 * before.mean()
    assert float(done.sae_before) == pytest.approx(before.mean(), rel=0.3)
    assert float(done.sae_after) == pytest.approx(after.mean(), rel=0.3)
    assert abs(float(np.asarray(done.dictionary.atoms)[0] @ ATOMS[0])) > 0.99
    assert np.all(np.count_nonzero(np.asarray(done.sae.encode(fresh)), axis=1) <= ACTIVE)
    assert done.sae.activation == top_three().activation
    assert {"dictionary", "encoder", "judging"} == set(stages)
    assert "squared error" in done.message()


@pytest.mark.parametrize("seed", range(10))
def test_an_sae_at_the_truth_comes_back_as_it_was(seed):
    sae = top_three()
    done = jd.polish(sae, rows(seed, 800))
    assert not done.better
    assert done.sae is sae
    assert "nothing better is shown: the SAE is returned as it was" in done.message()


@pytest.mark.slow
def test_few_rows_and_many_atoms_are_not_learned_by_heart(tmp_path):
    """The descent learns 200 rows with 64 atoms; on 4,000 others it is worse, and what is saved must not be."""
    rng = np.random.default_rng(0)
    d, n_atoms = 16, 64
    truth = rng.normal(size=(n_atoms, d))
    truth /= np.linalg.norm(truth, axis=1, keepdims=True)

    def draw(n):
        on = rng.random((n, n_atoms)) < 0.05
        return (on * rng.uniform(0.5, 1.5, on.shape)) @ truth + 0.3 * rng.normal(size=(n, d))

    X, fresh, sae = draw(200), draw(4000), truth_sae(truth)
    done = jd.polish(sae, X)
    heart = jd.fit(jd.Problem(lam=LAM), X, start=sae.dictionary, tol=1e-3, max_steps=60, allow_wide=True)
    start = jd.Dictionary(jnp.asarray(truth), jnp.zeros(d))
    assert float(jd.population.compare(jd.Problem(lam=LAM), start, heart.dictionary, fresh).z) < -3
    falls = loss(sae, fresh, LAM) - loss(done.sae, fresh, LAM)
    assert falls.mean() >= -3 * falls.std() / np.sqrt(len(falls))
    read = jd.sae.load(done.save(tmp_path / "saved"))
    assert loss(read, fresh.astype(np.float32), LAM).mean() <= 1.001 * loss(sae, fresh, LAM).mean()


@pytest.mark.slow
def test_a_dictionary_is_judged_by_itself_and_gets_an_encoder():
    X, atoms, _, _ = planted(n_rows=1600)
    X = X.astype(np.float64)
    done = jd.polish(jd.Dictionary(atoms), X, LAM)
    assert done.better
    assert done.sae_before is done.sae_gain is None
    assert done.sae.lam == LAM
    assert float(done.after) < float(done.before)
    assert float(done.after) <= float(done.sae_after)  # exact codes are the best
    tied = jd.sae.tied_sae(done.dictionary, LAM)
    assert loss(done.sae, X, LAM).mean() < loss(tied, X, LAM).mean()
    again = jd.polish(done.dictionary, X, LAM, encoder="tied")
    assert not again.better
    assert "it is returned as it was" in again.message()
    np.testing.assert_allclose(again.sae.W_dec, done.dictionary.atoms, atol=1e-12)


@pytest.mark.slow
def test_more_features_on_are_no_gain():
    """A jumprelu SAE whose thresholds are too high gains by lowering them, but not at its own number of features."""
    atoms = jnp.asarray(ATOMS)
    sae = jd.sae.SAE(
        atoms.T,
        jnp.zeros(K),
        atoms,
        jnp.zeros(16),
        threshold=jnp.full(K, 1.2),
        activation=jd.sae.Activation("jumprelu"),
    )
    done = jd.polish(sae, rows(0, 800))
    assert float(done.active_after) == pytest.approx(float(done.active_before), rel=0.05)
    fresh = rows(3, 2000)
    on = [np.count_nonzero(np.asarray(one.encode(fresh)), axis=1).mean() for one in (sae, done.sae)]
    assert on[1] <= 1.05 * on[0]


@pytest.mark.slow
def test_a_normalising_sae_keeps_its_normalisation():
    X = np.random.default_rng(0).normal(size=(800, 16))
    done = jd.polish(noisy_sae(normalisation="layer_norm", d_sae=12), X, 0.3, max_steps=5)
    assert done.better  # random weights
    assert done.sae.normalisation == "layer_norm"
    seen = np.asarray(done.sae.normalise(X))
    plain = replace(done.sae, normalisation="none")
    np.testing.assert_allclose(done.sae.encode(X), plain.encode(seen), atol=1e-12)
    assert float(done.sae_after) == pytest.approx(loss(plain, seen, 0.3).mean(), rel=0.2)


@pytest.mark.slow
def test_float32_rows_give_a_float32_sae(mended):
    done = jd.polish(top_three(turned()), rows(0, 1200).astype(np.float32))
    assert done.sae.W_enc.dtype == done.sae_after.dtype == jnp.float32
    assert float(done.sae_after) == pytest.approx(float(mended[0].sae_after), rel=0.05)


@pytest.mark.slow
def test_steps_and_tol_end_the_descent():
    X, atoms, _, _ = planted(n_rows=600)
    few = jd.polish(jd.Dictionary(atoms), X, LAM, max_steps=2, encoder="tied")
    assert int(few.solution.passes) == 2
    easy = jd.polish(jd.Dictionary(atoms), X, LAM, tol=10.0, encoder="tied")
    assert easy.message().startswith("converged")
    assert int(easy.solution.passes) == 1


def test_minutes_end_the_search():
    X, atoms, _, _ = planted(n_rows=600)
    sae = truth_sae(atoms)
    done = jd.polish(sae, X, minutes=1e-9)
    assert done.message().startswith("interrupted")
    assert int(done.solution.passes) <= 1
    without = jd.polish(top_three(turned()), rows(0, 600), minutes=1e-9)
    assert without.rows.fitted == 0
    assert float(without.sae_after) == pytest.approx(float(without.sae_before))  # no step of the encoder
    with pytest.raises(ValueError, match="positive number of minutes"):
        jd.polish(sae, X, minutes=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((truth_sae(np.eye(4)), np.ones((9, 3))), "d_in = 4"),
        ((jd.Dictionary(jnp.eye(3)), np.ones((9, 3))), "lam is not given"),
        ((replace(truth_sae(np.eye(3)), metadata=Metadata()), np.ones((9, 3))), "lam is not given"),
        ((jd.Dictionary(jnp.eye(3)), np.ones((90, 3)), -1.0), "lam is -1"),
        (("sae", np.ones((9, 3))), "str cannot be polished"),
        ((bare(kind="topk"), np.ones((9, 16))), "9 rows are too few to keep some aside"),
        ((bare(kind="topk"), np.ones((90, 16), int)), "floating point"),
        ((jd.Dictionary(jnp.eye(3)), np.ones((90, 4)), 0.1), "but the data 4 features"),
        ((truth_sae(np.eye(3)), np.full((90, 3), np.nan)), "row 0 of X|row .* of X holds NaN"),
    ],
)
def test_bad_input_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        jd.polish(*arguments)


def test_an_unknown_encoder_is_refused():
    with pytest.raises(ValueError, match="encoder='best'"):
        jd.polish(truth_sae(np.eye(4)), np.ones((9, 4)), encoder="best")


@pytest.mark.slow
def test_a_signed_sae_is_not_made_non_negative():
    X = np.random.default_rng(0).normal(size=(200, 16))
    with pytest.raises(ValueError, match=r"features are negative in \d+ of \d+ rows.*signed=True"):
        jd.polish(noisy_sae(kind="abstopk"), X, 0.1)
    done = jd.polish(bare(kind="abstopk"), X, max_steps=2)
    assert done.sae.activation.kind == "abstopk"
    assert (np.asarray(done.sae.encode(X)) < 0).any()


@pytest.mark.parametrize("stage", ["passes", "dictionary"])
def test_ctrl_c_hands_over_what_was_reached(stage):
    def stop(told):
        if told.stage == stage and told.step >= 1:
            raise KeyboardInterrupt

    given = (
        (truth_sae(planted(n_rows=9)[1]), planted(n_rows=600)[0])
        if stage == "passes"
        else (top_three(turned()), rows(0, 600))
    )
    with pytest.raises(KeyboardInterrupt) as caught:
        jd.polish(*given, callback=stop)
    done = caught.value.polished
    assert done.rows.fitted > 0
    assert done.better or done.sae is given[0]
    if stage == "passes":
        assert done.message().startswith("interrupted")
