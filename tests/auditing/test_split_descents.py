"""The split's last two parts, a better dictionary and more atoms: planted faults, rows that are never seen, steps by hand."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from audited import ACTIVE, ATOMS, BASIS, D_IN, FAULTS, K, bare, noisy_sae, rows, top_three

import jaxdict as jd
from jaxdict.auditing import descending, split_rows
from jaxdict.auditing.descending import Running, Search, births, descended, revived, stepped, widened
from jaxdict.auditing.parting import parted, set_aside, source_of
from jaxdict.auditing.split_rows import Budget
from jaxdict.auditing.split_sentences import headline, split_facts
from jaxdict.auditing.splitting import Others, split_error

FRESH, OTHERS = 240, 1200


def merged():
    """The truth with its first two atoms as one, halfway between them."""
    both = (ATOMS[0] + ATOMS[1]) / np.sqrt(2)
    return np.concatenate([both[None], ATOMS[2:]])


def whole_split(sae, X, *, groups=None, dead=(), budget=6000.0):
    """The split on every sixth row, dictionaries fitted to the others."""
    at = np.arange(0, len(X), len(X) // FRESH)
    names = None if groups is None else groups[at]
    source = source_of(sae, X, at[parted(len(at), names).fresh], groups, ACTIVE)
    others = Others(source, lambda left: Budget(budget), np.asarray(dead, int))
    Y = jnp.asarray(X[at])
    return split_error(
        sae.dictionary, Y, jd.sparse_codes(sae.encode(Y), ACTIVE), signed=False, groups=names, others=others
    )


ALL_FAULTS = {name: (sae, name) for name, sae in FAULTS.items()} | {
    "merged": (top_three(merged()), "its number of features"),
}


def names_its_fault(fault, seed):
    sae, words = ALL_FAULTS[fault]
    return words in headline(whole_split(sae, rows(seed, FRESH + OTHERS)))


@pytest.mark.parametrize("fault", ALL_FAULTS)
def test_the_headline_names_the_planted_fault(fault):
    assert all(names_its_fault(fault, seed) for seed in range(2))


@pytest.mark.slow
@pytest.mark.parametrize("fault", ALL_FAULTS)
def test_the_headline_names_the_planted_fault_in_twenty_draws(fault):
    assert sum(names_its_fault(fault, seed) for seed in range(20)) >= 19


def test_a_dead_feature_finds_the_direction_that_is_missing():
    """Atom 0 of the truth replaced by one that no row pulls on: no step of T20 moves it, since no row uses it."""
    atoms = ATOMS.copy()
    atoms[0] = -ATOMS[1]
    split = whole_split(top_three(atoms), rows(0, FRESH + OTHERS), dead=[0])
    parts = {part.name: part for part in split.parts}
    assert parts["dictionary"].shown
    assert parts["dictionary"].mean > 0.5 * split.own
    assert "its dictionary" in headline(split)
    assert parts["atoms"].mean < 0.1 * split.own


@pytest.fixture(scope="module")
def turned_by_much():
    """A TopK SAE whose dictionary is far from the truth, and its split."""
    atoms = ATOMS + 0.35 * np.random.default_rng(3).normal(size=(K, D_IN))
    sae = top_three(atoms / np.linalg.norm(atoms, axis=1, keepdims=True))
    return sae, whole_split(sae, rows(0, FRESH + OTHERS))


def test_parts_and_the_rest_add_up_to_the_own_error(turned_by_much):
    split = turned_by_much[1]
    facts = split_facts(split, False)
    assert [part["name"] for part in facts["parts"]] == ["values", "supports", "decoder", "dictionary", "atoms"]
    total = sum(part["mean"] for part in facts["parts"]) + facts["rest"]["mean"]
    assert total == pytest.approx(facts["own"], rel=1e-12)
    fitted, more = facts["parts"][3:]
    assert fitted["shown"]
    assert fitted["rows"] == more["rows"] == FRESH // 2
    assert fitted["fitted_rows"] > 0
    assert (fitted["added"], more["added"]) == (None, 1)
    assert "120 fresh rows" in fitted["sentence"]


def test_the_gain_on_fresh_rows_is_that_of_the_dictionaries(turned_by_much, monkeypatch):
    """Recomputed with NumPy from the dictionary that was kept and the codes found at its supports."""
    sae, split = turned_by_much
    kept = []
    real = descending.descended
    monkeypatch.setattr(
        "jaxdict.auditing.splitting.descended", lambda *a, **k: kept.append((a[0], real(*a, **k))) or kept[-1][1]
    )
    again = whole_split(sae, rows(0, FRESH + OTHERS))
    assert again == split
    before, after = kept[0][0], kept[0][1].dictionary
    X = rows(0, FRESH + OTHERS)[:: (FRESH + OTHERS) // FRESH]
    X = X[parted(len(X), None).fresh]
    errors = []
    for D in (before, after):
        codes = jd.dense_codes(jd.best_subset(D, X, ACTIVE).codes, K)
        errors.append(np.mean(np.sum((X - np.asarray(D.offset) - codes @ np.asarray(D.atoms)) ** 2, axis=1)))
    assert split.parts[3].mean == pytest.approx(errors[0] - errors[1], rel=0.1)  # searches start elsewhere


def test_fresh_rows_and_their_documents_are_never_read():
    X, groups = rows(0, 480), np.repeat(np.arange(48), 10)
    seen = []

    class Watched:
        shape, dtype = X.shape, X.dtype

        def __getitem__(self, at):
            seen.append(np.asarray(at))
            return X[at]

    at = np.arange(0, 480, 7)
    fresh = at[parted(len(at), groups[at]).fresh]
    source = source_of(top_three(turned := ATOMS), Watched(), fresh, groups, ACTIVE)
    search = Search(False, ACTIVE)
    start = jd.Dictionary(jnp.asarray(turned), jnp.zeros(D_IN))
    descended(start, source, search, Budget(2000), beside=start)
    widened(start, source, search)
    assert not set(groups[np.concatenate(seen)]) & set(groups[fresh])
    assert not set(groups[source.train]) & set(groups[source.aside])
    alone = source_of(top_three(), X, fresh, None, ACTIVE)
    assert not set(alone.train) & set(alone.aside)
    assert set(alone.train) | set(alone.aside) == set(range(480)) - set(fresh)


def test_a_step_is_that_of_the_theorem():
    rng = np.random.default_rng(1)
    X, D, b = rows(0, 60), ATOMS[::-1].copy(), 0.1 * rng.normal(size=D_IN)
    Z = np.maximum(X @ D.T, 0) * (rng.random((60, K)) < 0.5)
    at = Running(jd.Dictionary(jnp.asarray(D), jnp.asarray(b)), jnp.full(K, 2.0), jnp.asarray(48.0))
    done = stepped(at, jd.sparse_codes(jnp.asarray(Z)), jnp.asarray(X))
    R = X - b - Z @ D
    for k in range(K):
        pull = Z[:, k] @ R
        moved = D[k] + (pull - (pull @ D[k]) * D[k]) / (2 + Z[:, k] @ Z[:, k])
        np.testing.assert_allclose(done.dictionary.atoms[k], moved / np.linalg.norm(moved), atol=1e-12)
    np.testing.assert_allclose(done.dictionary.offset, b + R.sum(axis=0) / 108, atol=1e-12)
    np.testing.assert_allclose(done.squares, 2 + np.sum(Z**2, axis=0), rtol=1e-12)


@pytest.mark.parametrize("signed", [False, True])
def test_births_find_what_is_left_over(signed):
    """Residuals along three directions, one row each: T10's best atoms are these; with signs, lines."""
    rng = np.random.default_rng(0)
    which, sizes = rng.integers(0, 3, 300), rng.uniform(0.8, 1.6, 300)
    signs = np.where(rng.random(300) < 0.5, -1, 1) if signed else np.ones(300)
    R = (signs * sizes)[:, None] * BASIS[which] + 0.01 * rng.normal(size=(300, D_IN))
    found = np.asarray(births(jnp.asarray(R), 8, 0.3, signed=signed))
    cosines = np.abs(found @ BASIS[:3].T) if signed else found @ BASIS[:3].T
    assert np.all(cosines.max(axis=0) > 0.999)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-12)


def test_a_budget_ends_a_descent():
    X = rows(0, 600)
    source = source_of(top_three(), X, np.arange(100), None, ACTIVE)
    start, search = jd.Dictionary(jnp.asarray(merged()), jnp.zeros(D_IN)), Search(False, ACTIVE)
    for budget in (Budget(0), Budget(np.inf, 0.0)):
        done = descended(start, source, search, budget, beside=start)
        assert (done.dictionary, done.rows) == (None, 0)
    assert descended(start, source, search, Budget(source.batch), beside=start).rows == source.batch


def test_nothing_is_kept_that_does_not_gain_on_rows_kept_aside():
    """At the truth a descent learns noise: the part is zero, and said so."""
    X = rows(5, 500)
    source = source_of(top_three(), X, np.arange(100), None, ACTIVE)
    start, search = jd.Dictionary(jnp.asarray(ATOMS), jnp.zeros(D_IN)), Search(False, ACTIVE)
    done = descended(start, source, search, Budget(3000), beside=start)
    if done.dictionary is not None:  # the offset's noise, at most
        assert np.max(np.abs(np.asarray(done.dictionary.atoms) - ATOMS)) < 0.01
    assert not len(revived(start, np.zeros(0, int), source, search)[1])


def test_few_rows_have_no_source():
    assert source_of(top_three(), rows(0, 20), np.arange(14), None, ACTIVE) is None
    assert [len(part) for part in set_aside(np.zeros(0, int), None)] == [0, 0]


def test_an_audit_measures_them_and_none_without_a_descent():
    sae, X = bare(kind="topk"), rows(0, 700).astype(np.float32)
    found = jd.audit(sae, X, exact_samples=300)
    parts = {part["name"]: part for part in found.document["split"]["parts"]}
    for name in ("dictionary", "atoms"):
        assert found.measures[f"{name}_share"] == parts[name]["share"] is not None
    assert parts["dictionary"]["shown"]  # random weights
    assert found.check("dictionary_share>0.01")
    without = jd.audit(sae, X, exact_samples=300, descent_steps=0)
    for name in ("dictionary_share", "atoms_share"):
        assert without.measures[name] is None
        assert without.check(f"{name}>0.9")
    assert "not measured" in without.document["split"]["parts"][3]["sentence"]


def test_signed_codes_stay_signed_and_their_pairs_are_not_said_to_have_been_tested():
    sae, X = bare(kind="abstopk"), rows(0, 500)
    X = np.where(np.arange(500)[:, None] % 2 == 0, X, -X).astype(np.float32)
    document = jd.audit(sae, X, 0.1, exact_samples=200).document
    assert document["split"]["parts"][3]["mean"] is not None
    assert document["pairs"] is None
    assert "not looked for" in document["verdict"][-1]
    page = jd.audit(sae, X, 0.1, exact_samples=200, descent_steps=0)
    assert page.measures["costly_pairs"] is page.measures["pair_cost"] is None


@pytest.mark.parametrize("kind", ["relu", "jumprelu"])
@pytest.mark.parametrize("normalisation", ["none", "layer_norm"])
def test_every_kind_has_all_parts(kind, normalisation):
    sae = replace(noisy_sae(kind=kind, normalisation=normalisation))
    split = jd.audit(sae, rows(0, 500).astype(np.float32), exact_samples=200, descent_steps=2).document["split"]
    assert all(part["mean"] is not None for part in split["parts"])


def test_minutes_say_how_many_rows(monkeypatch):
    sae, X = top_three(merged()), rows(0, 900).astype(np.float32)
    split = jd.audit(sae, X, exact_samples=100, minutes=0.05).document["split"]
    assert 256 <= split["rows"] <= 900  # more than the sample
    assert split["parts"][4]["fitted_rows"] is not None
    assert jd.audit(sae, X, rows=np.arange(100), minutes=0.01).document["split"]["rows"] == 100
    monkeypatch.setattr(split_rows, "SPLIT_LEAST", 50)
    monkeypatch.setattr(split_rows, "MOST_ENTRIES", 0)
    assert jd.audit(sae, X, exact_samples=100, minutes=0.01).document["split"]["rows"] == 50


@pytest.mark.parametrize("minutes", [0, -1.0, "ten", float("nan"), True])
def test_bad_minutes_are_refused(minutes):
    with pytest.raises(ValueError, match="give a positive number of minutes"):
        jd.audit(top_three(), rows(0).astype(np.float32), minutes=minutes)
