"""The split's last two parts, a better dictionary and more atoms: planted faults, rows that are never seen, steps by hand."""

import time

import jax.numpy as jnp
import numpy as np
import pytest
from audited import ACTIVE, ATOMS, BASIS, D_IN, FAULTS, K, bare, rows, top_three

import jaxdict as jd
from jaxdict.auditing import split_rows, splitting
from jaxdict.auditing.descending import Search, births, descended, revived, widened
from jaxdict.auditing.parting import parted, set_aside, source_of
from jaxdict.auditing.split_rows import Budget
from jaxdict.auditing.split_sentences import headline, split_facts
from jaxdict.auditing.splitting import Others, split_error
from jaxdict.auditing.steps import decoder_step, step_over
from jaxdict.reporting.audit_page import audit_html

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
    """A turned atom is half mended by the decoder's one step and half by the descent: either may be the larger part, both are it."""
    sae, words = ALL_FAULTS[fault]
    either = (words, "its dictionary") if words == "its decoder" else (words,)
    told = headline(whole_split(sae, rows(seed, FRESH + OTHERS)))
    return any(words in told for words in either)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ALL_FAULTS)
def test_the_headline_names_the_planted_fault_in_twenty_draws(fault):
    assert sum(names_its_fault(fault, seed) for seed in range(20)) >= 19


@pytest.mark.slow
def test_a_dead_feature_finds_the_direction_that_is_missing():
    """Atom 0 of the truth replaced by one outside the data's span: no step of T20 moves it, since no row uses it."""
    atoms = ATOMS.copy()
    atoms[0] = BASIS[K]
    X = rows(0, FRESH + OTHERS)
    split = whole_split(top_three(atoms), X - (X @ BASIS[K:].T) @ BASIS[K:], dead=[0])
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_the_gain_on_fresh_rows_is_that_of_the_dictionaries(turned_by_much, monkeypatch):
    """Recomputed with NumPy from the dictionaries and the codes before and after."""
    sae, split = turned_by_much
    seen = []
    real = splitting.descent_part

    def watched(name, at, descent, fresh, search, **facts):
        part, after = real(name, at, descent, fresh, search, **facts)
        seen.append((at, fresh, descent.dictionary, after))
        return part, after

    monkeypatch.setattr(splitting, "descent_part", watched)
    assert whole_split(sae, rows(0, FRESH + OTHERS)) == split
    for part, (at, fresh, there, after) in zip(split.parts[3:], seen, strict=True):
        X, errors = np.asarray(fresh.X), []
        for dictionary, at_rows in ((at, fresh), (there or at, after)):
            D, Z = np.asarray(dictionary.atoms), np.asarray(jd.dense_codes(at_rows.codes, len(dictionary.atoms)))
            np.testing.assert_allclose(np.linalg.norm(D, axis=1), 1, rtol=1e-12)
            assert np.all(np.count_nonzero(Z, axis=1) <= fresh.sizes)
            errors.append(np.sum((X - np.asarray(dictionary.offset) - Z @ D) ** 2, axis=1))
        falls = errors[0] - errors[1]
        assert part.mean == pytest.approx(falls.mean(), rel=1e-9)
        assert part.standard_error == pytest.approx(np.std(falls, ddof=1) / np.sqrt(len(X)), rel=1e-9)


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_step_over_batches_is_that_over_all_rows():
    rng = np.random.default_rng(1)
    X, start = rows(0, 60), jd.Dictionary(jnp.asarray(ATOMS[::-1].copy()), 0.1 * rng.normal(size=D_IN))
    Z = jd.sparse_codes(jnp.asarray(np.maximum(X @ ATOMS[::-1].T, 0) * (rng.random((60, K)) < 0.5)))
    whole = decoder_step(start, Z, jnp.asarray(X))
    cuts = [slice(0, 25), slice(25, 60)]
    parts = step_over(start, [(jd.SparseCodes(Z.indices[at], Z.values[at]), jnp.asarray(X[at])) for at in cuts])
    np.testing.assert_allclose(parts.atoms, whole.atoms, atol=1e-12)
    np.testing.assert_allclose(parts.offset, whole.offset, atol=1e-12)


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_budget_ends_a_descent():
    X = rows(0, 600)
    source = source_of(top_three(), X, np.arange(100), None, ACTIVE)
    start, search = jd.Dictionary(jnp.asarray(merged()), jnp.zeros(D_IN)), Search(False, ACTIVE)
    for budget in (Budget(0), Budget(np.inf, 0.0)):
        done = descended(start, source, search, budget, beside=start)
        assert (done.dictionary, done.rows) == (None, 0)
    assert descended(start, source, search, Budget(source.batch), beside=start).rows == source.batch


@pytest.mark.slow
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


@pytest.mark.parametrize(
    ("kind", "normalisation"), [pytest.param("topk", "none", marks=pytest.mark.slow), ("jumprelu", "layer_norm")]
)
@pytest.mark.slow
def test_an_audit_measures_them_and_none_without_a_descent(kind, normalisation):
    sae, X = bare(kind=kind, normalisation=normalisation), rows(0, 500).astype(np.float32)
    found = jd.audit(sae, X, exact_samples=200)
    parts = {part["name"]: part for part in found.document["split"]["parts"]}
    for name in ("dictionary", "atoms"):
        assert found.measures[f"{name}_share"] == parts[name]["share"] is not None
    assert parts["dictionary"]["shown"]  # random weights
    assert found.check("dictionary_share>0.01")
    without = jd.audit(sae, X, exact_samples=200, descent_steps=0)
    for name in ("dictionary_share", "atoms_share"):
        assert without.measures[name] is None
        assert without.check(f"{name}>0.9")
    assert "not measured" in without.document["split"]["parts"][3]["sentence"]


@pytest.mark.slow
def test_signed_codes_stay_signed():
    """Half of the rows turned round: with signs the same dictionary serves them, and one of random weights gains as much."""
    sae, X = bare(kind="abstopk"), rows(0, 500)
    X = np.where(np.arange(500)[:, None] % 2 == 0, X, -X)
    at, own = np.arange(0, 500, 2), jd.sparse_codes(sae.canonical().encode(jnp.asarray(X[::2])), 4)
    source = source_of(sae.canonical(), X, at[parted(250, None).fresh], None, 4)
    others = Others(source, lambda left: Budget(1000), np.zeros(0, int))
    split = split_error(sae.dictionary, jnp.asarray(X[::2]), own, signed=True, others=others)
    assert split.parts[3].shown


@pytest.mark.slow
def test_pairs_of_signed_features_are_not_said_to_have_been_tested():
    X = np.where(np.arange(200)[:, None] % 2 == 0, 1, -1) * rows(0, 200).astype(np.float32)
    found = jd.audit(bare(kind="abstopk"), X.astype(np.float32), 0.1, descent_steps=0)
    assert found.document["pairs"] is None
    assert "not looked for" in found.document["verdict"][-1]
    assert "both signs" in audit_html(found.document)
    assert found.measures["costly_pairs"] is found.measures["pair_cost"] is None


@pytest.mark.slow
def test_minutes_say_how_many_rows(monkeypatch):
    sae, X = top_three(merged()), rows(0, 500).astype(np.float32)
    split = jd.audit(sae, X, exact_samples=200, minutes=5).document["split"]
    assert 256 <= split["rows"] <= 500  # more than the sample
    assert split["parts"][4]["fitted_rows"] is not None
    Y = jnp.asarray(X[:100].astype(float))
    given = sae.dictionary, Y, jd.sparse_codes(sae.encode(Y), ACTIVE), False
    monkeypatch.setattr(split_rows, "SPLIT_LEAST", 5)
    assert 5 < split_rows.rows_by_time(10.0, *given, 10**9) < 10**9
    assert [split_rows.rows_by_time(seconds, *given, 50) for seconds in (0.0, 1e9)] == [5, 50]
    monkeypatch.setattr(split_rows, "MOST_ENTRIES", 20 * len(merged()))
    assert split_rows.rows_by_time(1e9, *given, 50) == 20


@pytest.mark.slow
def test_wide_saes_are_descended_from_where_minutes_are_given(monkeypatch):
    monkeypatch.setattr(split_rows, "DESCENT_ENTRIES", K - 1)  # fewer rows than features
    X = rows(0, 500).astype(np.float32)
    parts = jd.audit(top_three(), X, exact_samples=200).document["split"]["parts"]
    assert [part["mean"] is None for part in parts] == [False, False, False, True, True]
    assert all("by minutes" in part["sentence"] for part in parts[3:])
    given = jd.audit(top_three(), X, exact_samples=200, minutes=5).document["split"]["parts"]
    assert given[3]["mean"] is not None


def test_a_descent_without_a_step_measures_nothing():
    """A budget of no rows: None, not zero, and said so."""
    sae, X = FAULTS["its choice of features"], rows(0, FRESH + OTHERS)
    facts = split_facts(whole_split(sae, X, budget=0.0), False)
    assert [part["mean"] is None for part in facts["parts"]] == [False, False, False, True, True]
    assert all("not measured" in part["sentence"] for part in facts["parts"][3:])


@pytest.mark.slow
def test_minutes_that_are_over_end_a_descent():
    budget = split_rows.budgets(512, 10.0, time.perf_counter() + 100)
    first, last = budget(2), budget(1)
    assert first.until - time.perf_counter() == pytest.approx(50, abs=5)
    assert last.until - time.perf_counter() == pytest.approx(100, abs=5)
    assert first.allows(10**9)
    assert not Budget(np.inf, time.perf_counter()).allows(1)
    assert not Budget(10).allows(11)


@pytest.mark.parametrize("minutes", [0, -1.0, "ten", float("nan"), True])
def test_bad_minutes_are_refused(minutes):
    with pytest.raises(ValueError, match="give a positive number of minutes"):
        jd.audit(top_three(), rows(0).astype(np.float32), minutes=minutes)
