"""T17 for each decoder row in the pass: brute force over pairs of rows and of documents, no bias over draws, a planted turn shown."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from audited import D_IN, K, noisy_sae, rows, top_three, turned

import jaxdict as jd
from jaxdict.auditing import streaming
from jaxdict.auditing.decoder_rows import decoder_defects, defect_facts
from jaxdict.auditing.streaming import stream
from jaxdict.auditing.units import ends_of
from jaxdict.population.unbiased import population_sums

RNG = np.random.default_rng(0)
X = RNG.normal(size=(501, 16)).astype(np.float32)
DOCUMENTS = np.repeat(np.arange(64), RNG.permutation(np.resize([3, 5, 8, 17], 64)))[:501]


def pulls(sae, X):
    """`t_nk = z_nk P_k r_n`, (rows, features, d), and codes, in float64."""
    D, b, f = (np.asarray(part, float) for part in (sae.W_dec, sae.b_dec, sae.encode(X)))
    r = X.astype(float) - f @ D - b
    across = r[:, None, :] - (r @ D.T)[:, :, None] * D[None]
    return f[:, :, None] * across, f


def expected(sae, X, groups):
    """U_k over all pairs of different units, and over E z^2."""
    t, f = pulls(sae, X)
    sums = np.stack([t[groups == g].sum(axis=0) for g in np.unique(groups)])
    sizes = np.array([np.sum(groups == g) for g in np.unique(groups)])
    pairs = np.einsum("gkd,hkd->kgh", sums, sums)
    different = ~np.eye(len(sizes), dtype=bool)
    return pairs[:, different].sum(axis=1) / np.outer(sizes, sizes)[different].sum(), (f**2).mean(axis=0)


@pytest.mark.parametrize("by_row", [False, True], ids=["all features at once", "row by row"])
@pytest.mark.parametrize("groups", [None, DOCUMENTS], ids=["rows", "documents"])
def test_sums_of_the_pass_are_those_over_pairs_of_units(monkeypatch, by_row, groups):
    monkeypatch.setattr(streaming, "CHUNK_ENTRIES", 64 * 24)
    monkeypatch.setattr(streaming, "SPREAD_BY_ROW", 0 if by_row else 2048)
    sae = noisy_sae(kind="topk").canonical()
    totals = stream(sae, X, X.mean(axis=0), 2.0, ends=ends_of(groups)).totals
    found = decoder_defects(np.asarray(sae.W_dec, float), totals)
    square, second = expected(sae, X, np.arange(501) if groups is None else groups)
    live = totals.counts > 0
    # A square is the difference of sums of this size, each rounded to float32.
    floor = 4e-6 * float(np.max(totals.spread)) / 501**2
    np.testing.assert_allclose(found.gain[live], (square / second)[live], rtol=1e-5, atol=floor / second[live].min())
    np.testing.assert_allclose(
        found.defect[live], (square / second**2)[live], rtol=1e-5, atol=floor / second[live].min() ** 2
    )
    assert float(totals.units) == (501 if groups is None else len(np.unique(DOCUMENTS)))


def test_sums_are_those_of_population():
    sae = noisy_sae(kind="jumprelu").canonical()
    totals = stream(sae, X, X.mean(axis=0), 2.0).totals
    wanted = population_sums(
        jd.Problem(lam=1.0), sae.dictionary, jnp.asarray(X, float), jnp.asarray(sae.encode(X), float)
    )
    np.testing.assert_allclose(totals.spread, np.asarray(wanted.pull_squares), rtol=2e-5)


def test_documents_that_are_longer_than_half_a_chunk_are_cut_and_said_so(monkeypatch):
    monkeypatch.setattr(streaming, "CHUNK_ENTRIES", 64 * 24)
    sae, groups = noisy_sae(kind="topk").canonical(), np.repeat([0, 1], [200, 301])
    totals = stream(sae, X, X.mean(axis=0), 2.0, ends=ends_of(groups)).totals
    assert float(totals.units) > 2
    assert float(totals.rows) == 501
    row = {"dead": False, "decoder_shown": False}
    facts = defect_facts([row], totals, 2, named=True, normalised=False)
    assert f"2 of 501 rows (long ones cut, {int(totals.units)} parts in all)" in facts["sentence"]


def test_documents_in_several_places_leave_rows_as_units():
    assert ends_of(np.array([0, 1, 0])) is None
    totals = SimpleNamespace(rows=3.0, units=3.0)
    assert "treated as independent" in defect_facts([], totals, None, named=False, normalised=False)["sentence"]
    told = defect_facts([], totals, None, named=True, normalised=True)
    assert "do not follow one another" in told["sentence"]
    assert told["unit"] == "squared error a row of the normalised input"


def test_without_bias_and_with_an_error_that_is_large_enough_over_draws():
    """A turned atom's gain averages to that of fifty times as many rows; naively each draw adds its noise. 60 draws of 200 rows."""
    sae = top_three(turned())
    units, many = np.asarray(sae.W_dec, float), rows(999, 10_000).astype(np.float32)
    draws = [stream(sae, rows(seed, 200).astype(np.float32), np.zeros(D_IN), 1.0).totals for seed in range(60)]
    found = [decoder_defects(units, totals) for totals in draws]
    gains, errors = np.array([one.gain for one in found]), np.array([one.error for one in found])
    truth = decoder_defects(units, stream(sae, many, np.zeros(D_IN), 1.0).totals).gain
    spread = gains.std(axis=0, ddof=1)
    assert np.all(np.abs(gains.mean(axis=0) - truth) < 4 * spread / np.sqrt(60) + 3 * spread / np.sqrt(50))
    assert np.all(errors.mean(axis=0) > 0.8 * spread)  # a spread is known to a tenth from 60 draws


def test_at_the_truth_gains_have_either_sign_and_none_is_shown():
    sae = top_three()
    draws = [stream(sae, rows(seed, 200).astype(np.float32), np.zeros(D_IN), 1.0).totals for seed in range(40)]
    found = [decoder_defects(np.asarray(sae.W_dec, float), totals) for totals in draws]
    assert 0.3 < np.mean([one.gain < 0 for one in found]) < 0.8
    assert not np.any([one.shown for one in found])


def test_a_planted_turn_is_shown_with_its_angle():
    """A code is a cosine short of the truth's, and what is left of it a sine long: the step is the tangent."""
    sae = top_three(turned())
    totals = stream(sae, rows(0, 2000).astype(np.float32), np.zeros(D_IN), 1.0).totals
    found = decoder_defects(np.asarray(sae.W_dec, float), totals)
    assert found.shown[0]
    np.testing.assert_allclose(np.sqrt(found.defect[0]), np.tan(0.5), rtol=0.02)
    assert found.gain[0] > 10 * np.delete(found.gain, 0).max()  # the others make up for it a little, being on with it


@pytest.mark.slow
def test_an_audit_says_it_of_every_feature_without_lam():
    groups = np.repeat(np.arange(100), 4)
    document = jd.audit(top_three(turned()), rows(0).astype(np.float32), groups=groups, descent_steps=0).document
    assert document["lam"]["value"] is None
    first = document["features"][0]
    assert first["decoder_shown"]
    assert first["decoder_gain"] > 3 * first["decoder_gain_error"] > 0
    told = document["decoder"]
    assert (told["unit"], told["rows"], told["documents"], told["cut"]) == ("squared error a row", 400, 100, 0)
    assert (told["live"], told["shown"]) == (K, sum(row["decoder_shown"] for row in document["features"]))
    assert "feature 0 alone would save most" in document["decoder"]["sentence"]
    assert "100 of 400 rows" in document["decoder"]["sentence"]
