"""What an arbitration refuses, before any compute, and the weights of a matched L0."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from rivals import ATOMS, D_IN, N, bench_model, rows, top

import jaxdict as jd
from jaxdict.arbitration import measuring
from jaxdict.arbitration.matching import matched, nodes_of
from jaxdict.arbitration.rows import parts_of
from jaxdict.arbitration.sentences import pair_sentence
from jaxdict.arbitration.truth_files import read_truth
from jaxdict.arbitration.truths import truth_of
from jaxdict.results import save_solution

X = rows()
BOTH = {"one": top(), "other": top(shift=0.3)}
BAD = X.copy()
BAD[7, 3] = np.nan


def transcoder():
    return jd.sae.Transcoder(jnp.eye(D_IN), jnp.zeros(D_IN), jnp.eye(D_IN), jnp.zeros(D_IN), centred=False)


def narrow():
    return jd.sae.tied_sae(jd.Dictionary(jnp.eye(5)), 0.1)


def wide():
    return jd.sae.tied_sae(jd.Dictionary(jnp.tile(jnp.asarray(ATOMS[:4]), (1024, 1))), 0.1)


def broken():
    return replace(top(), b_enc=jnp.full(len(ATOMS), jnp.nan))


def empty():
    return replace(top(), W_dec=top().W_dec.at[2].set(0))


@pytest.mark.parametrize(
    ("saes", "data", "options", "message"),
    [
        ([top(), top()], X, {}, "saes is a list; give SAEs by name"),
        ({"one": top()}, X, {}, "saes holds 1 name; "),
        ({"one": top(), "other": []}, X, {}, "'other' is an empty list; "),
        ({"one": top(), "other": jnp.eye(2)}, X, {}, "'other' is a .*; give an SAE"),
        ({"one": top(), "other": transcoder()}, X, {}, "'other' is a transcoder: "),
        ({"one": top(), "other": narrow()}, X, {}, f"'one' reads {D_IN} numbers a row and 'other' 5; "),
        ({"one": top(), "other": broken()}, X, {}, "b_enc of 'other' holds NaN or infinity; "),
        ({"one": top(), "other": empty()}, X, {}, "decoder row 2 of 'other' is zero"),
        (BOTH, X[:, :5], {}, "have width 5, the SAE reads d_in = 8; "),
        (BOTH, X[0], {}, r"X has shape \(8,\); "),
        (BOTH, X[:7], {}, "7 rows are too few"),
        (BOTH, X, {"groups": np.zeros(N)}, "240 rows of 1 documents are too few"),
        (BOTH, X, {"groups": [1, 2]}, r"groups has shape \(2,\) but the data 240 rows; "),
        (BOTH, X, {"held_out": X[:20, :5]}, "have width 5"),
        (BOTH, X, {"held_out": X[:4]}, "4 fresh rows say nothing of a standard error; "),
        (BOTH, X, {"held_out": np.array([0, 999])}, "numbers of rows of X from 0 to 239"),
        (BOTH, X, {"held_out": 0.5}, "held_out has shape"),
        (BOTH, X, {"held_out": BAD}, "row 7 of held_out holds NaN or infinity; "),
        (BOTH, BAD, {}, "row 7 of X holds NaN or infinity; "),
        (BOTH, X, {"truth": np.eye(5)}, r"truth has atoms of shape \(5, 5\), these rows 8 features; "),
        (BOTH, X, {"truth": {"atoms": ATOMS, "codes": np.ones((3, 6))}}, r"truth has codes of shape \(3, 6\); "),
        (BOTH, X, {"truth": {"atoms": ATOMS, "parents": np.array([9] * 6)}}, "truth has parents of shape"),
        (BOTH, X, {"truth": {"atom": ATOMS}}, "truth holds 'atom'; "),
        (BOTH, X, {"truth": 0 * ATOMS}, "truth has an atom that is zero"),
        (BOTH, X, {"labels": ["a"]}, "give one label a row"),
        (BOTH, X, {"l0": -1}, "l0 is -1; "),
        (BOTH, X, {"parts": ("width",)}, "parts names 'width'; "),
        (BOTH, X, {"parts": "atoms"}, "parts names 'atoms'; "),
        (
            {"one": top(), "wide": wide()},
            X,
            {"parts": ("atoms",)},
            "'wide' has 4,096 features, too many for a short descent",
        ),
        (BOTH, X, {"n_rows": 3}, "n_rows is 3; "),
        (BOTH, X, {"seeds": {"third": top()}}, "seeds names 'third', which saes does not; "),
    ],
)
def test_bad_input_is_refused_before_compute(saes, data, options, message, monkeypatch):
    monkeypatch.setattr(measuring, "rows_by_size", lambda d_sae, l0: 10**6)
    monkeypatch.setattr(measuring, "split_rows", lambda *_: pytest.fail("computed"))
    with pytest.raises(ValueError, match=message) as caught:
        jd.arbitrate(saes, data, **options)
    assert "\n" not in str(caught.value)


def test_numbers_and_booleans_name_the_same_fresh_rows():
    """Documents with a fresh row have no row that is fitted to."""
    chosen, groups = np.arange(N) < 40, np.arange(N) // 5
    one, other = (parts_of(top(), X, held, groups) for held in (chosen, np.flatnonzero(chosen)[::-1]))
    assert one.fresh.tolist() == other.fresh.tolist() == list(range(40))
    assert set(one.aim) | set(one.reach) == set(range(40, N))
    few = parts_of(top(), X, np.arange(0, N, 12), groups)
    assert not set(groups[few.fresh]) & set(groups[[*few.aim, *few.reach]])
    thin = one.thinned(16)
    assert (len(thin.fresh), len(thin.aim), len(thin.reach)) == (16, 12, 4)
    assert thin.groups.tolist() == groups[thin.fresh].tolist()


def test_a_common_l0():
    sweeps = [nodes_of([10.0, 20.0, 40.0]), nodes_of([16.0, 30.0])]
    found = matched(sweeps)
    assert (found.l0, found.how) == (23.0, "middle")
    assert found.places[0].weights == pytest.approx((0.0, 0.85, 0.15))
    assert found.places[1].weights == pytest.approx((0.5, 0.5))
    near = matched([nodes_of([32.0]), nodes_of([33.0])])
    assert (near.how, [place.l0 for place in near.places], near.l0) == ("alike", [32.0, 33.0], 32.5)
    far = matched([nodes_of([10.0, 20.0]), nodes_of([40.0, 50.0])])
    assert (far.l0, far.how, [place.l0 for place in far.places]) == (None, "none", [20.0, 40.0])
    out = matched([*sweeps, nodes_of([12.0])], 25.0)
    assert out.places[2].weights is None
    assert matched(sweeps, 31.0).places[1].l0 == 30.0  # within 5% of an end: that end as it is


def test_a_truth_from_files(tmp_path):
    """An .npz file, atoms alone, and what fit wrote; what holds no atoms is refused with its name."""
    np.savez(tmp_path / "truth.npz", atoms=ATOMS, parents=np.arange(-1, 5))
    np.save(tmp_path / "atoms.npy", ATOMS)
    np.save(tmp_path / "codes.npy", np.ones((3, 6)))
    save_solution(tmp_path / "run", jd.Problem(lam=0.1), jd.Dictionary(jnp.asarray(ATOMS)), None)
    assert sorted(read_truth(tmp_path / "truth.npz")) == ["atoms", "parents"]
    assert sorted(read_truth(tmp_path)) == ["atoms", "codes"]
    for path in (tmp_path / "atoms.npy", tmp_path / "run"):
        np.testing.assert_array_equal(read_truth(path)["atoms"], ATOMS)
    (tmp_path / "bad.npz").write_text("nothing")
    np.savez(tmp_path / "other.npz", weights=ATOMS)
    for name, message in (
        ("bad.npz", "bad.npz: "),
        ("other.npz", "other.npz: holds 'weights'; "),
        ("none", "no such file"),
    ):
        with pytest.raises((ValueError, OSError), match=message):
            read_truth(tmp_path / name)


def test_a_benchs_model_is_a_truth_of_atoms_and_parents(tmp_path):
    saved = jd.synthetic.save_bench_model(bench_model(), tmp_path / "model")
    for given in (bench_model(), read_truth(saved)):
        known = truth_of(given, D_IN, N)
        np.testing.assert_allclose(known.atoms, ATOMS, rtol=1e-12, atol=1e-15)
        assert (known.codes, known.edges) == (None, [(0, 1)])
    (saved / "hierarchy.json").write_text("[")
    with pytest.raises(ValueError, match=r"hierarchy.json: "):
        read_truth(saved)


def test_a_difference_is_told_with_the_part_that_goes_the_other_way():
    parts = [("values", -0.5), ("supports", 0.1), ("decoder", 0.0), ("rest", 0.7)]
    listed = [{"name": name, "mean": mean, "standard_error": 0.01, "shown": mean != 0} for name, mean in parts]
    pair = {
        "first": "a",
        "second": "b",
        "mean": 0.3,
        "standard_error": 0.01,
        "z": 30.0,
        "shown": True,
        "seed_error": 0.2,
    }
    told = pair_sentence(pair | {"parts": listed, "rests_on_interpolation": False}, {"match": {"l0": 2.0}})
    assert (
        "lower by 0.3 +- 0.01 (30 standard errors): lower in the rest (0.7 +- 0.01), higher in the values (0.5 +- 0.01)"
        in told
    )
    assert "Between seeds the difference varies by +- 0.2: it is shown of these SAEs, not of what trained them." in told
