"""Arbitration: planted faults that it must name, NumPy and SciPy as judges, interpolation by hand, and what must not be shown."""

import json
from dataclasses import replace
from importlib.resources import files

import jax
import jax.numpy as jnp
import jsonschema
import numpy as np
import pytest
from rivals import (
    ATOMS,
    BASIS,
    D_IN,
    DOCUMENTS,
    K,
    N,
    best_supports,
    best_values,
    fresh_rows,
    mean_and_error,
    own_errors,
    rows,
    top,
    turned,
)
from schemas import closed

import jaxdict as jd
from jaxdict.auditing.parting import parted
from jaxdict.reporting.arbitration_page import arbitration_html
from jaxdict.sae.activations import Activation

SCHEMA = json.loads((files("jaxdict.arbitration") / "arbitration.schema.json").read_text(encoding="utf-8"))
X = rows()
FAULTS = {"truth": top(), "shrunken": top(shift=0.3), "turned": top(atoms=turned())}


@pytest.fixture(scope="module")
def found():
    stages = []
    done = jd.arbitrate(
        FAULTS, X, groups=DOCUMENTS, progress=lambda *told: stages.append(told), paths={"data": "acts.npy"}
    )
    assert stages[-1] == ("done", 1, 1)
    assert "values, supports, decoder of turned" in {stage for stage, _, _ in stages}
    return done


def entry(found, name):
    return next(one for one in found.document["entries"] if one["name"] == name)


def part(one, name):
    return next(row for row in one["parts"] if row["name"] == name)


def test_planted_faults_are_named(found):
    shrunken, turned = entry(found, "shrunken"), entry(found, "turned")
    for one, name in ((shrunken, "values"), (turned, "decoder")):
        assert max(one["parts"], key=lambda row: row["mean"])["name"] == name
        assert part(one, name)["shown"]
    assert not any(
        row["shown"] and row["mean"] > 0.1 * entry(found, "truth")["own"] for row in entry(found, "truth")["parts"]
    )
    assert "shrunken to its values" in found.document["verdict"][1]
    assert "turned to its decoder" in found.document["verdict"][1]
    assert found.document["verdict"][0].startswith("truth is ahead of ")
    ahead = {(pair["first"], pair["second"]): pair["ahead"] for pair in found.document["pairs"]}
    assert ahead["truth", "shrunken"] == ahead["truth", "turned"] == "truth"
    assert "most of it in the values" in found.message()
    assert "24 documents" not in found.message()  # half of them are fresh
    assert found.document["data"]["documents"] == 12
    assert found.document["match"] | {"sentence": ""} == {
        "l0": 2.0,
        "how": "middle",
        "interpolated": False,
        "sentence": "",
    }


def test_figures_are_those_of_numpy(found):
    """Own errors, NNLS on own supports, all supports tried; differences over documents: to 1e-9."""
    at = fresh_rows(DOCUMENTS)
    assert found.document["data"]["fresh_rows"] == len(at) == N // 2
    judged = {
        name: (own_errors(sae, X[at])[0], best_values(sae, X[at]), best_supports(sae, X[at]))
        for name, sae in FAULTS.items()
    }
    for name, (own, values, supports) in judged.items():
        one = entry(found, name)
        mean, error = mean_and_error(own, DOCUMENTS[at])
        assert (one["own"], one["own_standard_error"]) == pytest.approx((mean, error), rel=1e-9)
        assert one["share_of_variance"] == pytest.approx(mean / np.sum(X[at].var(axis=0)), rel=1e-9)
        for key, fall in (("values", own - values), ("supports", values - supports)):
            mean, error = mean_and_error(fall, DOCUMENTS[at])
            assert part(one, key)["mean"] == pytest.approx(mean, rel=1e-7, abs=1e-12)
            assert part(one, key)["standard_error"] == pytest.approx(error, rel=1e-7, abs=1e-12)
        total = sum(row["mean"] for row in one["parts"]) + one["rest"]["mean"]
        assert total == pytest.approx(one["own"], rel=1e-12)
    for pair in found.document["pairs"]:
        falls = judged[pair["second"]][0] - judged[pair["first"]][0]
        mean, error = mean_and_error(falls, DOCUMENTS[at])
        assert (pair["mean"], pair["standard_error"]) == pytest.approx((mean, error), rel=1e-9)
        alike = {pair["first"], pair["second"]} == {"truth", "shrunken"}  # by the same on every row
        assert pair["z"] == (None if alike else pytest.approx(mean / error, rel=1e-9))
        assert pair["shown"] == (mean > 3 * error)
        values = judged[pair["second"]][1] - judged[pair["first"]][1]
        mean, error = mean_and_error(falls - values, DOCUMENTS[at])
        of_values = pair["parts"][0]
        assert (of_values["mean"], of_values["standard_error"]) == pytest.approx((mean, error), rel=1e-6, abs=1e-10)


def test_a_table_and_a_document(found):
    table = found.table().splitlines()
    assert len(table) == 4
    assert "Choice of features" in table[0]
    assert table[1].startswith("truth ")
    assert found.document["data"]["path"] == "acts.npy"
    assert found.document["truth"] is None
    assert entry(found, "truth")["cost"]["encoder"] == D_IN * K
    assert entry(found, "truth")["cost"]["parameters"] == 2 * D_IN * K + K + D_IN
    assert entry(found, "truth")["cost"]["decoder"] == 2 * D_IN


def test_of_two_copies_nothing_is_shown():
    """The difference is exactly zero, in every part; rows are treated as independent, and it is said."""
    twins = jd.arbitrate({"one": FAULTS["shrunken"], "other": top(shift=0.3)}, X)
    pair = twins.document["pairs"][0]
    assert pair["mean"] == pair["standard_error"] == 0
    assert all(row["mean"] == 0 and not row["shown"] for row in pair["parts"])
    assert (pair["ahead"], pair["z"]) == (None, None)
    assert twins.document["verdict"][0] == "Nothing shown between one and other on fresh rows, at L0 = 2."
    assert "treated as independent" in twins.message()
    own = own_errors(FAULTS["shrunken"], X[fresh_rows()])[0]
    assert entry(twins, "one")["own_standard_error"] == pytest.approx(mean_and_error(own)[1], rel=1e-9)


def test_between_two_sparsities_figures_are_interpolated_row_by_row():
    """By hand: weights by the distance in L0, errors of the interpolated rows, the statement in words."""
    sweeps = {"topk": [top(3), top(1)], "inflated": [top(2, shift=-0.2), top(4, shift=-0.2)]}
    done = jd.arbitrate(sweeps, X)
    at = fresh_rows()
    known = {name: [own_errors(sae, X[at]) for sae in saes] for name, saes in sweeps.items()}
    l0s = {name: [on.mean() for _, on in pairs] for name, pairs in known.items()}
    l0 = (min(l0s["inflated"]) + max(l0s["topk"])) / 2
    assert done.document["match"]["l0"] == pytest.approx(l0, rel=1e-12)
    assert done.document["match"]["how"] == "middle"
    wanted = {}
    for name, (one, other) in l0s.items():
        t = (l0 - one) / (other - one)
        wanted[name] = (1 - t) * known[name][0][0] + t * known[name][1][0]
        found = entry(done, name)
        assert found["interpolated"]
        assert [sae["weight"] for sae in found["saes"]] == pytest.approx([1 - t, t])
        assert found["l0"] == pytest.approx(l0)
        assert (found["own"], found["own_standard_error"]) == pytest.approx(mean_and_error(wanted[name]), rel=1e-9)
        weights = f"(weight {1 - t:.2g})", f"(weight {t:.2g})"
        assert all(weight in done.document["match"]["sentence"] for weight in weights)
    pair = done.document["pairs"][0]
    falls = wanted[pair["second"]] - wanted[pair["first"]]
    assert (pair["mean"], pair["standard_error"]) == pytest.approx(mean_and_error(falls), rel=1e-9)
    assert "Between sparsities the error is taken as a straight line." in done.message()
    assert pair["rests_on_interpolation"]  # topk has less error with three features than the other has here
    assert "as far as interpolation tells" in done.document["verdict"][0]
    assert f"topk at its next sparsity, L0 = {l0s['topk'][0]:.4g}, is not shown to be worse" in pair["sentence"]


def test_l0s_that_are_all_but_one_are_said_to_be_so():
    """Within 5%: matched as they are, and it is said what that leaves open."""
    few = np.where(np.arange(N)[:, None] % 40 == 0, 0.01, 1.0) * X  # rows too small for a shifted code
    done = jd.arbitrate({"truth": top(), "shrunken": top(shift=0.3)}, few)
    assert done.document["match"]["how"] == "alike"
    assert not done.document["match"]["interpolated"]
    assert "L0s within 5% of it count as matched (truth at " in done.message()


def test_a_lead_beyond_the_interpolation():
    """Two features are better here than the other's three, so that no interpolation has a part in it."""
    done = jd.arbitrate({"truth": top(), "poor": [top(1, shift=-0.6), top(3, shift=-0.6)]}, X)
    pair = done.document["pairs"][0]
    assert (pair["ahead"], pair["rests_on_interpolation"]) == ("truth", False)
    assert pair["next_l0"] == pytest.approx(3.0, abs=0.01)
    assert "rests on" not in done.message()
    assert not any(row["mean"] < 0 and row["shown"] for row in pair["parts"])


def test_out_of_a_sweep_there_are_no_figures():
    sweeps = {"topk": [top(1), top(2)], "shrunken": top(2, shift=0.2), "one": top(1, shift=0.2)}
    done = jd.arbitrate(sweeps, X, l0=2.0)
    assert [one["reached"] for one in done.document["entries"]] == [True, True, False]
    out = entry(done, "one")
    assert out["own"] is out["parts"] is out["cost"] is out["l0"] is None
    assert out["saes"][0]["own"] == pytest.approx(own_errors(sweeps["one"], X[fresh_rows()])[0].mean(), rel=1e-9)
    assert "lies outside" in out["sentence"]
    assert "without figures: one" in done.document["match"]["sentence"]
    assert len(done.document["pairs"]) == 1
    with pytest.raises(ValueError, match="l0=9 is reached by fewer than two of the names"):
        jd.arbitrate(sweeps, X, l0=9.0)


def test_without_a_common_l0_the_verdict_is_limited():
    """More features on and a lower error is no lead; fewer and a lower error is."""
    done = jd.arbitrate({"one": top(1), "two": top(2), "poor": top(4, shift=-0.3)}, X)
    assert done.document["match"]["how"] == "none"
    assert not any(one["interpolated"] for one in done.document["entries"])
    ahead = {(pair["first"], pair["second"]): pair for pair in done.document["pairs"]}
    assert ahead["two", "one"]["shown"]
    assert ahead["two", "one"]["ahead"] is None
    assert "Nothing can be said between two and one" in ahead["two", "one"]["sentence"]
    assert ahead["two", "poor"]["ahead"] == "two"
    assert "No L0 is common to all: each stands at its own (one at 1, two at 2, poor at 4" in done.message()
    assert "L0s are not matched" in done.message()


def test_seeds_are_averaged_and_their_stability_told():
    seeds = [top(), top(atoms=turned()[::-1])]
    done = jd.arbitrate({"topk": seeds, "alone": top(shift=0.3)}, X, seeds={"alone": top(atoms=turned())})
    two, alone = entry(done, "topk"), entry(done, "alone")
    assert [sae["weight"] for sae in two["saes"]] == [0.5, 0.5]
    errors = [own_errors(sae, X[fresh_rows()])[0] for sae in seeds]
    assert two["own"] == pytest.approx(np.mean(errors), rel=1e-9)
    assert two["seed_error"] == pytest.approx(np.std([e.mean() for e in errors], ddof=1) / np.sqrt(2), rel=1e-9)
    assert alone["seed_error"] is None
    for one in (two, alone):
        assert one["stability"]["saes"] == 2
        assert one["stability"]["cosine"] == pytest.approx((5 + np.cos(0.6)) / 6, rel=1e-6)
    assert "Of alone there is one seed" in done.message()


@pytest.mark.slow
def test_what_a_better_dictionary_and_more_features_would_gain():
    """One SAE whose first feature is never on, the other without one: a descent places the first anew, more atoms give the second."""
    data, dead, few = rows(n=1600), ATOMS.copy(), ATOMS[1:]
    dead[0] = BASIS[K + 1]
    never = top(atoms=dead)
    never = replace(never, b_enc=never.b_enc.at[0].set(-9.0))
    saes = {"dead": never, "few": top(atoms=few)}
    plain = jd.arbitrate(saes, data)
    done = jd.arbitrate(saes, data, parts=("dictionary", "atoms"))
    for name in saes:
        one, short = entry(done, name), entry(plain, name)
        assert [row["name"] for row in short["parts"]] == ["values", "supports", "decoder"]
        assert [row["name"] for row in one["parts"]] == ["values", "supports", "decoder", "dictionary", "atoms"]
        assert one["parts"][:2] == short["parts"][:2]
        assert sum(row["mean"] for row in one["parts"]) + one["rest"]["mean"] == pytest.approx(one["own"], rel=1e-12)
    left = best_supports(top(), data[np.flatnonzero(parted(1600, None).fresh)]).mean()  # of the true atoms
    for name, cure in (("dead", "dictionary"), ("few", "atoms")):
        assert part(entry(done, name), cure)["shown"]
        assert part(entry(done, name), cure)["mean"] > 0.5 * (entry(done, name)["own"] - left)
        assert max(entry(done, name)["parts"], key=lambda row: row["mean"])["name"] == cure
    assert "dead to its dictionary" in done.message()
    assert "few to its number of features" in done.message()
    assert "a short descent over rows of X finds that much" in done.message()
    assert "More features" in done.table()
    assert "More features" not in plain.table()
    alone = jd.arbitrate(saes, data, parts=("atoms",))
    assert [row["name"] for row in entry(alone, "few")["parts"]] == ["values", "supports", "decoder", "atoms"]
    assert 'class="key atoms"' in arbitration_html(done.document)
    assert 'class="key dictionary"' not in arbitration_html(alone.document)
    assert [e.message for e in jsonschema.Draft202012Validator(closed(SCHEMA)).iter_errors(done.document)] == []


def absorbing(on):
    """Rows of a child inside its parent, and two SAEs: the truth, and one whose child carries its parent's direction and silences it."""
    rng = np.random.default_rng(1)
    codes = np.zeros((N, K))
    codes[:, 2:] = rng.random((N, K - 2)) < 0.3
    codes[:, 0] = rng.random(N) < 0.6
    codes[:, 1] = (codes[:, 0] > 0) & (rng.random(N) < on)
    bias = -0.3 * np.ones(K)
    both, encoder = ATOMS.copy(), ATOMS.copy()
    both[1] = 0.6 * ATOMS[0] + 0.8 * ATOMS[1]
    encoder[0] = ATOMS[0] - ATOMS[1]
    encoder[1] = np.sqrt(2) * ATOMS[1]
    make = lambda W, D: jd.sae.SAE(*map(jnp.asarray, (W.T, bias, D, np.zeros(D_IN))))  # noqa: E731
    return codes, codes @ ATOMS, {"true": make(ATOMS, ATOMS), "absorbing": make(encoder, both)}


def test_against_a_truth():
    """MCC, uniqueness and F1 by their formulas; absorption by edge where the child silences its parent, and not where it does not."""
    codes, data, saes = absorbing(0.5)
    truth = {"atoms": 2 * ATOMS, "codes": codes, "parents": np.array([-1, 0, -1, -1, -1, -1])}
    done = jd.arbitrate(saes, data, truth=truth)
    at = fresh_rows()
    for name, sae in saes.items():
        cosines = np.abs(np.asarray(sae.W_dec) @ ATOMS.T)
        near, f = cosines.argmax(axis=1), np.asarray(sae.encode(data[at])) > 0
        wanted = codes[at][:, near] > 0
        f1 = np.mean(2 * np.sum(f & wanted, axis=0) / np.maximum(f.sum(axis=0) + wanted.sum(axis=0), 1))
        told = entry(done, name)["recovery"]
        assert told["f1"] == pytest.approx(f1)
        assert told["mcc"] == pytest.approx((5 + (1 if name == "true" else 0.8)) / 6)
        assert told["uniqueness"] == len(np.unique(near)) / K
    edge = done.document["truth"]["absorbed"][0]
    assert (edge["parent"], edge["child"]) == (0, 1)
    assert edge["by_name"]["absorbing"]["gap"] == 1
    assert edge["by_name"]["true"]["gap"] == 0
    assert entry(done, "absorbing")["absorption"] == {
        "by": "the true codes", "edges": 1, "shown": 1, "mean": 1.0,
        "standard_error": pytest.approx(edge["by_name"]["absorbing"]["standard_error"]),
    }  # fmt: skip
    assert "count as matched" not in done.message()  # each stands at its own
    flat = entry(done, "true")["flat"]
    assert (flat["pairs"], flat["open"]) == (1, False)  # relu: its loss determines the pair (C1)
    assert flat["features_share"] == pytest.approx(2 / 6)
    assert entry(done, "absorbing")["flat"]["pairs"] == 0
    by_labels = jd.arbitrate(saes, data, labels=np.where(codes[:, 0] > 0, "s", "t"))
    told = entry(by_labels, "absorbing")["absorption"]
    assert (told["by"], told["mean"], told["shown"]) == ("labels", 1.0, 2)  # either silences the other
    assert entry(by_labels, "true")["absorption"]["edges"] == 0  # no two of its features are near one another


@pytest.mark.slow
def test_rows_of_their_own_and_planted_data_as_truth():
    """Fresh rows that are given are the ones that everything is compared on; planted data bring atoms, codes and parents."""
    planted = jd.synthetic.dog_labrador(jax.random.key(0), N // 2, D_IN)
    sae = jd.sae.tied_sae(planted.dictionary, 0.1)
    done = jd.arbitrate(
        {"tied": sae, "more": jd.sae.tied_sae(planted.dictionary, 0.3)}, X, held_out=planted.X, truth=planted
    )
    own = own_errors(sae, np.asarray(planted.X))[0]
    assert entry(done, "tied")["saes"][0]["own"] == pytest.approx(own.mean(), rel=1e-9)
    assert done.document["truth"]["coded"]
    assert done.document["truth"]["edges"] == 1
    assert entry(done, "tied")["recovery"]["mcc"] == pytest.approx(1)


@pytest.mark.slow
def test_an_sae_that_normalises_is_compared_in_the_units_of_the_activations():
    saes = {"scaled": top(normalisation="constant_norm_rescale"), "plain": top()}
    done = jd.arbitrate(saes, X)
    at = fresh_rows()
    errors = np.sum((X[at] - np.asarray(saes["scaled"](X[at]))) ** 2, axis=1)
    assert (entry(done, "scaled")["own"], entry(done, "scaled")["own_standard_error"]) == pytest.approx(
        mean_and_error(errors), rel=1e-9
    )
    assert "normalise their input" in done.message()


@pytest.mark.slow
def test_signed_codes_have_no_nested_pairs():
    signed = jd.sae.SAE(ATOMS.T, np.zeros(K), ATOMS, np.zeros(D_IN), activation=Activation("abstopk", k=2))
    done = jd.arbitrate(
        {"signed": signed, "topk": top()}, np.where(np.arange(N)[:, None] % 2 == 0, X, -X), labels=np.full(N, "a")
    )
    assert entry(done, "signed")["flat"] is entry(done, "signed")["absorption"] is None
    assert entry(done, "topk")["flat"] is not None


@pytest.mark.slow
def test_rows_are_thinned_as_asked_or_by_the_size_of_the_saes(monkeypatch):
    assert jd.arbitrate(FAULTS, X, n_rows=60).document["data"]["fresh_rows"] == 60
    monkeypatch.setattr("jaxdict.arbitration.measuring.rows_by_size", lambda d_sae, l0: 100)
    assert jd.arbitrate(FAULTS, X).document["data"]["fresh_rows"] == 50
