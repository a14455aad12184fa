"""`polish`: the loss falls to a certified point, what changed is told, the new SAE reads back and serves."""

import jax.numpy as jnp
import numpy as np
import pytest
from audited import LAM, bare, noisy_sae, planted, truth_sae

import jaxdict as jd


@pytest.fixture(scope="module")
def polished():
    X, atoms, pairs, _ = planted(n_rows=600)
    X = X.astype(np.float64)
    return X, atoms, pairs, jd.polish(truth_sae(atoms), X, tol=1e-6)


@pytest.mark.slow
def test_it_ends_at_a_certified_point_below_the_start(polished):
    X, atoms, _, done = polished
    start = jd.Dictionary(jnp.asarray(atoms.astype(np.float32), jnp.float64), jnp.zeros(16))
    assert bool(done.solution.certificate.is_stationary(1e-6))
    assert float(done.after) < float(done.before) <= float(done.sae_before)
    problem = jd.Problem(lam=LAM)
    exact = jd.encode(problem, start, X, tol=1e-12).codes
    # The start's atoms are unit in float32 only: its loss is that of unit atoms to 1e-7.
    assert float(done.before) == pytest.approx(float(jd.objective(problem, start, exact, X)), rel=1e-6)
    own = done.sae.encode(X)
    assert float(done.sae_after) == pytest.approx(
        float(jd.objective(problem, done.solution.dictionary, own, X)), rel=1e-9
    )


@pytest.mark.slow
def test_children_of_hierarchies_are_what_changed(polished):
    _, atoms, pairs, done = polished
    changed = done.changes()
    assert {change.feature for change in changed} & {child for _, child in pairs}
    assert not {change.feature for change in changed} & {8, 9, 10, 11}  # the independent ones stay
    for change in changed:
        new = np.asarray(done.solution.dictionary.atoms)[change.feature]
        assert change.cosine == pytest.approx(float(new @ atoms[change.feature]), abs=1e-6)
        assert change.nearest_cosine >= change.cosine
        assert 0 <= change.frequency_after <= 1
    assert [change.cosine for change in changed] == sorted(change.cosine for change in changed)
    text = done.message()
    assert "loss fell" in text
    assert f"of {len(atoms)} features turned" in text


@pytest.mark.slow
def test_the_new_sae_reads_back_and_a_fitted_encoder_beats_a_tied_one(polished, tmp_path):
    X, atoms, _, done = polished
    read = jd.sae.load(done.save(tmp_path / "better"))
    np.testing.assert_allclose(read.encode(X.astype(np.float32)), done.sae.encode(X), atol=1e-4)
    tied = jd.polish(truth_sae(atoms), X, tol=1e-6, encoder="tied")
    assert float(done.sae_after) < float(tied.sae_after)
    np.testing.assert_allclose(np.asarray(tied.sae.b_enc), -LAM, rtol=1e-12)


def test_a_normalising_sae_keeps_its_normalisation():
    X = np.random.default_rng(0).normal(size=(600, 16))  # sizes of the polished one, compiled already
    done = jd.polish(noisy_sae(normalisation="layer_norm", d_sae=12), X, 0.3, tol=1e-2, max_steps=30)
    assert done.sae.normalisation == "layer_norm"
    assert done.sae(X).shape == X.shape
    assert float(done.after) <= float(done.before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((truth_sae(np.eye(4)), np.ones((9, 3))), "d_in = 4"),
        ((jd.Dictionary(jnp.eye(3)), np.ones((9, 3))), "lam is not given"),
        (("sae", np.ones((9, 3))), "str cannot be polished"),
        ((bare(kind="topk"), np.ones((9, 16))), r"\(topk\) has no L1 penalty"),
    ],
)
def test_bad_input_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        jd.polish(*arguments)


def test_an_unknown_encoder_is_refused():
    with pytest.raises(ValueError, match="encoder='best'"):
        jd.polish(truth_sae(np.eye(4)), np.ones((9, 4)), encoder="best")


def test_a_signed_sae_is_refused_not_made_non_negative():
    X = np.random.default_rng(0).normal(size=(200, 16))
    with pytest.raises(ValueError, match=r"features are negative in \d+ of 200 rows.*signed=True"):
        jd.polish(noisy_sae(kind="abstopk"), X, 0.1)


def test_ctrl_c_hands_over_what_was_reached():
    X, atoms, _, _ = planted(n_rows=300)

    def stop(progress):
        if progress.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        jd.polish(truth_sae(atoms), X.astype(np.float64), callback=stop, tol=1e-10)
    done = caught.value.polished
    assert int(done.solution.steps) == 3
    assert float(done.after) <= float(done.before)
    assert done.message().startswith("interrupted")
