"""SynthSAEBench's metrics against plain numpy and scipy, absorption along edges against counts by hand."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

import jaxdict as jd
from jaxdict import recovery, synthetic
from jaxdict.recovery.benchmarks import _matched, _matched_in_program
from jaxdict.synthetic import Forest, firing

KEY = jax.random.key(0)
ROWS, LATENTS = 300, 6


@pytest.fixture(scope="module")
def planted():
    forest = Forest(roots=2, branching=2, depth=2, compensate=True)
    model = synthetic.bench_model(KEY, 9, 4, firing=firing.Linear(0.5, 0.1), forest=forest, spreads=0.2)
    return synthetic.bench_sample(jax.random.key(1), model, ROWS)


@pytest.fixture(scope="module")
def sae(planted):
    """An SAE near the truth, one latent dead and one decoder row reversed."""
    draw = np.random.default_rng(0)
    rows = np.asarray(planted.dictionary.atoms)[:LATENTS] + 0.2 * draw.normal(size=(LATENTS, 4))
    b_enc = np.full(LATENTS, -0.3)
    b_enc[2] = -100.0
    rows[3] *= -2
    return jd.sae.SAE(*(jnp.asarray(part) for part in (np.abs(rows).T, b_enc, rows, np.full(4, 0.1))))


def by_hand(rows, latents, X_hat, planted):
    """The formulas, one latent at a time."""
    X, codes, D = np.asarray(planted.X), np.asarray(planted.codes), np.asarray(planted.dictionary.atoms)
    cosines = np.abs(rows @ D.T) / np.linalg.norm(rows, axis=1, keepdims=True) / np.linalg.norm(D, axis=1)
    pairs = linear_sum_assignment(1 - cosines)
    nearest = cosines.argmax(axis=1)
    scores = []
    for latent in range(len(rows)):
        on, truth = latents[:, latent] != 0, codes[:, nearest[latent]] > 0
        tp, fp, fn = (on & truth).sum(), (on & ~truth).sum(), (~on & truth).sum()
        precision, recall = tp / (tp + fp) if tp + fp else 0, tp / (tp + fn) if tp + fn else 0
        f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0
        scores.append((precision, recall, f1, (on == truth).mean()))
    norms = np.linalg.norm(X, axis=1)
    kept = norms > 1e-6
    names = ("precision", "recall", "f1_score", "accuracy")
    return dict(zip(names, np.mean(scores, axis=0), strict=True)) | {
        "true_l0": (codes > 0).sum(axis=1).mean(),
        "sae_l0": (latents != 0).sum(axis=1).mean(),
        "dead_latents": (latents == 0).all(axis=0).sum(),
        "shrinkage": (np.linalg.norm(X_hat, axis=1)[kept] / norms[kept]).mean(),
        "explained_variance": 1 - ((X - X_hat) ** 2).sum(1).mean() / ((X**2).sum(1).mean() - (X.mean(0) ** 2).sum()),
        "mcc": cosines[pairs].mean(),
        "uniqueness": len(set(nearest)) / len(rows),
    }


def agrees(found, wanted):
    assert set(found._fields) == set(wanted)
    for name, value in found._asdict().items():
        np.testing.assert_allclose(value, wanted[name], rtol=1e-10, atol=1e-12, err_msg=name)


def test_metrics_of_an_sae_are_those_of_plain_numpy(planted, sae):
    found = recovery.bench_metrics(sae, planted)
    agrees(
        found, by_hand(np.asarray(sae.W_dec), np.asarray(sae.encode(planted.X)), np.asarray(sae(planted.X)), planted)
    )
    assert int(found.dead_latents) == 1
    assert 0 < float(found.f1_score) < 1
    for number in (f"F1 {float(found.f1_score):.3f}", "1 latents are dead"):
        assert number in found.message()


def test_metrics_of_a_dictionary_are_those_of_plain_numpy(planted):
    draw = np.random.default_rng(1)
    wide = jd.Dictionary(draw.normal(size=(12, 4)), draw.normal(size=4))
    codes = np.maximum(draw.normal(size=(ROWS, 12)), 0)
    found = recovery.bench_metrics(wide, planted, latents=codes)
    agrees(found, by_hand(wide.atoms, codes, codes @ wide.atoms + wide.offset, planted))
    listed = recovery.bench_metrics(wide, planted, latents=jd.sparse_codes(codes, 12))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), found, listed)


def test_the_truth_scores_one(planted):
    found = recovery.bench_metrics(planted.dictionary, planted, latents=planted.codes)
    for name in ("mcc", "uniqueness", "precision", "recall", "f1_score", "accuracy", "shrinkage", "explained_variance"):
        assert float(getattr(found, name)) == pytest.approx(1, abs=1e-12), name
    assert float(found.true_l0) == float(found.sae_l0)


def test_sums_of_batches_give_the_metrics_of_all(planted, sae):
    parts = [jax.tree.map(lambda leaf: leaf[:100], planted), jax.tree.map(lambda leaf: leaf[100:], planted)]
    parts = [eqx.tree_at(lambda part: (part.X, part.codes), planted, (part.X, part.codes)) for part in parts]
    sums = jax.tree.map(jnp.add, *(recovery.bench_sums(sae, part) for part in parts))
    found = recovery.bench_metrics_from_sums(sae, planted.dictionary, sums)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), found, recovery.bench_metrics(sae, planted))


def test_rows_of_zeros_and_data_that_do_not_vary_have_their_limits():
    D = jd.Dictionary(jnp.eye(2))
    nothing = synthetic.independent(KEY, 4, 2, frequency=0.0)
    found = recovery.bench_metrics(D, nothing, latents=jnp.zeros((4, 2)))
    assert [float(value) for value in (found.shrinkage, found.explained_variance, found.f1_score)] == [0, 1, 0]
    missed = recovery.bench_metrics(D, nothing, latents=jnp.ones((4, 2)))
    assert float(missed.explained_variance) == 0


@pytest.mark.parametrize("sizes", [(4, 4), (3, 6), (6, 3)])
def test_matching_under_a_trace_is_that_of_scipy(sizes):
    rows, features = (np.random.default_rng(k).normal(size=(n, 3)) for k, n in enumerate(sizes))
    known = _matched(jnp.asarray(rows), jnp.asarray(features))
    traced = _matched_in_program(jnp.asarray(rows), jnp.asarray(features))
    pairs, again = (sorted(zip(*(part.tolist() for part in found), strict=True)) for found in (known, traced))
    assert pairs == again
    assert len(pairs) == min(sizes)


def test_absorption_along_edges_is_what_rows_say(planted, sae):
    found = recovery.bench_absorption(sae, planted)
    rows, latents, on = np.asarray(sae.W_dec), np.asarray(sae.encode(planted.X)) != 0, np.asarray(planted.codes) > 0
    cosines = np.abs(rows @ np.asarray(planted.dictionary.atoms).T) / np.linalg.norm(rows, axis=1, keepdims=True)
    edges = planted.pairs()
    assert len(edges) == 7
    for parent, child in edges:
        latent = cosines[:, parent].argmax()
        assert int(found.latents[child]) == latent
        assert float(found.cosines[child]) == pytest.approx(cosines[latent, parent])
        shares, spread = [], 0
        for rows_of in (on[:, parent] & ~on[:, child], on[:, parent] & on[:, child]):
            hits, many = latents[rows_of, latent].sum(), rows_of.sum()
            shares.append(hits / many)
            nearer = (hits + 1) / (many + 2)
            spread += nearer * (1 - nearer) / (many + 2)
        assert float(found.found.gap[child]) == pytest.approx(shares[0] - shares[1])
        assert float(found.found.standard_error[child]) == pytest.approx(spread**0.5)
    roots = np.asarray(planted.parents) < 0
    assert np.isnan(np.asarray(found.found.gap)[roots]).all()
    assert set(np.asarray(found.latents)[roots].tolist()) == {-1}
    assert "On 7 edges" in found.message()


def test_absorption_is_found_where_it_is_planted():
    """A latent that is silent on its child's rows with chance .5: the gap is .5 within its standard errors; a faithful one has none."""
    forest = Forest(roots=1, branching=1, depth=1)
    model = synthetic.bench_model(KEY, 2, 3, firing=firing.Constant(0.6), forest=forest)
    planted = synthetic.bench_sample(KEY, model, 2000)
    silent = jax.random.bernoulli(jax.random.key(5), 0.5, (2000,)) & (planted.codes[:, 1] > 0)
    codes = planted.codes.at[:, 0].set(jnp.where(silent, 0, planted.codes[:, 0]))
    found = recovery.bench_absorption(planted.dictionary, planted, latents=codes).found
    assert abs(float(found.gap[1]) - 0.5) < 4 * float(found.standard_error[1])
    assert float(found.standard_error[1]) < 0.03
    none = recovery.bench_absorption(planted.dictionary, planted, latents=planted.codes)
    assert float(none.found.gap[1]) == 0
    assert "on 0" in none.message()


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda planted, sae: recovery.bench_metrics(planted.dictionary, planted), "latents=..."),
        (lambda planted, sae: recovery.bench_metrics(sae, planted, latents=planted.codes), "leave them out"),
        (lambda planted, sae: recovery.bench_metrics(sae, planted.X), "planted is a"),
        (lambda planted, sae: recovery.bench_metrics(planted.X, planted), "found is a"),
        (
            lambda planted, sae: recovery.bench_metrics(planted.dictionary, planted, latents=planted.codes[:3]),
            r"\(3, 9\)",
        ),
        (
            lambda planted, sae: recovery.bench_sums(recovery.Autoencoder(jnp.eye(3)), planted),
            "rows of 3 numbers but the data 4",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call, says, planted, sae):
    with pytest.raises(ValueError, match=says):
        call(planted, sae)
